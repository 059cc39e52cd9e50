"""The moving average of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.optim import ema


def test_average_equals_the_formula_over_many_updates():
  rng = np.random.default_rng(0)
  values = rng.standard_normal((20, 3))
  average, expected = {'w': jnp.zeros(3)}, np.zeros(3)
  for value in values:
    average = ema.update(average, {'w': jnp.asarray(value)}, decay=0.9)
    expected = 0.9 * expected + 0.1 * value
  np.testing.assert_allclose(average['w'], expected, rtol=1e-5)


@pytest.mark.parametrize('decay, expected', [(0.0, 5.0), (1.0, 2.0)])
def test_the_ends_of_the_decay(decay, expected):
  got = ema.update({'w': jnp.array(2.0)}, {'w': jnp.array(5.0)}, decay=decay)
  assert got['w'] == expected


def test_a_float32_average_of_bfloat16_parameters_stays_float32():
  average = {'w': jnp.ones(2)}
  new = {'w': jnp.zeros(2, jnp.bfloat16)}
  got = jax.jit(lambda a, b: ema.update(a, b, decay=0.999))(average, new)
  assert got['w'].dtype == jnp.float32
  np.testing.assert_allclose(got['w'], 0.999, rtol=1e-6)
