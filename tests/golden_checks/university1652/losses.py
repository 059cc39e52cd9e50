"""Losses against the numbers of the published code, value and gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.losses import classification, contrastive, triplet


def check_instance(case):
  views = sorted(case.prefix('in/logits'), key=int)
  logits = {v: jnp.asarray(case[f'in/logits{v}']) for v in views}
  label = {v: jnp.asarray(case[f'in/labels{v}']) for v in views}

  def total(names, **options):
    return lambda logits: classification.instance_loss(
      {v: logits[v] for v in names}, label, **options
    )

  value, grads = jax.value_and_grad(total(views))(logits)
  _close(value, case.scalar('out/loss'), 1e-6)
  for v in views:
    _close(grads[v], case[f'out/grad_logits{v}'], 1e-6)
  merged, grads = jax.value_and_grad(total(views, merge=True))(logits)
  _close(merged, case.scalar('out/loss_merge'), 1e-6)
  for v in views:
    _close(grads[v], case[f'out/grad_merge_logits{v}'], 1e-6)
  main = views[:3]
  _close(total(main)(logits), case.scalar('out/loss3'), 1e-6)
  no_street = total(main, weight={'2': 0.0})
  _close(no_street(logits), case.scalar('out/loss_no_street'), 1e-6)


def check_circle(case):
  gamma = _argument(case, 'gamma', _gamma_of_name(case.stem))
  margin = _argument(case, 'm', _argument(case, 'margin', 0.25))

  def loss(x, label):
    value = contrastive.circle_loss(x, label, margin=margin, gamma=gamma)
    return value / x.shape[0]

  if case.scalar('out/loss') == 0:
    tolerance = 0.0
  else:
    tolerance = 1e-4 if gamma > 32 else 1e-5
  _check_feature_loss(case, loss, tolerance)


def check_triplet(case):
  x, label = jnp.asarray(case['in/x']), jnp.asarray(case['in/labels'])
  margin = _argument(case, 'margin', 0.3)
  epsilon = _argument(case, 'epsilon', 0.1)
  if 'in/expected_pos_pair_mask' in case:
    kept = triplet.multi_similarity_pairs(x, label, epsilon=epsilon)
    for name, mask in zip(('pos', 'neg'), kept, strict=True):
      expected = case[f'in/expected_{name}_pair_mask'] > 0
      np.testing.assert_array_equal(mask, expected)

  def loss(x, label):
    return triplet.multi_similarity_triplet_loss(
      x, label, margin=margin, epsilon=epsilon
    )

  _check_feature_loss(case, loss, 1e-5)


def check_contrastive(case):
  _check_feature_loss(case, contrastive.contrastive_loss, 1e-5)


def check_lifted(case):
  _check_feature_loss(case, contrastive.lifted_loss, 1e-5)


def check_arcface(case):
  _check_prototype_loss(case, classification.arcface_loss)


def check_cosface(case):
  _check_prototype_loss(case, classification.cosface_loss)


def check_sphere(case):
  _check_prototype_loss(case, classification.sphere_loss)


def _check_feature_loss(case, loss, tolerance):
  label = jnp.asarray(case['in/labels'])
  value, grad = jax.value_and_grad(loss)(jnp.asarray(case['in/x']), label)
  _close(value, case.scalar('out/loss'), tolerance)
  _close(grad, case['out/grad_x'], tolerance)


def _check_prototype_loss(case, loss):
  label = jnp.asarray(case['in/labels'])
  value, (grad_x, grad_w) = jax.value_and_grad(
    lambda x, w: loss(x, label, w), argnums=(0, 1)
  )(jnp.asarray(case['in/x']), jnp.asarray(case['param/W']))
  _close(value, case.scalar('out/loss'), 1e-5)
  _close(grad_x, case['out/grad_x'], 1e-5)
  _close(grad_w, case['out/grad_W'], 1e-5)


def _argument(case, name, default):
  key = f'in/{name}'
  return case.scalar(key) if key in case else default


def _gamma_of_name(stem):
  """loss_circle_g64 -> 64; the baseline's 32 where the name says nothing."""
  found = re.search(r'_g(?:amma)?(\d+(?:\.\d+)?)', stem)
  return float(found[1]) if found else 32.0


def _close(got, expected, tolerance):
  """max |difference| <= tolerance * max |expected|, as the README measures."""
  assert np.all(np.isfinite(got))
  scale = np.max(np.abs(expected))
  np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


CHECKS = {
  'loss_instance': check_instance,
  'loss_circle': check_circle,
  'loss_triplet': check_triplet,
  'loss_contrast': check_contrastive,
  'loss_lifted': check_lifted,
  'loss_arcface': check_arcface,
  'loss_cosface': check_cosface,
  'loss_sphere': check_sphere,
}
