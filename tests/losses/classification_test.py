"""Cross entropy, instance loss and the prototype losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import classification
from tests.losses import oracles

PROTOTYPE_LOSSES = {
  'arcface': classification.arcface_loss,
  'cosface': classification.cosface_loss,
  'sphere': classification.sphere_loss,
}


def prototype_loss(x, w, label, kind):
  return PROTOTYPE_LOSSES[kind](x, label, w)


@pytest.mark.parametrize('seed', range(5))
def test_cross_entropy_equals_the_formula(seed):
  logits, label = oracles.random_batch(seed, dim=3)
  oracles.check_value_and_gradient(
    classification.cross_entropy, oracles.ce, [logits], label
  )


def test_cross_entropy_of_equal_logits_is_log_of_the_classes():
  value = classification.cross_entropy(jnp.zeros((2, 8)), jnp.array([0, 5]))
  np.testing.assert_allclose(value, np.log(8), rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
  logits = jnp.array([[1e30, -1e30], [1e30, 0.0]])
  value, grad = jax.value_and_grad(classification.cross_entropy)(
    logits, jnp.array([0, 0])
  )
  assert value == 0
  assert np.isfinite(grad).all()


def test_label_smoothing_mixes_in_the_mean_over_all_classes():
  logits, label = oracles.random_batch(3, dim=3)
  got = classification.cross_entropy(
    jnp.asarray(logits, jnp.float32), jnp.asarray(label), label_smoothing=0.1
  )
  every = np.mean([oracles.ce(logits, np.full(7, k)) for k in range(3)])
  expected = 0.9 * oracles.ce(logits, label) + 0.1 * every
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cross_entropy_of_bfloat16_logits_is_float32():
  logits = jnp.ones((2, 3), jnp.bfloat16)
  value = classification.cross_entropy(logits, jnp.array([0, 1]))
  assert value.dtype == jnp.float32


def two_views():
  logits = {
    'satellite': jnp.array([[1.0, 2.0], [0.0, 1.0]]),
    'street': jnp.array([[3.0, 0.0]]),
  }
  label = {'satellite': jnp.array([0, 1]), 'street': jnp.array([1])}
  return logits, label


def test_instance_loss_adds_the_views():
  logits, label = two_views()
  expected = sum(
    classification.cross_entropy(logits[v], label[v]) for v in logits
  )
  np.testing.assert_allclose(
    classification.instance_loss(logits, label), expected, rtol=1e-6
  )


def test_merged_instance_loss_is_four_times_the_joint_mean():
  logits, label = two_views()
  joint = classification.cross_entropy(
    jnp.concatenate([logits['satellite'], logits['street']]),
    jnp.array([0, 1, 1]),
  )
  got = classification.instance_loss(logits, label, merge=True)
  np.testing.assert_allclose(got, 4 * joint, rtol=1e-6)


def test_weight_zero_gives_zero_gradients_not_missing_ones():
  logits, label = two_views()
  grads = jax.grad(
    lambda z: classification.instance_loss(z, label, weight={'street': 0.0})
  )(logits)
  np.testing.assert_array_equal(grads['street'], np.zeros((1, 2)))
  assert np.abs(grads['satellite']).max() > 0


def test_a_weight_for_an_unknown_view_is_an_error():
  logits, label = two_views()
  with pytest.raises(ValueError, match=r"\['dron'\], there are \['satellite'"):
    classification.instance_loss(logits, label, weight={'dron': 1.0})


@pytest.mark.parametrize('kind', PROTOTYPE_LOSSES)
@pytest.mark.parametrize('seed', range(5))
def test_prototype_loss_equals_the_formula(kind, seed):
  x, label = oracles.random_batch(seed)
  w = np.random.default_rng(seed + 100).standard_normal((4, 3))
  oracles.check_value_and_gradient(
    prototype_loss, oracles.margin_softmax, [x, w], label, kind=kind
  )


@pytest.mark.parametrize('kind', PROTOTYPE_LOSSES)
def test_prototype_loss_is_finite_at_the_ends_of_the_cosine(kind):
  w = np.eye(4, 3, dtype=np.float32)
  x = np.stack([w[:, 0], -w[:, 0], w[:, 1], *np.zeros((4, 4), np.float32)])
  value, grads = oracles.value_and_grad(prototype_loss, 2, kind=kind)(
    x, w, np.zeros(7, int)
  )
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize('kind', PROTOTYPE_LOSSES)
def test_prototype_loss_ignores_batch_order_and_lengths(kind):
  x, label = oracles.random_batch(1)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  w = jax.random.normal(jax.random.key(0), (4, 3))
  order = np.random.default_rng(0).permutation(7)
  np.testing.assert_allclose(
    PROTOTYPE_LOSSES[kind](5 * x[order], label[order], 0.1 * w),
    PROTOTYPE_LOSSES[kind](x, label, w),
    rtol=1e-5,
  )


def test_without_margin_the_prototype_losses_agree():
  x, label = oracles.random_batch(2)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  w = jax.random.normal(jax.random.key(0), (4, 3))
  arcface = classification.arcface_loss(x, label, w, margin_deg=0.0, scale=8.0)
  cosface = classification.cosface_loss(x, label, w, margin=0.0, scale=8.0)
  np.testing.assert_allclose(arcface, cosface, rtol=1e-5)


def test_sphere_margin_one_is_the_plain_softmax():
  """m = 1: k = 0 for angles below pi, the plain softmax of the cosines."""
  x, label = oracles.random_batch(2)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  w = jax.random.normal(jax.random.key(0), (4, 3))
  plain = classification.cosface_loss(x, label, w, margin=0.0, scale=1.0)
  np.testing.assert_allclose(
    classification.sphere_loss(x, label, w, margin=1), plain, rtol=1e-5
  )


@pytest.mark.parametrize('kind', PROTOTYPE_LOSSES)
def test_a_larger_margin_costs_more(kind):
  option = {'arcface': 'margin_deg', 'cosface': 'margin', 'sphere': 'margin'}
  values = {'arcface': (5, 20), 'cosface': (0.1, 0.3), 'sphere': (2, 4)}
  x, label = oracles.random_batch(4)
  x, label = jnp.asarray(x, jnp.float32), jnp.asarray(label)
  w = jax.random.normal(jax.random.key(0), (4, 3))
  small, large = (
    functools.partial(PROTOTYPE_LOSSES[kind], **{option[kind]: v})(x, label, w)
    for v in values[kind]
  )
  assert large > small


def test_prototypes_of_the_wrong_width_are_an_error():
  with pytest.raises(ValueError, match=r'\[B, D\] and \[D, K\]'):
    classification.cosface_loss(
      jnp.ones((2, 4)), jnp.array([0, 1]), jnp.ones((3, 4))
    )


def test_sphere_margin_must_be_whole():
  with pytest.raises(ValueError, match='expected 1, 2, 3'):
    classification.sphere_loss(
      jnp.ones((2, 4)), jnp.array([0, 1]), jnp.ones((4, 3)), margin=2.5
    )
