"""The ground: grass, fields, water, car parks, streets. Pure JAX.

Patterns are fixed to the world and averaged over the footprint of the pixel
(`size`), so that they look the same from every camera and do not flicker.
"""

import jax
import jax.numpy as jnp

from data_builders.rendered_city import layout, patterns, trace
from data_builders.rendered_city import scene as sc


def ground(
  x: jax.Array,
  y: jax.Array,
  size: jax.Array,
  noises: tuple[jax.Array, jax.Array],
  *,
  streets: jax.Array,
  areas: jax.Array,
  base: jax.Array,
  dryness: jax.Array,
  season: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Albedo [3, T, R] and gloss [1, T, R] of the ground at x, y.

  Args:
    x, y: [1, T, R] metres.
    size: [1, T, R] footprint of the pixel, metres.
    noises: fine and coarse noise [1, T, R].
    streets, areas, base: of scene.Scene (base = its ground).
    dryness, season: [] of the conditions.
  """
  fine, coarse = noises
  green = jnp.array([0.085, 0.15, 0.045])
  straw = jnp.array([0.25, 0.21, 0.105])
  grass = patterns.mix(green, straw, 0.75 * dryness)
  colours = jnp.stack(
    [
      grass,
      jnp.array([0.105, 0.105, 0.11]),  # asphalt
      jnp.array([0.34, 0.31, 0.28]),  # paving
      jnp.array([0.025, 0.05, 0.055]),  # water
      patterns.mix(
        jnp.array([0.13, 0.17, 0.05]), jnp.array([0.33, 0.26, 0.13]), season
      ),
      jnp.array([0.10, 0.21, 0.06]),  # pitch
      jnp.array([0.33, 0.27, 0.20]),  # gravel
      jnp.array([0.10, 0.42, 0.50]),  # pool
      patterns.mix(grass, jnp.array([0.07, 0.065, 0.03]), 0.6),  # forest floor
    ]
  )  # [9, 3]
  paved = jnp.array([0.27, 0.26, 0.25])
  near = patterns.mix(paved, grass, base[0])
  # The country around: fields in different states.
  u, v = 0.94 * x + 0.34 * y, 0.94 * y - 0.34 * x
  patch = patterns.random(
    jnp.floor(u / 95) + 50, jnp.floor(v / 70) + 50, base[1]
  )
  away = jnp.clip((jnp.maximum(jnp.abs(x), jnp.abs(y)) - 205) / 8, 0.0, 1.0)
  country = patterns.mix(colours[0], colours[4], 0.0)[:, None, None] * (
    0.75 + 0.5 * patch
  ) + patterns.rgb(0.1, 0.06, 0.0) * jnp.maximum(patch - 0.6, 0)
  albedo = patterns.mix(near[:, None, None] + 0 * country, country, away)

  table = jnp.concatenate(
    [areas, colours[areas[:, 8].astype(jnp.int32)]], 1
  )  # [A, 12]
  bend = trace.wave(x / 61) + trace.wave(y / 47) + trace.wave((x - y) / 23)

  def used(rows):  # unused rows come last and are nowhere
    return (rows[:, 0] > sc.NOWHERE_M / 2).sum()

  def paint(i, carry):
    albedo, kind, along, across, inner = carry
    cx, cy, c, s, hx, hy, radius, wobble, code = table[i, :9]
    lx = c * (x - cx) + s * (y - cy)
    ly = c * (y - cy) - s * (x - cx)
    qx, qy = jnp.abs(lx) - hx + radius, jnp.abs(ly) - hy + radius
    out_x, out_y = jnp.maximum(qx, 0), jnp.maximum(qy, 0)
    edge = jnp.sqrt(out_x**2 + out_y**2) - radius
    edge = edge + jnp.minimum(jnp.maximum(qx, qy), 0) + 0.4 * wobble * bend
    share = jnp.clip(0.5 - edge / size, 0.0, 1.0)
    inside = edge < 0
    return (
      patterns.mix(albedo, table[i, 9:][:, None, None], share),
      jnp.where(inside, code, kind),
      jnp.where(inside, lx, along),
      jnp.where(inside, ly, across),
      jnp.where(inside, -edge, inner),
    )

  zero = jnp.zeros_like(x)
  albedo, kind, along, across, inner = jax.lax.fori_loop(
    0, used(areas), paint, (albedo, zero - base[0] * 0, zero, zero, zero)
  )
  kind = jnp.where(
    (kind == layout.GRASS) & (base[0] < 0.5), layout.PAVING, kind
  )

  def is_(code):
    return (kind == code).astype(jnp.float32)

  soft = jnp.clip(1.6 - size / 0.7, 0.0, 1.0)
  rough = is_(layout.GRASS) + is_(layout.FIELD) + is_(layout.FOREST)
  shade = 1 + fine * soft * (0.10 + 0.14 * rough) + coarse * (0.1 + 0.2 * rough)
  rows = patterns.stripes(along / 2.2, 0.5, size / 2.2) - 0.5
  mown = patterns.stripes(along / 10, 0.5, size / 10) - 0.5
  slabs = patterns.stripes(along / 1.6, 0.08, size / 1.6) + patterns.stripes(
    across / 1.6, 0.08, size / 1.6
  )
  shade = (
    shade + 0.35 * rows * is_(layout.FIELD) + 0.18 * mown * is_(layout.PITCH)
  )
  shade = shade - 0.3 * slabs * is_(layout.PAVING)
  albedo = albedo * shade
  # White lines: stalls of car parks, the border and middle of pitches.
  stall = patterns.stripes(along / layout.STALL_M, 0.06, size / layout.STALL_M)
  stall = (
    stall * (patterns.fract((across + 400) / 8) < 0.65) * is_(layout.ASPHALT)
  )

  def line(distance):
    return jnp.clip((0.16 + 0.5 * size - jnp.abs(distance)) / size, 0.0, 1.0)

  ring = jnp.sqrt(along**2 + across**2) - 7.5
  border = line(inner - 1.2) + line(along) + line(ring)
  border = jnp.minimum(border * 0.32 / jnp.maximum(size, 0.32), 1.0)
  white = jnp.maximum(stall, border * is_(layout.PITCH))
  albedo = patterns.mix(albedo, patterns.rgb(0.62, 0.62, 0.6), 0.85 * white)
  wet = jnp.maximum(is_(layout.WATER), is_(layout.POOL))

  def nearest(i, carry):
    first, second, s1, lat1, lanes1, half1 = carry
    x0, y0, ux, uy, length, half, lanes = streets[i, :7]
    rx, ry = x - x0, y - y0
    s = rx * ux + ry * uy
    lat = ry * ux - rx * uy
    over = s - jnp.clip(s, 0.0, length)
    d = jnp.sqrt(lat**2 + over**2) - half
    closer = d < first
    # Pieces of one winding street must not count as a crossing.
    apart = jnp.abs(over) < 1e-3
    second = jnp.where(
      closer, jnp.where(apart, first, second),
      jnp.where(apart, jnp.minimum(second, d), second),
    )  # fmt: skip
    return (
      jnp.where(closer, d, first),
      second,
      jnp.where(closer, s, s1),
      jnp.where(closer, lat, lat1),
      jnp.where(closer, lanes, lanes1),
      jnp.where(closer, half, half1),
    )

  far = jnp.full_like(x, 1e4)
  first, second, s, lat, lanes, half = jax.lax.fori_loop(
    0, used(streets), nearest, (far, far, zero, zero, zero, zero)
  )
  street = jnp.clip(0.5 - first / size, 0.0, 1.0)
  kerb = jnp.clip(0.5 - (first - 1.7) / size, 0.0, 1.0)
  kerb = kerb * (lanes > 0.5)
  marked = (lanes > 1.5) & (second > 1.0)
  dash = (
    line(lat)
    * patterns.stripes(s / 9, 0.5, size / 9)
    * 0.32
    / jnp.maximum(size, 0.32)
  )
  edge = line(jnp.abs(lat) - half + 0.5) * 0.32 / jnp.maximum(size, 0.32)
  zebra = (
    patterns.stripes(lat / 1.1, 0.5, size / 1.1)
    * (second > 0.6)
    * (second < 3.4)
  )
  zebra = zebra * (jnp.abs(lat) < half - 0.7)
  lines = jnp.maximum(jnp.maximum(dash, edge) * marked, 0.9 * zebra)
  lines = jnp.where(lanes > 1.5, lines, 0.0)
  asphalt = patterns.rgb(0.115, 0.115, 0.12) * (
    1 + 0.1 * fine * soft + 0.12 * coarse
  )
  tracks = jnp.abs(jnp.abs(lat) - 0.5 * half) - 0.7
  asphalt = asphalt * (1 - 0.08 * jnp.clip(0.5 - tracks / 0.6, 0.0, 1.0))
  gravel = patterns.rgb(0.33, 0.28, 0.21) * (
    1 + 0.2 * fine * soft + 0.1 * coarse
  )
  surface = jnp.where(lanes > 0.5, asphalt, gravel)
  surface = patterns.mix(surface, patterns.rgb(0.6, 0.6, 0.57), 0.8 * lines)
  walk = patterns.rgb(0.33, 0.32, 0.30) * (1 + 0.08 * fine * soft)
  albedo = patterns.mix(albedo, walk, kerb)
  albedo = patterns.mix(albedo, surface, street)
  gloss = wet * (1 - jnp.maximum(street, kerb))
  return albedo, gloss
