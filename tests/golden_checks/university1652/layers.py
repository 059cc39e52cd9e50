"""Pools, attention, the head, and test-time views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.models import layers, test_time
from tests import formula_weights, golden_case
from tests.golden_case import Case
from tests.torch_names import leaf, nchw, nhwc, variables_for


def check_gem_pool(case: Case):
  x, t = nhwc(case['in/x']), case['in/t']
  variables = {'params': {'p': case['param/p']}}

  def value(variables, x):
    y = layers.GeM().apply(variables, x)
    return (y * t).sum(), y

  (_, y), (grad, grad_x) = jax.value_and_grad(value, (0, 1), has_aux=True)(
    variables, x
  )
  case.close('out/y', y, rtol=1e-6)
  case.close('out/grad_x', nchw(grad_x), rtol=1e-6)
  case.close('out/grad_p', grad['params']['p'], rtol=1e-6)


def check_classblock(case: Case):
  source = case.prefix('param/')
  # Options that the file does not store follow from the names of the weights.
  first = source.get('add_block.0.weight')
  linear = first is not None and first.ndim == 2
  bnorm = any(name.endswith('running_mean') for name in source)
  classes, dim = source['classifier.0.weight'].shape
  module = layers.ClassBlock(
    classes,
    dim=dim,
    droprate=0.0,
    linear=linear,
    bnorm=bnorm,
    relu=bool(case.argument('relu', 'relu' in case.stem.split('_'))),
  )
  x = case['in/x']
  variables = variables_for(module, source, x, train=False)

  def value(params, x, train):
    (logits, f), updates = module.apply(
      {**variables, 'params': params}, x, train=train, mutable=['batch_stats']
    )
    total = (logits * case['in/t_logits']).sum() + (f * case['in/t_f']).sum()
    return total, (logits, f, updates)

  for mode in ('eval', 'train'):
    (_, (logits, f, updates)), (grads, grad_x) = jax.value_and_grad(
      value, (0, 1), has_aux=True
    )(variables['params'], x, mode == 'train')
    case.close(f'out/{mode}/logits', logits, rtol=1e-6)
    case.close(f'out/{mode}/f', f, rtol=1e-6)
    case.close(f'out/{mode}/grad_x', grad_x, rtol=1e-6)
    gradients = case.prefix(f'out/{mode}/grad_param/')
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name in gradients:
      # A bias before batch norm has gradient 0; what is left is rounding.
      vanishes = mode == 'train' and bnorm and linear
      vanishes &= name == 'add_block.0.bias'
      case.close(
        f'out/{mode}/grad_param/{name}',
        leaf(grads, name),
        rtol=1e-6,
        scale=largest if vanishes else None,
      )
    for name in case.prefix(f'out/{mode}/after/'):
      after = leaf(updates['batch_stats'], name)
      case.close(f'out/{mode}/after/{name}', after, rtol=1e-6)


def check_usam(case: Case):
  module, x, t = layers.USAM(), nhwc(case['in/x']), nhwc(case['in/t'])
  variables = variables_for(module, case.prefix('param/'), x, train=False)

  def value(x, train):
    y, updates = module.apply(
      variables, x, train=train, mutable=['batch_stats']
    )
    return (y * t).sum(), (y, updates)

  for mode in ('eval', 'train'):
    (_, (y, updates)), grad_x = jax.value_and_grad(value, has_aux=True)(
      x, mode == 'train'
    )
    case.close(f'out/{mode}/y', nchw(y), rtol=1e-6)
    case.close(f'out/{mode}/grad_x', nchw(grad_x), rtol=1e-6)
    for name in case.prefix(f'out/{mode}/after/'):
      after = leaf(updates['batch_stats'], f'bn.{name}')
      case.close(f'out/{mode}/after/{name}', after, rtol=1e-6)


def toy_network(weight: np.ndarray, x: jax.Array) -> jax.Array:
  """tanh(adaptive average pool to 4x4, channels first, flattened) W^T."""

  def bounds(n):
    return [(i * n // 4, -((i + 1) * n // -4)) for i in range(4)]

  rows = [
    [x[:, a:b, c:d].mean((1, 2)) for c, d in bounds(x.shape[2])]
    for a, b in bounds(x.shape[1])
  ]
  pooled = jnp.stack([jnp.stack(row, 1) for row in rows], 1)  # [B, 4, 4, C]
  flat = pooled.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
  return jnp.tanh(flat) @ weight.T


def check_extract_feature(case: Case):
  features, channels = case['out/feature'].shape[1], case['in/x_shape'][1]
  weight = formula_weights.entry('toy.W0', (features, 16 * channels))
  total = test_time.feature_sum(
    functools.partial(toy_network, weight),
    nhwc(case.normal()),
    flip=True,
    scales=golden_case.decimals(case['in/ms']),
    cumulative=True,
  )
  feature = total / jnp.linalg.norm(total, axis=1, keepdims=True)
  case.close('out/feature', feature, rtol=1e-5)


def check_interpolate(case: Case):
  x = nhwc(case.normal())
  for i, squared in enumerate(golden_case.decimals(case['in/scale_squared'])):
    y = test_time.resize_scale_factor(x, squared**0.5)
    case.close(f'out/y{i}', nchw(y), rtol=1e-5)


CHECKS = {
  'gem_pool': check_gem_pool,
  'classblock': check_classblock,
  'usam': check_usam,
  'extract_feature': check_extract_feature,
  'interpolate_scale_factor': check_interpolate,
}
