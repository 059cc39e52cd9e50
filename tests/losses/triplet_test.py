"""The multi-similarity miner and the triplet margin loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import pairs, triplet
from tests.losses import oracles

mine = jax.jit(triplet.multi_similarity_pairs)


@pytest.mark.parametrize('seed', range(5))
def test_miner_keeps_the_pairs_of_the_definition(seed):
  x, label = oracles.random_batch(seed, batch=9, classes=4)
  got = mine(x.astype(np.float32), label)
  for mask, expected in zip(got, oracles.mined_pairs(x, label), strict=True):
    np.testing.assert_array_equal(mask, expected)


def test_miner_skips_easy_pairs():
  x = jnp.array([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]])
  positive, negative = mine(x, jnp.array([0, 0, 1, 1]))
  assert not positive.any() and not negative.any()


@pytest.mark.parametrize('seed', range(5))
def test_mined_triplet_loss_equals_the_formula(seed):
  x, label = oracles.random_batch(seed)
  oracles.check_value_and_gradient(
    triplet.multi_similarity_triplet_loss, oracles.triplet, [x], label
  )


def test_only_violated_triplets_enter_the_mean():
  """Distances 1 (positive), 0.6 and 2 (negatives): the far one is no part."""
  angle = lambda d: 2 * np.arcsin(d / 2)
  angles = np.array([0.0, angle(1.0), -angle(0.6), np.pi])
  x = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
  positive = jnp.zeros((4, 4), bool).at[0, 1].set(True)
  negative = jnp.zeros((4, 4), bool).at[0, 2:].set(True)
  value = jax.jit(triplet.triplet_loss)(x, positive, negative)
  np.testing.assert_allclose(value, 1.0 - 0.6 + 0.3, rtol=1e-5)


def test_the_mined_masks_have_no_gradient():
  x, label = oracles.random_batch(0)
  x = x.astype(np.float32)
  _, (whole,) = oracles.value_and_grad(triplet.multi_similarity_triplet_loss)(
    x, label
  )
  grad = jax.jit(jax.grad(triplet.triplet_loss))(x, *mine(x, label))
  assert np.abs(grad).max() > 0
  np.testing.assert_allclose(whole, grad, rtol=1e-5, atol=1e-7)


def test_the_loss_does_not_depend_on_the_chunk(monkeypatch):
  x, label = oracles.random_batch(0)
  loss = jax.value_and_grad(triplet.multi_similarity_triplet_loss)
  x = x.astype(np.float32)
  whole, grad = jax.jit(lambda x: loss(x, label))(x)
  monkeypatch.setattr(pairs, 'rows_at_once', lambda elements: 3)
  parts, parts_grad = jax.jit(lambda x: loss(x, label))(x)
  np.testing.assert_allclose(parts, whole, rtol=1e-6)
  np.testing.assert_allclose(parts_grad, grad, rtol=1e-4, atol=1e-6)


def test_a_large_batch_needs_little_memory():
  """All triplets of 512 pictures would be 0.5 GB in each array."""
  x, label = jnp.zeros((512, 256)), jnp.arange(512) // 4
  step = jax.jit(jax.value_and_grad(triplet.multi_similarity_triplet_loss))
  memory = step.lower(x, label).compile().memory_analysis()
  if memory is None:
    pytest.skip('this backend reports no memory')
  assert memory.temp_size_in_bytes < 200e6
