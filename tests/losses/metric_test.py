"""Metric losses by name: summed over views, merged, between views."""

import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import contrastive, metric, triplet


def views(seed=0, names=('satellite', 'drone')):
  rng = np.random.default_rng(seed)
  features = {v: jnp.asarray(rng.normal(size=(6, 4)), 'f4') for v in names}
  label = {v: jnp.asarray(rng.integers(0, 3, 6)) for v in names}
  return features, label


def test_a_loss_is_summed_over_views_or_taken_of_all_together():
  features, label = views()
  apart = metric.over_views('triplet', features, label=label)
  expected = sum(
    triplet.multi_similarity_triplet_loss(x, label[v])
    for v, x in features.items()
  )
  np.testing.assert_allclose(apart, expected, rtol=1e-6)
  merged = metric.over_views('triplet', features, label=label, merge=True)
  together = triplet.multi_similarity_triplet_loss(
    jnp.concatenate([features['satellite'], features['drone']]),
    jnp.concatenate([label['satellite'], label['drone']]),
  )
  np.testing.assert_allclose(merged, together, rtol=1e-6)


def test_the_circle_loss_is_divided_by_the_batch_of_one_view():
  features, label = views()
  for merge in (False, True):
    got = metric.over_views(
      'circle', features, label=label, merge=merge, circle_gamma=8.0
    )
    parts = [(features[v], label[v]) for v in features]
    if merge:
      parts = [tuple(map(jnp.concatenate, zip(*parts, strict=True)))]
    expected = sum(contrastive.circle_loss(x, y, gamma=8.0) for x, y in parts)
    np.testing.assert_allclose(got, expected / 6, rtol=1e-6)


def test_views_are_compared_with_the_first():
  features, label = views(names=('drone', 'satellite', 'street'))
  got = metric.against_first(features, place=label['drone'], temperature=0.1)
  expected = sum(
    contrastive.info_nce_loss(
      features['drone'], features[v], temperature=0.1, place=label['drone']
    )
    for v in ('satellite', 'street')
  )
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_only_losses_with_a_weight_are_active_and_names_are_known():
  assert metric.Weights(circle=0.5, lifted=0.0).active() == {'circle': 0.5}
  features, label = views()
  with pytest.raises(ValueError, match="no metric loss 'circel'"):
    metric.over_views('circel', features, label=label)
