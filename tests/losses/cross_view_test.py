"""The weighted (B+1)-tuple loss and the soft-margin triplet loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import contrastive, cross_view
from tests.losses import oracles

LOSSES = {
  'tuple': (cross_view.weighted_tuple_loss, oracles.weighted_tuple),
  'triplet': (cross_view.soft_triplet_loss, oracles.soft_triplet),
}


def pair(seed, batch=6):
  query, _ = oracles.random_batch(seed, batch=batch)
  reference, _ = oracles.random_batch(seed + 50, batch=batch)
  return query, reference


def without_label(loss):
  return lambda query, reference, label, **options: loss(
    query, reference, **options
  )


@functools.cache
def compiled(name, **options):
  return jax.jit(functools.partial(LOSSES[name][0], **options))


@pytest.mark.parametrize('alpha, groups', [(10.0, 1), (20.0, 2), (5.0, 3)])
@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_equals_the_formula(name, alpha, groups):
  loss, oracle = (without_label(f) for f in LOSSES[name])
  for seed in range(5):
    oracles.check_value_and_gradient(
      loss, oracle, list(pair(seed)), None, alpha=alpha, groups=groups
    )


@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_ignores_the_order_of_the_pairs_and_their_lengths(name):
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(1))
  order = np.random.default_rng(0).permutation(6)
  loss = compiled(name)
  np.testing.assert_allclose(
    loss(3 * query[order], 0.1 * reference[order]),
    loss(query, reference),
    rtol=1e-5,
  )


@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_is_the_same_with_the_views_exchanged(name):
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(2))
  loss = compiled(name)
  np.testing.assert_allclose(
    loss(query, reference), loss(reference, query), rtol=1e-6
  )


@pytest.mark.parametrize('name', LOSSES)
def test_a_group_is_every_so_many_th_row(name):
  """As the processes of a torch run take their rows of a batch."""
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(3))
  alone = [compiled(name)(query[g::2], reference[g::2]) for g in range(2)]
  np.testing.assert_allclose(
    LOSSES[name][0](query, reference, groups=2), np.mean(alone), rtol=1e-6
  )


def test_identical_embeddings_cost_what_the_formulas_say():
  x = jnp.ones((8, 4))
  np.testing.assert_allclose(
    cross_view.weighted_tuple_loss(x, x), np.log(8), rtol=1e-6
  )
  np.testing.assert_allclose(
    cross_view.soft_triplet_loss(x, x), np.log(2), rtol=1e-6
  )


def test_two_rows_make_the_two_losses_equal():
  """With one negative the sum over negatives is that negative."""
  query, reference = (jnp.asarray(x[:2], jnp.float32) for x in pair(4))
  np.testing.assert_allclose(
    cross_view.weighted_tuple_loss(query, reference, alpha=7.0),
    cross_view.soft_triplet_loss(query, reference, alpha=7.0),
    rtol=1e-5,
  )


def test_the_tuple_loss_is_info_nce_at_one_over_alpha():
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(5))
  np.testing.assert_allclose(
    cross_view.weighted_tuple_loss(query, reference, alpha=10.0),
    contrastive.info_nce_loss(query, reference, temperature=0.1),
    rtol=1e-6,
  )


@pytest.mark.parametrize('name', LOSSES)
def test_a_steep_loss_neither_overflows_nor_loses_its_gradient(name):
  query = jnp.eye(4)
  reference = jnp.roll(query, 1, axis=0)  # Every pair is wrong.
  value, grad = jax.value_and_grad(LOSSES[name][0])(query, reference, alpha=1e3)
  assert np.isfinite(value) and value > 100
  assert np.isfinite(grad).all() and np.abs(grad).max() > 1


def test_mean_similarities_count_pairs_of_a_group_only():
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(6))
  metrics = cross_view.similarity_metrics(query, reference, groups=3)
  got = [metrics['similarity/positive'], metrics['similarity/negative']]
  u, v = oracles.unit(np.asarray(query)), oracles.unit(np.asarray(reference))
  s = u @ v.T
  pairs = [(i, j) for i in range(6) for j in range(6) if i % 3 == j % 3]
  others = [s[i, j] for i, j in pairs if i != j]
  expected = [np.diagonal(s).mean(), np.mean(others)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_hardest_negative_is_the_most_similar_wrong_reference_of_a_query():
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(6))
  got = cross_view.similarity_metrics(query, reference, groups=3)
  s = oracles.unit(np.asarray(query)) @ oracles.unit(np.asarray(reference)).T
  wrong = lambda i: [j for j in range(6) if i % 3 == j % 3 and i != j]
  expected = np.mean([max(s[i, j] for j in wrong(i)) for i in range(6)])
  np.testing.assert_allclose(got['similarity/hardest'], expected, rtol=1e-5)
  alone = cross_view.similarity_metrics(query[:1], reference[:1])
  assert alone['similarity/hardest'] == -1


@pytest.mark.parametrize('name', LOSSES)
def test_a_batch_without_negatives_is_refused(name):
  x = jnp.ones((4, 3))
  with pytest.raises(ValueError, match='4 in 4 groups has groups without'):
    LOSSES[name][0](x, x, groups=4)
  with pytest.raises(ValueError, match='4 does not split into 3 groups'):
    cross_view.similarity_metrics(x, x, groups=3)


@pytest.mark.parametrize('name', LOSSES)
def test_a_batch_over_eight_devices_gives_the_loss_of_one(name):
  query, reference = (jnp.asarray(x, jnp.float32) for x in pair(7, batch=16))
  axis = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(axis,))
  spec = jax.sharding.PartitionSpec('data')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  loss = compiled(name, groups=2)
  many = loss(*(jax.device_put(x, sharding) for x in (query, reference)))
  np.testing.assert_allclose(many, loss(query, reference), rtol=1e-5)
