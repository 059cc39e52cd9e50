"""Cost of a forward pass against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from cvgl_jax.models import convnext, cost


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_a_matrix_product_costs_one_multiplication_a_term():
  found = cost.forward(lambda a, b: a @ b, shape(3, 5), shape(5, 7))
  assert found.macs == 3 * 5 * 7
  assert found.flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize(('groups', 'macs'), [(1, 6), (2, 3)])
def test_a_convolution_counts_the_channels_of_its_group(groups, macs):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'SAME', feature_group_count=groups,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip

  found = cost.forward(convolve, shape(2, 8, 8, 6), shape(3, 3, 6 // groups, 4))
  assert found.macs == 2 * 4 * 4 * 4 * 9 * macs


def test_loops_calls_branches_and_recomputation_are_counted():
  one = cost.forward(lambda a: a @ a, shape(4, 4)).macs
  power = lambda a: jax.lax.fori_loop(0, 5, lambda _, x: x @ a, a)
  assert cost.forward(jax.jit(power), shape(4, 4)).macs == 5 * one
  remat = jax.checkpoint(lambda a: a @ a)
  assert cost.forward(remat, shape(4, 4)).macs == one
  either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda x: x @ x, lambda x: x, a)
  assert cost.forward(either, shape(4, 4)).macs == one


def test_convnext_tiny_costs_what_is_published():
  """4.46 GMAC at 224 pixels, classifier left out."""
  network = convnext.make('convnext_tiny')
  image = shape(1, 224, 224, 3)
  variables = jax.eval_shape(
    lambda x: network.init(jax.random.key(0), x, train=False), image
  )
  found = cost.forward(
    lambda v, x: network.apply(v, x, train=False), variables, image
  )
  assert found.macs == pytest.approx(4.454e9, rel=2e-3)
  assert 1.0 < found.flops / (2 * found.macs) < 1.3
