"""The depthwise convolution and its gradients, every way it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.models import depthwise

# Batch, height, width, channels, k: parts of rows, odd, prime and tiny maps.
SHAPES = [
  (2, 5, 12, 3, 7),
  (1, 3, 2, 4, 7),
  (2, 1, 1, 2, 7),
  (3, 4, 13, 5, 3),
  (1, 2, 64, 100, 5),
]


def arrays(shape, dtype=np.float64):
  *size, k = shape
  rng = np.random.default_rng(0)
  x, g = (rng.standard_normal(size).astype(dtype) for _ in range(2))
  return x, rng.standard_normal((k, k, 1, size[-1])).astype(dtype), g


def loops(x, kernel):
  """The formula, one position after the other."""
  height, width = x.shape[1:3]
  radius = len(kernel) // 2
  y = np.zeros_like(x)
  for h in range(height):
    for w in range(width):
      for i in range(len(kernel)):
        for j in range(len(kernel)):
          row, column = h + i - radius, w + j - radius
          if 0 <= row < height and 0 <= column < width:
            y[:, h, w] += kernel[i, j, 0] * x[:, row, column]
  return y


WAYS = {
  'chosen': depthwise.convolve,
  'xla': depthwise.convolution,
  'shifted': depthwise.shifted_sum,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('shape', SHAPES)
def test_output_is_that_of_the_formula(shape, way):
  x, kernel, _ = arrays(shape)
  with jax.enable_x64(True):
    y = jax.jit(WAYS[way])(x, kernel)
  assert y.dtype == np.float64
  np.testing.assert_allclose(y, loops(x, kernel), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_are_those_of_the_plain_convolution(shape):
  x, kernel, g = arrays(shape)

  def gradients(function):
    _, pull = jax.vjp(function, x, kernel)
    return pull(g)

  with jax.enable_x64(True):
    found = jax.jit(lambda: gradients(depthwise.convolve))()
    expected = jax.jit(lambda: gradients(depthwise.convolution))()
    shifted = jax.jit(depthwise.shifted_kernel_gradient)(x, kernel, g)
    plain = jax.jit(depthwise.convolution_kernel_gradient)(x, kernel, g)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
  np.testing.assert_allclose(shifted, plain, rtol=1e-10, atol=1e-10)


def test_bfloat16_sums_are_float32():
  x, kernel, g = arrays((2, 16, 32, 8, 7), jnp.bfloat16)
  found = jax.jit(lambda: jax.vjp(depthwise.convolve, x, kernel)[1](g))()
  wide = [a.astype(np.float32) for a in (x, kernel, g)]
  _, pull = jax.vjp(depthwise.convolution, *wide[:2])
  for a, b in zip(found, pull(wide[2]), strict=True):
    assert a.dtype == jnp.bfloat16
    # One rounding to 8 bits.
    np.testing.assert_allclose(
      a.astype(np.float32), b, rtol=2**-7, atol=1e-4 * float(jnp.abs(b).max())
    )


def test_a_batch_on_several_devices_gives_the_same():
  x, kernel, g = arrays((8, 4, 6, 3, 7), np.float32)
  run = jax.jit(lambda x, g: jax.vjp(depthwise.convolve, x, kernel)[1](g))
  mesh = sharding.make_mesh()
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  on_many = run(*(jax.device_put(a, split) for a in (x, g)))
  for a, b in zip(on_many, run(x, g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('platform', 'is_written_out'), [('cpu', True), ('cuda', False)]
)
def test_the_formula_is_written_out_on_cpus_only(platform, is_written_out):
  x, kernel, g = arrays((1, 4, 4, 2, 7), np.float32)
  traced = jax.jit(
    lambda x, k, g: jax.vjp(depthwise.convolve, x, k)[1](g)
  ).trace(x, kernel, g)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.convolution' not in text) == is_written_out
