"""What buildings, cars and trees are made of, at every hit. Pure JAX.

See patterns.py for shapes, ground.py for the ground.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data_builders.rendered_city import patterns, trace
from data_builders.rendered_city import scene as sc


class Surface(NamedTuple):
  """albedo [3, T, R]; gloss [1, T, R] share of mirrored sky; nx, ny, nz [1, T, R]
  unit normal; dark [1, T, R] self-shading of rough things, 1 = none."""

  albedo: jax.Array
  gloss: jax.Array
  nx: jax.Array
  ny: jax.Array
  nz: jax.Array
  dark: jax.Array


def _column(table, column, rows):
  return table[:, column].at[rows].get(mode='clip')


# -------------------------------------------------------------------- boxes


def box(
  rows: jax.Array,
  x: jax.Array,
  y: jax.Array,
  z: jax.Array,
  size: jax.Array,
  noises: tuple[jax.Array, jax.Array],
  boxes: jax.Array,
) -> Surface:
  """Buildings and cars.

  Args:
    rows: [1, T, R] row of each ray's box; any value where there is none.
    x, y, z: [1, T, R] the hit.
    size: [1, T, R] footprint of the pixel, metres.
    noises: fine and coarse noise [1, T, R].
    boxes: of scene.Scene.
  """
  fine, coarse = noises

  def get(column):
    return _column(boxes, column, rows)

  c, s, hx, hy = get(sc.COS), get(sc.SIN), get(sc.HALF_X), get(sc.HALF_Y)
  top, rise, seed = get(sc.HEIGHT), get(sc.RISE), get(sc.SEED)
  kind, roof_kind = get(sc.KIND), get(sc.ROOF_KIND)
  floor, bay = get(sc.FLOOR_M), get(sc.BAY_M)
  wall = jnp.concatenate([get(sc.WALL_R + i) for i in range(3)])
  roof = jnp.concatenate([get(sc.ROOF_R + i) for i in range(3)])
  dx, dy = x - get(sc.CX), y - get(sc.CY)
  lx, ly, v = c * dx + s * dy, c * dy - s * dx, z - get(sc.Z0)
  pitch = rise / hy
  below_roof = (top + rise - pitch * jnp.abs(ly) - v) * jax.lax.rsqrt(
    1 + pitch**2
  )
  to_x, to_y = hx - jnp.abs(lx), hy - jnp.abs(ly)
  on_roof = below_roof < jnp.minimum(to_x, to_y)
  on_x = (to_x < to_y) & ~on_roof  # the wall across the local x axis
  tilt = jax.lax.rsqrt(1 + pitch**2)
  nlx = jnp.where(on_x, jnp.sign(lx), 0.0)
  nly = jnp.where(
    on_roof, pitch * tilt * jnp.sign(ly), jnp.where(on_x, 0.0, jnp.sign(ly))
  )
  nz = jnp.where(on_roof, tilt, 0.0)

  # Walls: bays and storeys of windows.
  u = jnp.where(on_x, ly, lx)
  width = jnp.where(on_x, hy, hx)
  bays = jnp.maximum(jnp.round(2 * width / bay), 1.0)
  pane_u = (u + width) / (2 * width) * bays
  pane_v = v / floor
  step_u, step_v = size * bays / (2 * width), size / floor
  share_w, share_h = get(sc.WINDOW_W), get(sc.WINDOW_H)
  window = patterns.stripes(
    pane_u - 0.5 + 0.5 * share_w, share_w, step_u
  ) * patterns.stripes(pane_v - 0.32, share_h, step_v)
  window = window * (v < top - 0.4) * (v > 0.6) * (kind == sc.BUILDING)
  chance = patterns.random(jnp.floor(pane_u), jnp.floor(pane_v), seed)
  known = jnp.clip(1.5 - 2 * step_u, 0.0, 1.0)  # panes can be told apart
  glass = get(sc.GLASS) * (1 + known * (2.2 * (chance > 0.72) - 0.4))
  line = 1 - 0.18 * patterns.stripes(pane_v + 0.04, 0.09, step_v)
  stain = 1 + 0.07 * fine + 0.12 * coarse - 0.15 * jnp.exp(-jnp.abs(v))
  facade = wall * jnp.where(kind == sc.BUILDING, line * stain, 1.0)
  facade = patterns.mix(facade, glass * patterns.rgb(0.9, 1.0, 1.1), window)

  # Roofs: tiles in rows up the slope, seams down it, gravel and a rim.
  down = jnp.abs(ly) * jnp.sqrt(1 + pitch**2)
  courses = 1 - 0.28 * patterns.stripes(down / 0.55, 0.3, size / 0.55)
  seams = 1 - 0.35 * patterns.stripes(lx / 0.9, 0.14, size / 0.9)
  pattern = jnp.where(
    roof_kind == sc.TILE_ROOF, courses * (1 + 0.16 * fine),
    jnp.where(roof_kind == sc.METAL_ROOF, seams, 1 + 0.12 * fine),
  )  # fmt: skip
  pattern = pattern * (1 + 0.16 * coarse)
  rim = jnp.minimum(to_x, to_y)
  parapet = jnp.clip(0.5 - (rim - 0.45) / size, 0.0, 1.0) * (rise == 0)
  parapet = parapet * (kind == sc.BUILDING)
  cover = patterns.mix(
    roof * pattern,
    patterns.mix(wall, patterns.rgb(0.5, 0.5, 0.5), 0.4),
    parapet,
  )

  # Cars: a painted body on dark wheels, a cabin of glass with a painted top.
  is_car, is_cabin = kind == sc.CAR, kind == sc.CABIN
  wheels = (v < 0.55) & (jnp.abs(jnp.abs(lx) - 0.62 * hx) < 0.34) & ~on_x
  body = jnp.where(wheels | (v < 0.2), 0.02, wall)
  facade = jnp.where(is_car, body, jnp.where(is_cabin, 0.025, facade))
  cover = jnp.where(is_car | is_cabin, roof, cover)

  albedo = jnp.where(on_roof, cover, facade)
  mirror = jnp.where(on_roof, 0.0, 0.5 * window)
  mirror = jnp.where(is_car, 0.3, jnp.where(is_cabin, 0.6, mirror))
  return Surface(
    albedo, mirror, c * nlx - s * nly, s * nlx + c * nly, nz, jnp.ones_like(x)
  )


# -------------------------------------------------------------------- trees


def tree(
  rows: jax.Array,
  x: jax.Array,
  y: jax.Array,
  z: jax.Array,
  trees: jax.Array,
  *,
  dryness: jax.Array,
  autumn: jax.Array,
) -> Surface:
  """Crowns and trunks; arguments as for `box`."""

  def get(column):
    return _column(trees, column, rows)

  r, rz, tone = get(sc.TREE_R), get(sc.TREE_RZ), get(sc.TREE_TONE)
  conifer = get(sc.TREE_CONIFER)
  qx, qy = x - get(sc.TREE_X), y - get(sc.TREE_Y)
  qz = z - get(sc.TREE_Z)
  # Leaf clumps push the normal about.
  scale = 2.6 / r
  bump_x = trace.wave(scale * 0.21 * (qx + 1.7 * qz) + tone)
  bump_y = trace.wave(scale * 0.23 * (qy - 1.3 * qz) + 3 * tone)
  bump_z = trace.wave(scale * 0.19 * (qx - qy) + 5 * tone)
  nx = qx / r + 0.42 * bump_x
  ny = qy / r + 0.42 * bump_y
  nz = qz * r / (rz * rz) + 0.25 + 0.3 * bump_z
  norm = jax.lax.rsqrt(nx**2 + ny**2 + nz**2 + 1e-6)
  leaf = patterns.mix(
    jnp.array([0.065, 0.115, 0.03]), jnp.array([0.12, 0.125, 0.045]),
    0.6 * dryness,
  )[:, None, None] * (1 + 0.3 * tone)  # fmt: skip
  # Trees do not turn all at once, nor to one colour.
  turned = jnp.clip(1.6 * autumn - 0.3 + 0.5 * tone, 0.0, 1.0)
  gold = patterns.mix(
    patterns.rgb(0.30, 0.19, 0.035),
    patterns.rgb(0.26, 0.075, 0.03),
    (tone > 0.3) * 0.7,
  )
  leaf = patterns.mix(leaf, gold, turned * (1 - conifer))
  needle = patterns.rgb(0.035, 0.075, 0.035) * (1 + 0.25 * tone)
  leaf = patterns.mix(leaf, needle, conifer)
  clump = trace.wave(0.9 * qx + 0.3 * z) * trace.wave(0.8 * qy - 0.35 * z)
  leaf = leaf * (1 + 0.35 * clump)
  bole = (qx**2 + qy**2 < (0.1 * r) ** 2) & (qz < 0)
  albedo = jnp.where(bole, patterns.rgb(0.10, 0.075, 0.055), leaf)
  inner = jnp.clip(0.7 + 0.4 * qz / rz, 0.4, 1.0)
  return Surface(
    albedo, jnp.zeros_like(x), nx * norm, ny * norm, nz * norm, inner
  )
