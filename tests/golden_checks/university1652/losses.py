"""Losses against the numbers of the published code, value and gradient."""

import functools
import re

import jax
import jax.numpy as jnp

from cvgl_jax.losses import classification, contrastive, triplet


def check_instance(case):
  views = [key.removeprefix('in/logits') for key in case.keys('in/logits')]
  views.sort(key=int)  # 1 satellite, 2 street, 3 drone, 4 google
  logits = {v: jnp.asarray(case[f'in/logits{v}']) for v in views}
  label = {v: jnp.asarray(case[f'in/labels{v}']) for v in views}

  def total(names, **options):
    return lambda logits: classification.instance_loss(
      {v: logits[v] for v in names}, label, **options
    )

  value, grads = jax.value_and_grad(total(views))(logits)
  case.close('out/loss', value, rtol=1e-6)
  for v in views:
    case.close(f'out/grad_logits{v}', grads[v], rtol=1e-6)
  merged, grads = jax.value_and_grad(total(views, merge=True))(logits)
  case.close('out/loss_merge', merged, rtol=1e-6)
  for v in views:
    case.close(f'out/grad_merge_logits{v}', grads[v], rtol=1e-6)
  main = views[:3]
  case.close('out/loss3', total(main)(logits), rtol=1e-6)
  no_street = total(main, weight={'2': 0.0})
  case.close('out/loss_no_street', no_street(logits), rtol=1e-6)


def check_circle(case):
  gamma = case.argument('gamma', _gamma_of_name(case.stem))
  margin = case.argument('m', case.argument('margin', 0.25))

  def loss(x, label):
    value = contrastive.circle_loss(x, label, margin=margin, gamma=gamma)
    return value / x.shape[0]

  if case.scalar('out/loss') == 0:
    rtol = 0.0
  else:
    rtol = 1e-4 if gamma >= 64 else 1e-5
  check_feature_loss(case, loss, rtol=rtol)


def check_triplet(case):
  x, label = jnp.asarray(case['in/x']), jnp.asarray(case['in/labels'])
  margin = case.argument('margin', 0.3)
  epsilon = case.argument('epsilon', 0.1)
  kept = triplet.multi_similarity_pairs(x, label, epsilon=epsilon)
  for name, mask in zip(('pos', 'neg'), kept, strict=True):
    key = f'in/expected_{name}_pair_mask'
    if key in case:
      case.equal(key, mask)

  def loss(x, label):
    return triplet.multi_similarity_triplet_loss(
      x, label, margin=margin, epsilon=epsilon
    )

  check_feature_loss(case, loss)


def check_contrastive(case):
  check_feature_loss(case, margins(case, contrastive.contrastive_loss))


def check_lifted(case):
  check_feature_loss(case, margins(case, contrastive.lifted_loss))


def check_arcface(case):
  margin_deg = case.argument('margin', 28.6)
  scale = case.argument('scale', 64.0)
  check_prototype_loss(
    case, classification.arcface_loss, margin_deg=margin_deg, scale=scale
  )


def check_cosface(case):
  margin, scale = case.argument('margin', 0.35), case.argument('scale', 64.0)
  check_prototype_loss(
    case, classification.cosface_loss, margin=margin, scale=scale
  )


def check_sphere(case):
  margin, scale = case.argument('margin', 4), case.argument('scale', 1.0)
  check_prototype_loss(
    case, classification.sphere_loss, margin=margin, scale=scale
  )


def margins(case, loss):
  """`loss` with the margins of the library, unless the file stores them."""
  return functools.partial(
    loss,
    positive_margin=case.argument('pos_margin', 0.0),
    negative_margin=case.argument('neg_margin', 1.0),
  )


def check_feature_loss(case, loss, *, rtol=1e-5):
  label = jnp.asarray(case['in/labels'])
  value, grad = jax.value_and_grad(loss)(jnp.asarray(case['in/x']), label)
  case.close('out/loss', value, rtol=rtol)
  case.close('out/grad_x', grad, rtol=rtol)


def check_prototype_loss(case, loss, **options):
  label = jnp.asarray(case['in/labels'])
  value, (grad_x, grad_w) = jax.value_and_grad(
    lambda x, w: loss(x, label, w, **options), argnums=(0, 1)
  )(jnp.asarray(case['in/x']), jnp.asarray(case['param/W']))
  case.close('out/loss', value, rtol=1e-5)
  case.close('out/grad_x', grad_x, rtol=1e-5)
  case.close('out/grad_W', grad_w, rtol=1e-5)


def _gamma_of_name(stem):
  """loss_circle_g64 -> 64; the baseline's 32 where the name says nothing."""
  found = re.search(r'_g(?:amma)?(\d+(?:\.\d+)?)', stem)
  return float(found[1]) if found else 32.0


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
