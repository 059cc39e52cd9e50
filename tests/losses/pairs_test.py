"""Unit vectors, distances and masked sums, above all where they are singular."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import pairs

distance = jax.jit(pairs.distance)
l2_normalize = jax.jit(pairs.l2_normalize)


@jax.jit
def row_logsumexp(x, mask):
  return pairs.masked_logsumexp(x, mask, axis=-1)


def gradient_of_sum(function, x, *rest):
  return jax.jit(jax.grad(lambda x: jnp.sum(function(x, *rest))))(x)


@pytest.mark.parametrize('seed', range(5))
def test_distances_are_those_of_the_unit_vectors(seed):
  x = np.random.default_rng(seed).standard_normal((6, 5)).astype(np.float32)
  z = x / np.linalg.norm(x, axis=1, keepdims=True)
  expected = [[np.linalg.norm(a - b) for b in z] for a in z]
  np.testing.assert_allclose(distance(x), expected, rtol=1e-6, atol=1e-6)


def test_a_small_distance_keeps_its_digits():
  a = np.array([1.0, 0.0], np.float32)
  x = jnp.stack([a, a + np.array([0.0, 1e-5], np.float32)])
  np.testing.assert_allclose(distance(x)[0, 1], 1e-5, rtol=1e-4)


def test_distance_gradient_is_zero_between_equal_rows():
  x = jnp.ones((3, 4))
  grad = gradient_of_sum(distance, x)
  np.testing.assert_array_equal(grad, np.zeros((3, 4)))


def test_zero_vector_stays_zero_with_zero_gradient():
  x = jnp.zeros((2, 3))
  np.testing.assert_array_equal(l2_normalize(x), np.zeros((2, 3)))
  np.testing.assert_array_equal(
    gradient_of_sum(l2_normalize, x), np.zeros((2, 3))
  )


@pytest.mark.parametrize('size', [1e-30, 1e-3, 1.0, 1e30])
def test_normalisation_does_not_depend_on_the_length(size):
  x = jnp.array([[3.0, -4.0]]) * size
  np.testing.assert_allclose(l2_normalize(x), [[0.6, -0.8]], rtol=1e-6)


def test_normalisation_of_bfloat16_is_float32():
  assert l2_normalize(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_masks_leave_out_the_diagonal():
  same, different = pairs.masks(jnp.array([4, 4, 1]))
  np.testing.assert_array_equal(same, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(different, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])


def test_masked_logsumexp_ignores_masked_entries():
  x = jnp.array([[1.0, 2.0, jnp.inf], [3.0, jnp.nan, 4.0]])
  mask = jnp.array([[True, True, False], [True, False, True]])
  value, present = row_logsumexp(x, mask)
  np.testing.assert_allclose(value, np.logaddexp([1.0, 3.0], [2.0, 4.0]))
  assert present.all()
  grad = gradient_of_sum(lambda x: row_logsumexp(x, mask)[0], x)
  assert np.isfinite(grad).all()
  assert grad[0, 2] == 0 and grad[1, 1] == 0


def test_masked_logsumexp_of_an_empty_set_is_zero_without_gradient():
  x = jnp.array([1.0, 2.0])
  none = jnp.zeros(2, bool)
  value, present = row_logsumexp(x, none)
  grad = gradient_of_sum(lambda x: row_logsumexp(x, none)[0], x)
  assert value == 0 and not present
  np.testing.assert_array_equal(grad, [0, 0])


@pytest.mark.parametrize('offset', [-2000.0, 2000.0])
def test_masked_logsumexp_survives_large_numbers(offset):
  x = jnp.array([0.0, 1.0]) + offset
  value, _ = row_logsumexp(x, jnp.ones(2, bool))
  np.testing.assert_allclose(value, offset + np.logaddexp(0, 1), rtol=1e-6)


def test_distances_do_not_depend_on_the_chunk(monkeypatch):
  x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
  weight = np.random.default_rng(1).standard_normal((7, 7)).astype(np.float32)

  def loss(x):
    distance = pairs.distance(x)
    return jnp.sum(distance * weight), distance

  run = lambda: jax.value_and_grad(loss, has_aux=True)(x)
  (_, whole), grad = run()
  monkeypatch.setattr(pairs, 'rows_at_once', lambda elements: 2)
  (_, parts), parts_grad = run()
  np.testing.assert_allclose(parts, whole, rtol=1e-6)
  np.testing.assert_allclose(parts_grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('elements, rows', [(1, 2**22), (2**21, 2), (2**30, 1)])
def test_chunks_hold_a_bounded_number_of_elements(elements, rows):
  assert pairs.rows_at_once(elements) == rows
