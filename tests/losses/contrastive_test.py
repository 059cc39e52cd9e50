"""Circle, contrastive, lifted and InfoNCE losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import contrastive, triplet
from tests.losses import oracles

LABEL_LOSSES = {
  'circle': contrastive.circle_loss,
  'contrastive': contrastive.contrastive_loss,
  'lifted': contrastive.lifted_loss,
  'triplet': triplet.multi_similarity_triplet_loss,
}


@pytest.mark.parametrize('gamma', [8.0, 64.0])
def test_circle_loss_equals_the_formula(gamma):
  loss = jax.jit(functools.partial(contrastive.circle_loss, gamma=gamma))
  for seed in range(5):
    x, label = oracles.random_batch(seed)
    with jax.enable_x64(True):
      got = loss(jnp.asarray(x), label)
    expected = oracles.circle(x, label, gamma=gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('seed', range(5))
def test_contrastive_loss_equals_the_formula(seed):
  x, label = oracles.random_batch(seed)
  oracles.check_value_and_gradient(
    contrastive.contrastive_loss, oracles.contrastive, [x], label
  )


def test_contrastive_margins_act():
  x, label = oracles.random_batch(0)
  margins = {'positive_margin': 0.4, 'negative_margin': 1.3}
  got, _ = oracles.value_and_grad(contrastive.contrastive_loss, **margins)(
    jnp.asarray(x, jnp.float32), label
  )
  expected = oracles.contrastive(x, label, 0.4, 1.3)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_lifted_loss_equals_the_formula(seed):
  x, label = oracles.random_batch(seed)
  oracles.check_value_and_gradient(
    contrastive.lifted_loss, oracles.lifted, [x], label
  )


def test_circle_gradient_holds_alpha_fixed():
  """One positive and one negative pair, the chain rule by hand."""
  angles = np.array([0.0, 0.4, 1.2])
  label = jnp.array([0, 0, 1])
  margin, gamma = 0.25, 2.0

  @jax.jit
  def loss(angles):
    x = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return contrastive.circle_loss(x, label, margin=margin, gamma=gamma)

  s = {(i, j): np.cos(angles[j] - angles[i]) for i, j in ((0, 1), (0, 2))}
  s[1, 2] = np.cos(angles[2] - angles[1])
  negative = {
    k: gamma * max(0, s[k] + margin) * (s[k] - margin) for k in ((0, 2), (1, 2))
  }
  positive = -gamma * (1 + margin - s[0, 1]) * (s[0, 1] - 1 + margin)
  total = np.logaddexp(*negative.values()) + positive
  outer = 1 / (1 + np.exp(-total))
  slope = np.zeros(3)
  for (i, j), weight in [
    ((0, 1), -gamma * (1 + margin - s[0, 1])),
    *(
      (
        k,
        gamma
        * (s[k] + margin)
        * np.exp(negative[k] - np.logaddexp(*negative.values())),
      )
      for k in negative
    ),
  ]:
    d_cos = np.sin(angles[j] - angles[i])  # d cos(b - a) / da
    slope[i] += outer * weight * d_cos
    slope[j] -= outer * weight * d_cos
  np.testing.assert_allclose(jax.grad(loss)(angles), slope, rtol=1e-5)


@pytest.mark.parametrize('name', LABEL_LOSSES)
def test_loss_ignores_batch_order_and_lengths(name):
  x, label = oracles.random_batch(5)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  order = np.random.default_rng(0).permutation(7)
  run = oracles.value_and_grad(LABEL_LOSSES[name])
  value, (grad,) = run(x, label)
  other, (other_grad,) = run(4 * x[order], label[order])
  np.testing.assert_allclose(other, value, rtol=1e-5)
  np.testing.assert_allclose(4 * other_grad, grad[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', LABEL_LOSSES)
@pytest.mark.parametrize(
  'label', [[0] * 7, range(7)], ids=['one class', 'no positives']
)
def test_identical_embeddings_give_finite_values_and_no_gradient(name, label):
  x = np.ones((7, 4), np.float32)
  run = oracles.value_and_grad(LABEL_LOSSES[name])
  value, (grad,) = run(x, np.array(label))
  assert np.isfinite(value)
  np.testing.assert_allclose(grad, np.zeros((7, 4)), atol=1e-5)


@pytest.mark.parametrize('name', ['circle', 'triplet'])
@pytest.mark.parametrize(
  'label', [[0] * 7, range(7)], ids=['no negatives', 'no positives']
)
def test_missing_pairs_give_exactly_zero(name, label):
  x, _ = oracles.random_batch(0)
  value, (grad,) = oracles.value_and_grad(LABEL_LOSSES[name])(
    x.astype(np.float32), np.array(label)
  )
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros((7, 4)))


@pytest.mark.parametrize('name', LABEL_LOSSES)
def test_a_zero_embedding_gives_finite_gradients(name):
  x, label = oracles.random_batch(2)
  x[1] = 0
  run = oracles.value_and_grad(LABEL_LOSSES[name])
  value, (grad,) = run(x.astype(np.float32), label)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize('name', LABEL_LOSSES)
def test_a_batch_over_eight_devices_gives_the_loss_of_one(name):
  x, label = oracles.random_batch(7, batch=16, classes=5)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  axis = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(axis,))
  spec = jax.sharding.PartitionSpec('data')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  step = oracles.value_and_grad(LABEL_LOSSES[name])
  value, (grad,) = step(jax.device_put(x, sharding), label)
  one, (one_grad,) = step(x, label)
  np.testing.assert_allclose(value, one, rtol=1e-5)
  np.testing.assert_allclose(grad, one_grad, rtol=1e-4, atol=1e-6)


@functools.partial(jax.jit, static_argnames=('groups', 'label_smoothing'))
def info_nce(query, reference, place=None, temperature=0.1, **options):
  return contrastive.info_nce_loss(
    query, reference, place=place, temperature=temperature, **options
  )


@pytest.mark.parametrize('smoothing, groups', [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_info_nce_loss_equals_the_formula(groups, smoothing):
  for seed in range(5):
    query, place = oracles.random_batch(seed, batch=6, classes=4)
    reference, _ = oracles.random_batch(seed + 50, batch=6)
    oracles.check_value_and_gradient(
      info_nce,
      oracles.info_nce,
      [query, reference],
      place if seed % 2 else None,
      temperature=0.3,
      groups=groups,
      label_smoothing=smoothing,
    )


def test_info_nce_is_symmetric_in_the_views():
  query, reference = jax.random.normal(jax.random.key(0), (2, 6, 4))
  np.testing.assert_allclose(
    info_nce(query, reference), info_nce(reference, query), rtol=1e-6
  )


def test_info_nce_of_identical_embeddings_is_log_batch():
  x = jnp.ones((6, 4))
  np.testing.assert_allclose(info_nce(x, x), np.log(6), rtol=1e-6)


def test_info_nce_of_distinct_pairs_vanishes_as_temperature_falls():
  x = jnp.eye(4)
  value = info_nce(x, x, temperature=1e-4)
  np.testing.assert_allclose(value, 0.0, atol=1e-6)


def test_info_nce_of_one_place_has_nothing_to_learn():
  query, reference = jax.random.normal(jax.random.key(0), (2, 5, 4))
  value, (grad,) = oracles.value_and_grad(info_nce)(
    query, reference, jnp.zeros(5, int)
  )
  np.testing.assert_allclose(value, 0.0, atol=1e-6)
  np.testing.assert_allclose(grad, np.zeros((5, 4)), atol=1e-6)


def test_info_nce_temperature_can_be_learned():
  query, reference = jax.random.normal(jax.random.key(0), (2, 5, 4))

  def loss(t):
    return info_nce(
      query, reference, temperature=jnp.exp(-t), label_smoothing=0.1
    )

  slope = jax.jit(jax.grad(loss))(2.0)
  assert np.isfinite(slope) and slope != 0


def test_info_nce_groups_are_the_mean_of_separate_batches():
  query, reference = jax.random.normal(jax.random.key(1), (2, 8, 4))
  every_other = (slice(0, 8, 2), slice(1, 8, 2))
  halves = [info_nce(query[s], reference[s]) for s in every_other]
  np.testing.assert_allclose(
    info_nce(query, reference, groups=2), np.mean(halves), rtol=1e-6
  )


def test_info_nce_refuses_uneven_groups():
  x = jnp.ones((6, 4))
  with pytest.raises(ValueError, match='batch of 6 does not split into 4'):
    info_nce(x, x, groups=4)


def test_info_nce_refuses_unequal_shapes():
  with pytest.raises(ValueError, match='two equal shapes'):
    info_nce(jnp.ones((6, 4)), jnp.ones((5, 4)))
