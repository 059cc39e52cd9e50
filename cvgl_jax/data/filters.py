"""Filters of up to 7 x 7 pixels, another one for each picture, on the device.

Source: albumentations 1.3 `AdvancedBlur`, `Sharpen`; OpenCV `filter2D`.
"""

import jax
import jax.numpy as jnp
import numpy as np

RADIUS = 3  # pixels; kernels are [7, 7]


def blur_kernel(
  size: jax.Array,
  *,
  sigma: jax.Array,
  angle: jax.Array,
  beta: jax.Array,
  noise: jax.Array,
) -> jax.Array:
  """A generalised Gaussian of any direction, with noise.

  k(g) ~ exp(-0.5 (g^T S^-1 g)^beta) noise(g) on the pixels of a square, sum 1;
  S = R(angle) diag(sigma^2) R(angle)^T, g = (x, y).

  Args:
    size: side of the square in pixels: 3, 5 or 7.
    sigma: [2], in pixels.
    angle: in radians.
    beta: shape; 1 is a Gaussian.
    noise: [7, 7] factors.

  Returns:
    float32 [7, 7], zero outside the square.
  """
  at = jnp.arange(-RADIUS, RADIUS + 1, dtype=jnp.float32)
  x, y = at[None, :], at[:, None]
  along = (x * jnp.cos(angle) + y * jnp.sin(angle)) / sigma[0]
  across = (y * jnp.cos(angle) - x * jnp.sin(angle)) / sigma[1]
  kernel = jnp.exp(-0.5 * (along**2 + across**2) ** beta) * noise
  inside = jnp.maximum(jnp.abs(x), jnp.abs(y)) <= (size - 1) / 2
  kernel = jnp.where(inside, kernel, 0.0)
  return kernel / kernel.sum()


def sharpen_kernel(alpha: jax.Array, lightness: jax.Array) -> jax.Array:
  """(1 - alpha) identity + alpha [[-1,-1,-1], [-1, 8 + lightness, -1], ...].

  Args:
    alpha: visibility of the sharpened picture.
    lightness: of it; 1 keeps the brightness of an even surface.

  Returns:
    float32 [7, 7], zero outside the 3 x 3 in the middle.
  """
  ring = np.zeros((2 * RADIUS + 1,) * 2, np.float32)
  ring[RADIUS - 1 : RADIUS + 2, RADIUS - 1 : RADIUS + 2] = -1
  ring[RADIUS, RADIUS] = 0
  centre = (1 - alpha) + alpha * (8 + lightness)
  return alpha * ring + centre * identity_kernel()


def filter_picture(image: jax.Array, kernel: jax.Array) -> jax.Array:
  """Correlation with a kernel, edges mirrored about the outer pixels, clipped.

  Args:
    image: float32 [H, W, 3], more than 3 rows and columns.
    kernel: float32 [7, 7].

  Returns:
    float32 [H, W, 3] in 0 ... 255.
  """
  height, width, _ = image.shape
  edges = ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0))
  padded = jnp.pad(image, edges, mode='reflect')
  # Written out: one loop over the picture for the compiler, where a convolution
  # with a kernel for each picture is slow on every platform.
  total = 0
  for row in range(2 * RADIUS + 1):
    for column in range(2 * RADIUS + 1):
      part = padded[row : row + height, column : column + width]
      total = total + kernel[row, column] * part
  return jnp.clip(total, 0, 255)


def identity_kernel() -> np.ndarray:
  """Leaves a picture as it is, float32 [7, 7]."""
  kernel = np.zeros((2 * RADIUS + 1,) * 2, np.float32)
  kernel[RADIUS, RADIUS] = 1
  return kernel
