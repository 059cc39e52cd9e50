"""Patterns of surfaces: noise, stripes, random numbers. Pure JAX.

Colours are linear light, [3, T, R]; numbers per ray are [1, T, R] so that both
combine without implicit broadcasting of ranks (T tiles of R pixels).
"""

import jax
import jax.numpy as jnp
import numpy as np

_NOISE_PX = 256


def _noise_texture() -> np.ndarray:
  """[256, 256] float32, smooth, periodic, zero mean, mostly in (-1, 1)."""
  rng = np.random.default_rng(20)
  spectrum = np.fft.rfft2(rng.uniform(-1, 1, (_NOISE_PX, _NOISE_PX)))
  fy = np.fft.fftfreq(_NOISE_PX)[:, None]
  fx = np.fft.rfftfreq(_NOISE_PX)[None]
  smooth = np.exp(-20 * (fx**2 + fy**2)) + 0.6 * np.exp(-400 * (fx**2 + fy**2))
  noise = np.fft.irfft2(spectrum * smooth, s=(_NOISE_PX, _NOISE_PX))
  return (noise / (2 * noise.std())).astype(np.float32)


def noise(x: jax.Array, y: jax.Array) -> jax.Array:
  """Smooth noise with features of about two units."""
  texture = jnp.asarray(_NOISE).reshape(-1)
  x0, y0 = jnp.floor(x), jnp.floor(y)
  fx, fy = x - x0, y - y0
  ix, iy = x0.astype(jnp.int32), y0.astype(jnp.int32)

  def texel(i, j):
    at = (j & (_NOISE_PX - 1)) * _NOISE_PX + (i & (_NOISE_PX - 1))
    return texture.at[at].get(mode='promise_in_bounds')

  low = texel(ix, iy) * (1 - fx) + texel(ix + 1, iy) * fx
  high = texel(ix, iy + 1) * (1 - fx) + texel(ix + 1, iy + 1) * fx
  return low * (1 - fy) + high * fy


def fract(x: jax.Array) -> jax.Array:
  return x - jnp.floor(x)


def random(x: jax.Array, y: jax.Array, z: jax.Array | float) -> jax.Array:
  """A number in [0, 1) for each triple of small whole numbers."""
  a, b, c = fract(x * 0.1031), fract(y * 0.1137), fract(z * 0.0973)
  mixed = a * (b + 33.33) + b * (c + 33.33) + c * (a + 33.33)
  return fract((a + b + 2 * mixed) * (c + mixed))


def stripes(x: jax.Array, duty: jax.Array | float, size: jax.Array):
  """Share of a footprint covered by stripes of period 1 that are `duty` wide.

  x and size (the width of the footprint) are in periods.
  """

  def covered(at):
    whole = jnp.floor(at)
    return whole * duty + jnp.minimum(at - whole, duty)

  size = jnp.maximum(size, 1e-3)
  return (covered(x + 0.5 * size) - covered(x - 0.5 * size)) / size


def mix(a, b, share):
  return a + (b - a) * share


def rgb(r, g, b):
  return jnp.array([r, g, b], jnp.float32)[:, None, None]


_NOISE = _noise_texture()
