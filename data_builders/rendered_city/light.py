"""Shadows and the open sky, from a height map. Pure JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from data_builders.rendered_city import scene as sc

_CELL_M = 2 * sc.HEIGHT_MAP_HALF_M / sc.HEIGHT_MAP_PX
_LEVELS = 7  # shadows of up to 2^7 cells


def shadow_map(heights: jax.Array, sun: jax.Array) -> jax.Array:
  """Height up to which each point of the ground lies in the shadow.

  That is max over k >= 1 of heights(p + k step) - k drop, by doubling k.

  Args:
    heights: [N, N] metres above the terrain, row 0 in the south.
    sun: [3] unit vector towards the sun.

  Returns:
    [N, N] float32 metres above the terrain.
  """
  n = heights.shape[0]
  # The longer part of a step is one cell; the sun may stand in the zenith.
  longest = jnp.maximum(jnp.maximum(jnp.abs(sun[0]), jnp.abs(sun[1])), 1e-3)
  step = jnp.stack([sun[1], sun[0]]) / longest  # rows, columns
  drop = sun[2] / longest * _CELL_M

  def shifted(x, offset):
    margin = 2 ** (_LEVELS - 1) + 2
    padded = jnp.pad(x, margin)
    whole = jnp.floor(offset)
    part = offset - whole
    at = margin + whole.astype(jnp.int32)

    def cut(i, j):
      return jax.lax.dynamic_slice(padded, (at[0] + i, at[1] + j), (n, n))

    low = cut(0, 0) * (1 - part[1]) + cut(0, 1) * part[1]
    high = cut(1, 0) * (1 - part[1]) + cut(1, 1) * part[1]
    return low * (1 - part[0]) + high * part[0]

  shadow = shifted(heights, step) - drop

  def double(level, shadow):
    k = 2.0**level
    return jnp.maximum(shadow, shifted(shadow, k * step) - k * drop)

  # A loop, not Python's: XLA would fuse the levels and repeat their work.
  return jax.lax.fori_loop(0, _LEVELS - 1, double, shadow)


def lookup(layer: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Bilinear value of a [N, N] layer at x, y metres; 0 outside."""
  n = layer.shape[0]
  u = (x + sc.HEIGHT_MAP_HALF_M) / _CELL_M - 0.5
  v = (y + sc.HEIGHT_MAP_HALF_M) / _CELL_M - 0.5
  inside = (u > 0) & (u < n - 1) & (v > 0) & (v < n - 1)
  u, v = jnp.clip(u, 0, n - 1.001), jnp.clip(v, 0, n - 1.001)
  u0, v0 = jnp.floor(u), jnp.floor(v)
  fu, fv = u - u0, v - v0
  at = v0.astype(jnp.int32) * n + u0.astype(jnp.int32)
  flat = layer.reshape(-1)

  def texel(offset):
    return flat.at[at + offset].get(mode='clip')

  low = texel(0) * (1 - fu) + texel(1) * fu
  high = texel(n) * (1 - fu) + texel(n + 1) * fu
  return jnp.where(inside, low * (1 - fv) + high * fv, 0.0)


def sky(
  dx: jax.Array,
  dy: jax.Array,
  dz: jax.Array,
  cloud: jax.Array,
  *,
  sun: jax.Array,
  sun_colour: jax.Array,
  sky_colour: jax.Array,
  haze_colour: jax.Array,
) -> jax.Array:
  """[3, T, R] radiance of the sky in a direction [1, T, R]; cloud [1, T, R] is noise."""
  up = jnp.clip(dz, 0.0, 1.0)
  zenith = sky_colour * np.array([0.55, 0.75, 1.15], np.float32)
  share = jnp.sqrt(up)
  radiance = (
    haze_colour[:, None, None] * (1 - share) + zenith[:, None, None] * share
  )
  cover = jnp.clip(0.5 + 1.3 * cloud, 0.0, 1.0) * jnp.clip(5 * up, 0.0, 0.75)
  radiance = radiance + (0.95 - radiance) * cover
  toward = jnp.clip(dx * sun[0] + dy * sun[1] + dz * sun[2], 0.0, 1.0)
  glow = toward**2
  glow = glow * glow
  glow = 0.15 * glow + 0.5 * glow**16
  return radiance + glow * sun_colour[:, None, None] * 0.4
