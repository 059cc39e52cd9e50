"""Finds what each ray hits. Pure JAX.

Pictures are cut into square tiles; each tile keeps the nearest few boxes and
trees that its rays can meet, and its rays are tested against those only. Rays
are [T, R]: T tiles of R pixels.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_builders.rendered_city import scene as sc

TILE_PX = 16
CHUNK_TILES = 64
BOXES_PER_TILE = 28
TREES_PER_TILE = 20
FAR_M = 2500.0
GROUND_STEPS = 10


class Rays(NamedTuple):
  """ox ... dz: [T, R]; directions are unit vectors. spread: [] the angle
  between neighbouring pixels, and width: [] their distance at the eye."""

  ox: jax.Array
  oy: jax.Array
  oz: jax.Array
  dx: jax.Array
  dy: jax.Array
  dz: jax.Array
  spread: jax.Array
  width: jax.Array


class Hit(NamedTuple):
  """t: [T, R] distance; box, tree: [T, R] row of the scene, -1 = none."""

  t: jax.Array
  box: jax.Array
  tree: jax.Array


def tile_pixels(size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """px, py: [T, R] float32 in (-1, 1), right and up, of tiles in row order.

  Raises:
    ValueError: the picture is not made of whole tiles.
  """
  h, w = size_hw
  if h % TILE_PX or w % TILE_PX:
    raise ValueError(f'picture size {size_hw} is not a multiple of {TILE_PX}')
  py, px = np.meshgrid(
    1 - (2 * np.arange(h) + 1) / h, (2 * np.arange(w) + 1) / w - 1,
    indexing='ij',
  )  # fmt: skip

  def tiles(x):
    x = x.reshape(h // TILE_PX, TILE_PX, w // TILE_PX, TILE_PX)
    return x.transpose(0, 2, 1, 3).reshape(-1, TILE_PX**2).astype(np.float32)

  return tiles(px), tiles(py)


@functools.lru_cache(maxsize=16)
def chunks(
  size_hw: tuple[int, int],
) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """tile_pixels in chunks of CHUNK_TILES tiles, (px, py) of each.

  On the device. Pictures of all shapes go through one compilation, and what is computed for
  a chunk stays in the processor's cache. Small pictures are one chunk.
  """
  px, py = tile_pixels(size_hw)
  if len(px) <= CHUNK_TILES:
    return (jax.device_put((px, py)),)
  missing = -len(px) % CHUNK_TILES
  px, py = (np.pad(x, ((0, missing), (0, 0)), mode='edge') for x in (px, py))
  count = len(px) // CHUNK_TILES
  pairs = zip(np.split(px, count), np.split(py, count), strict=True)
  return tuple(jax.device_put(tuple(pairs)))


def untile(x: jax.Array, size_hw: tuple[int, int]) -> jax.Array:
  """[T, R] -> [H, W]; rows beyond the tiles of the picture are dropped."""
  h, w = size_hw
  x = x[: h * w // TILE_PX**2]
  x = x.reshape(h // TILE_PX, w // TILE_PX, TILE_PX, TILE_PX)
  return x.transpose(0, 2, 1, 3).reshape(h, w)


def make_rays(
  px: jax.Array,
  py: jax.Array,
  camera: Mapping[str, jax.Array],
) -> Rays:
  """Rays of some tiles of a picture.

  Args:
    px, py: [T, R] of tile_pixels.
    camera: of cameras.Camera.arrays; height_px of the picture and aspect, its
      width / height.
  """
  eye, right, up = camera['eye'], camera['right'], camera['up']
  forward, reach = camera['forward'], camera['reach_m']
  spread, tilt = camera['spread'], camera['tilt_rad']
  height_px, aspect = camera['height_px'], camera['aspect']

  def around():
    azimuth, elevation = px * np.float32(np.pi), tilt + py * spread
    return (
      jnp.sin(azimuth) * jnp.cos(elevation),
      jnp.cos(azimuth) * jnp.cos(elevation),
      jnp.sin(elevation),
    )

  def ahead():
    d = [
      forward[i] + spread * (aspect * px * right[i] + py * up[i])
      for i in range(3)
    ]
    norm = jax.lax.rsqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    return tuple(x * norm for x in d)

  o = [eye[i] + reach * (px * right[i] + py * up[i]) for i in range(3)]
  d = jax.lax.cond(camera['panorama'], around, ahead)
  return Rays(*o, *d, 2 * spread / height_px, 2 * reach / height_px)


def _tile_cones(rays: Rays):
  """Axis o, d [3][T], and radius at the eye and per metre [T] of each tile."""
  o = [x.mean(1) for x in rays[:3]]
  d = [x.mean(1) for x in rays[3:6]]
  norm = jax.lax.rsqrt(sum(x**2 for x in d))
  d = [x * norm for x in d]
  corners = np.array([0, TILE_PX - 1, TILE_PX**2 - TILE_PX, TILE_PX**2 - 1])
  away = sum(
    (x[:, corners] - y[:, None]) ** 2 for x, y in zip(rays[:3], o, strict=True)
  )
  cos = sum(
    x[:, corners] * y[:, None] for x, y in zip(rays[3:6], d, strict=True)
  ).min(1)
  tan = jnp.sqrt(jnp.maximum(1 - cos**2, 0)) / cos
  return o, d, jnp.sqrt(away.max(1)), tan


def _nearest(cones, centre, radius, count):
  """[T, count] rows of the spheres that a tile's cone meets, nearest first;
  the row number is len(centre) where there are fewer."""
  o, d, start, tan = cones
  delta = [centre[:, i][None] - o[i][:, None] for i in range(3)]  # [T, N]
  along = sum(x * y[:, None] for x, y in zip(delta, d, strict=True))
  across = jnp.sqrt(jnp.maximum(sum(x**2 for x in delta) - along**2, 0))
  radius = radius[None]
  reach = radius * jnp.sqrt(1 + tan**2)[:, None]
  reach = reach + start[:, None] + jnp.maximum(along, 0) * tan[:, None]
  meets = (across < reach) & (along > -radius)
  score, rows = jax.lax.top_k(jnp.where(meets, radius - along, -jnp.inf), count)
  return jnp.where(jnp.isfinite(score), rows, len(centre))


def _ground(rays: Rays, bumps: jax.Array) -> jax.Array:
  """[T, R] distance to the terrain; FAR_M where there is none."""
  top = jnp.maximum(bumps[:, 3], 0).sum()
  bottom = jnp.minimum(bumps[:, 3], 0).sum()
  down = jnp.minimum(rays.dz, -1e-5)
  t0 = jnp.maximum((top + 0.01 - rays.oz) / down, 0.0)
  t1 = jnp.where(rays.dz < -1e-5, (bottom - 0.01 - rays.oz) / down, FAR_M)
  t1 = jnp.clip(t1, 0.0, FAR_M)
  t0 = jnp.minimum(t0, t1)

  def above(t):
    return (
      rays.oz
      + t * rays.dz
      - height(rays.ox + t * rays.dx, rays.oy + t * rays.dy, bumps)
    )

  def step(i, carry):
    before, after, f_before, f_after = carry
    # Cubic steps: short near the eye, where ground cameras need them.
    at = ((i + 1) / GROUND_STEPS) ** 3
    t = t0 + (t1 - t0) * at
    f = above(t)
    open_ = f_after > 0  # nothing was met so far
    return (
      jnp.where(open_, after, before),
      jnp.where(open_, t, after),
      jnp.where(open_, f_after, f_before),
      jnp.where(open_, f, f_after),
    )

  f0 = above(t0)
  before, after, f_before, f_after = jax.lax.fori_loop(
    0, GROUND_STEPS, step, (t0, t0, f0, jnp.maximum(f0, 1e-6))
  )
  met = f_after <= 0

  def between():  # where the straight line between the ends is on the ground
    gap = jnp.maximum(f_before - f_after, 1e-9)
    return before + (after - before) * jnp.clip(f_before / gap, 0.0, 1.0)

  for _ in range(2):
    t = between()
    f = above(t)
    over = f > 0
    before, f_before = jnp.where(over, t, before), jnp.where(over, f, f_before)
    after, f_after = jnp.where(over, after, t), jnp.where(over, f_after, f)
  return jnp.where(met, between(), FAR_M)


def height(x: jax.Array, y: jax.Array, bumps: jax.Array) -> jax.Array:
  """Terrain height at x, y."""
  total = 0.0
  for i in range(sc.NUM_BUMPS):
    square = (x - bumps[i, 0]) ** 2 + (y - bumps[i, 1]) ** 2
    total = total + bumps[i, 3] / (1 + square * bumps[i, 2])
  return total


def wave(x: jax.Array) -> jax.Array:
  """About sin(2 pi x); jnp.sin is not vectorised on every CPU."""
  x = x - jnp.floor(x) - 0.5
  return 8 * x * (2 * jnp.abs(x) - 1)


def _safe(x):
  return jnp.where(jnp.abs(x) < 1e-7, 1e-7, x)


def _box(rays: Rays, box):
  """Entry distance [T, R] into a box given by columns [T, 1]; inf = missed."""
  cx, cy, z0, c, s, hx, hy, top, rise = box
  ox, oy = rays.ox - cx, rays.oy - cy
  lx, ly, lz = c * ox + s * oy, c * oy - s * ox, rays.oz - z0
  dx, dy = c * rays.dx + s * rays.dy, c * rays.dy - s * rays.dx
  ix, iy = 1 / _safe(dx), 1 / _safe(dy)
  ax, bx = (-hx - lx) * ix, (hx - lx) * ix
  ay, by = (-hy - ly) * iy, (hy - ly) * iy
  enter = jnp.maximum(jnp.minimum(ax, bx), jnp.minimum(ay, by))
  leave = jnp.minimum(jnp.maximum(ax, bx), jnp.maximum(ay, by))
  pitch = rise / hy
  for slope in (pitch, -pitch):
    away = top + rise - lz - slope * ly
    speed = _safe(rays.dz + slope * dy)
    t = away / speed
    enter = jnp.where(speed < 0, jnp.maximum(enter, t), enter)
    leave = jnp.where(speed > 0, jnp.minimum(leave, t), leave)
  return jnp.where((enter < leave) & (enter > 0.01), enter, jnp.inf)


def _tree(rays: Rays, tree):
  """Distance [T, R] to a tree given by columns [T, 1]; inf = missed."""
  cx, cy, cz, r, rz, conifer, foot = tree
  k = r / rz
  ox, oy, oz = rays.ox - cx, rays.oy - cy, (rays.oz - cz) * k
  dz = rays.dz * k
  square = rays.dx**2 + rays.dy**2 + dz**2
  near = -(ox * rays.dx + oy * rays.dy + oz * dz) / square
  qx, qy, qz = ox + near * rays.dx, oy + near * rays.dy, oz + near * dz
  gap = qx**2 + qy**2 + qz**2
  # A ragged outline, fixed to the tree; conifers narrow towards the top.
  ragged = (
    0.5 * wave(0.65 * qx + 0.37 * qz + cx) * wave(0.59 * qy - 0.46 * qz + cy)
  )
  taper = 1 - conifer * jnp.clip(0.55 * (qz / r + 0.35), 0.0, 0.8)
  radius = r * taper * (0.88 + 0.24 * ragged)
  inside = radius**2 - gap
  t = near - jnp.sqrt(jnp.maximum(inside, 0) / square)
  t = jnp.where((inside > 0) & (t > 0.01), t, jnp.inf)
  # The trunk: an upright cylinder below the crown.
  flat = rays.dx**2 + rays.dy**2
  side = (ox * rays.dy - oy * rays.dx) ** 2
  thin = 0.08 * r
  bole = -(ox * rays.dx + oy * rays.dy) / jnp.maximum(flat, 1e-7)
  z = rays.oz + bole * rays.dz
  trunk = (side < thin**2 * flat) & (z < cz) & (z > foot) & (bole > 0.01)
  return jnp.minimum(t, jnp.where(trunk, bole, jnp.inf))


def _closest(test, columns, rows, rays):
  """Nearest hit among a tile's candidates.

  Args:
    test: (rays, columns [C][T, 1]) -> distance [T, R].
    columns: [N + 1, C], the last row is never hit.
    rows: [T, K] candidates, N = none; the first ones are used first.
    rays: the rays.

  Returns:
    distance [T, R], row [T, R] int32 (-1 = none).
  """
  table = columns[rows.T]  # [K, T, C]

  def step(k, carry):
    best, row = carry
    part = jax.lax.dynamic_index_in_dim(table, k, keepdims=False)
    t = test(rays, [part[:, i][:, None] for i in range(part.shape[1])])
    index = jax.lax.dynamic_index_in_dim(rows, k, axis=1)
    closer = t < best
    return jnp.where(closer, t, best), jnp.where(closer, index, row)

  start = (
    jnp.full(rays.dx.shape, jnp.inf, jnp.float32),
    jnp.full(rays.dx.shape, -1, jnp.int32),
  )
  most = (rows < len(columns) - 1).sum(1).max()
  return jax.lax.fori_loop(0, most, step, start)


def trace(
  rays: Rays, boxes: jax.Array, trees: jax.Array, bumps: jax.Array
) -> Hit:
  """What each ray hits first.

  Args:
    rays: [T, R].
    boxes, trees, bumps: of scene.Scene.
  """
  cones = _tile_cones(rays)
  centre = jnp.stack(
    [
      boxes[:, sc.CX],
      boxes[:, sc.CY],
      boxes[:, sc.Z0] + 0.5 * (boxes[:, sc.HEIGHT] + boxes[:, sc.RISE]),
    ],
    1,
  )
  half = 0.5 * (boxes[:, sc.HEIGHT] + boxes[:, sc.RISE]) + 0.5
  radius = jnp.sqrt(
    boxes[:, sc.HALF_X] ** 2 + boxes[:, sc.HALF_Y] ** 2 + half**2
  )
  rows = _nearest(cones, centre, radius, BOXES_PER_TILE)
  columns = boxes[:, : sc.RISE + 1]
  columns = jnp.concatenate([columns, _never(columns, sc.Z0)])
  t_box, box = _closest(_box, columns, rows, rays)

  middle = 0.5 * (
    trees[:, sc.TREE_Z] + trees[:, sc.TREE_RZ] + trees[:, sc.TREE_FOOT]
  )
  upper = trees[:, sc.TREE_Z] + trees[:, sc.TREE_RZ] - middle
  centre = jnp.stack([trees[:, sc.TREE_X], trees[:, sc.TREE_Y], middle], 1)
  radius = jnp.maximum(upper, 1.1 * trees[:, sc.TREE_R])
  rows = _nearest(cones, centre, radius, TREES_PER_TILE)
  used = (
    sc.TREE_X, sc.TREE_Y, sc.TREE_Z, sc.TREE_R, sc.TREE_RZ, sc.TREE_CONIFER,
    sc.TREE_FOOT,
  )  # fmt: skip
  columns = trees[:, np.array(used)]
  columns = jnp.concatenate([columns, _never(columns, 2)])
  t_tree, tree = _closest(_tree, columns, rows, rays)

  t_ground = _ground(rays, bumps)
  t = jnp.minimum(jnp.minimum(t_box, t_tree), t_ground)
  return Hit(
    t,
    jnp.where((t_box <= t) & (box >= 0), box, -1),
    jnp.where((t_tree <= t) & (tree >= 0), tree, -1),
  )


def _never(columns: jax.Array, z: int) -> jax.Array:
  """[1, C] a row that no ray meets."""
  return jnp.ones((1, columns.shape[1]), jnp.float32).at[0, z].set(sc.NOWHERE_M)
