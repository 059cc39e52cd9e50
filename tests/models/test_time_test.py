"""Test-time views: torch's resizing and the reference's sums."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import test_time


def oracle(x, factor):
  """Bilinear with the given factor, pixel by pixel, one picture [H, W]."""
  height, width = (math.floor(n * factor) for n in x.shape)

  def sources(new, old):
    if new == old:
      return [(i, i, 0.0) for i in range(new)]
    result = []
    for i in range(new):
      at = max((i + 0.5) / factor - 0.5, 0.0)
      low = min(int(at), old - 1)
      result.append((low, min(low + 1, old - 1), at - low))
    return result

  y = np.zeros((height, width))
  for i, (a, b, s) in enumerate(sources(height, x.shape[0])):
    for j, (c, d, t) in enumerate(sources(width, x.shape[1])):
      top = (1 - t) * x[a, c] + t * x[a, d]
      bottom = (1 - t) * x[b, c] + t * x[b, d]
      y[i, j] = (1 - s) * top + s * bottom
  return y


@pytest.mark.parametrize('factor', [0.5, 0.73, 1.02, 1.1, 2.0])
def test_resizing_equals_the_loop(factor):
  x = np.random.default_rng(0).uniform(0, 255, (11, 14))
  y = test_time.resize_scale_factor(
    jnp.asarray(x, jnp.float32)[None, :, :, None], factor
  )
  np.testing.assert_allclose(y[0, :, :, 0], oracle(x, factor), rtol=1e-4)


def test_a_factor_that_leaves_nothing_is_refused():
  with pytest.raises(ValueError, match='leaves nothing'):
    test_time.resize_scale_factor(jnp.ones((1, 4, 4, 3)), 0.1)


def first_moments(x):
  """Distinguishes a picture from its mirror image and its size."""
  column = jnp.arange(x.shape[2], dtype=jnp.float32)[None, None, :, None]
  return (x * column).sum((1, 2))


def test_flip_adds_the_mirrored_picture():
  x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 3)), 'f4')
  both = test_time.feature_sum(first_moments, x)
  expected = first_moments(x) + first_moments(x[:, :, ::-1])
  np.testing.assert_allclose(both, expected, rtol=1e-6)
  one = test_time.feature_sum(first_moments, x, flip=False)
  np.testing.assert_array_equal(one, first_moments(x))


def test_scales_are_cumulative_unless_told_otherwise():
  x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, 9, 9, 3)), 'f4')
  seen = []

  def embed(x):
    seen.append(x.shape[1])
    return x.mean((1, 2))

  test_time.feature_sum(embed, x, flip=False, scales=(1.0, 2.0, 4.0))
  assert seen == [9, 12, 24]
  seen.clear()
  test_time.feature_sum(
    embed, x, flip=True, scales=(1.0, 2.0, 4.0), cumulative=False
  )
  assert seen == [9, 12, 18, 9, 12, 18]


@pytest.mark.parametrize('scales', [(), (1.0, 0.0), (-1.0,)])
def test_bad_scales_are_refused(scales):
  with pytest.raises(ValueError, match='expected positive'):
    test_time.feature_sum(first_moments, jnp.ones((1, 4, 4, 3)), scales=scales)
