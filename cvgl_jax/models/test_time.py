"""Test-time views of a picture: mirrored, and at several scales.

Source: layumi/University1652-Baseline `test.py` (`extract_feature`), whose
resizing is torch's `interpolate(scale_factor=..., mode='bilinear',
align_corners=False)`.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def feature_sum(
  embed_fn: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  *,
  flip: bool = True,
  scales: Sequence[float] = (1.0,),
  cumulative: bool = True,
) -> jax.Array:
  """The sum of a picture's features over its test-time views.

  The embedding is this sum scaled to unit norm.

  Args:
    embed_fn: [B, H', W', 3] -> [B, D] or [B, P, D], features before the
      normalisation of the sum.
    images: [B, H, W, 3], uint8 or floating point.
    flip: add the mirrored pictures.
    scales: factors of the area as the reference's `--ms` has them; each side is
      resized by the square root. A factor of 1 leaves the picture alone.
    cumulative: reference-bug: every scale resizes the result of the one before,
      so (1, 1.1, 1.2) means 1, sqrt(1.1) and sqrt(1.1) sqrt(1.2). False resizes
      the original every time.

  Returns:
    What `embed_fn` returns, summed.

  Raises:
    ValueError: no scale, or one that is not positive.
  """
  if not scales or min(scales) <= 0:
    raise ValueError(f'scales: got {tuple(scales)}, expected positive numbers')
  total = 0
  for mirrored in (False, True) if flip else (False,):
    original = images[:, :, ::-1] if mirrored else images
    view = original
    for scale in scales:
      factor = math.sqrt(scale)
      start = view if cumulative else original
      view = start if factor == 1 else resize_scale_factor(start, factor)
      total = total + embed_fn(view)
  return total


def resize_scale_factor(images: jax.Array, factor: float) -> jax.Array:
  """Bilinear resizing by a factor, without antialiasing, as torch does it.

  The result has floor(n * factor) rows (columns); row i is taken at
  (i + 0.5) / factor - 0.5 of the original, with the factor as given and not the
  ratio of the sizes. An axis whose size does not change is copied.

  Args:
    images: [B, H, W, C], uint8 or floating point.
    factor: of both sides.

  Returns:
    [B, floor(H factor), floor(W factor), C], float32 at least.

  Raises:
    ValueError: nothing would be left.
  """
  images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  for axis in (1, 2):
    size = images.shape[axis]
    new_size = math.floor(size * factor)
    if new_size < 1:
      raise ValueError(
        f'scale factor {factor}: leaves nothing of pictures of '
        f'{images.shape[1]}x{images.shape[2]}'
      )
    if new_size == size:
      continue
    at = np.maximum((np.arange(new_size) + 0.5) / factor - 0.5, 0)
    low = np.minimum(np.floor(at).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    shape = (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1)
    weight = (at - low).reshape(shape).astype(images.dtype)
    images = (
      jnp.take(images, low, axis=axis) * (1 - weight)
      + jnp.take(images, high, axis=axis) * weight
    )
  return images
