"""Trunks by name: sizes, names, initialisation, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.methods import university1652
from cvgl_jax.models import backbones
from tests import torch_names

# Published counts of scalars without the ImageNet classifier (torchvision), but
# with the norm before it.
SCALARS = {
  'small_cnn': 961_600,
  'resnet18': 11_176_512,
  'resnet34': 21_284_672,
  'resnet50': 23_508_032,
  'resnet101': 42_500_160,
  'vgg16_bn': 14_723_136,
  'convnext_mini': 1_037_728,
  'convnext_tiny': 27_820_128,
  'convnext_small': 49_454_688,
  'convnext_base': 87_566_464,
}


def shapes(module, size=64):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, train=False), x
  )


def all_close(a, b, *, rtol, atol):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


@pytest.mark.parametrize('name', backbones.NAMES)
def test_trunks_have_the_published_number_of_parameters(name):
  _, variables = shapes(backbones.make(name, pool='avg'))
  total = sum(x.size for x in jax.tree.leaves(variables['params']))
  assert total == SCALARS[name]


@pytest.mark.parametrize(
  ('name', 'channels'),
  [
    ('resnet18', 512),
    ('resnet50', 2048),
    ('vgg16_bn', 512),
    ('convnext_tiny', 768),
  ],
)
def test_width_scales_every_channel(name, channels):
  output, _ = shapes(backbones.make(name, width=8))
  assert output.shape == (1, 2, 2, channels // 8)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_last_stride_doubles_the_feature_map(name):
  output, variables = shapes(backbones.make(name, last_stride=1), 96)
  assert output.shape[1:3] == (6, 6)
  _, strided = shapes(backbones.make(name), 96)
  assert jax.tree.structure(variables) == jax.tree.structure(strided)


def test_convolutions_start_with_kaiming_fan_out():
  module = backbones.make('resnet18', width=16)
  variables = module.init(
    jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
  )
  params = variables['params']
  std = params['conv1']['kernel'].std()
  np.testing.assert_allclose(std, np.sqrt(2 / (16 * 49)), rtol=0.06)
  std = params['layer4_1']['conv2']['kernel'].std()
  np.testing.assert_allclose(std, np.sqrt(2 / (128 * 9)), rtol=0.01)
  np.testing.assert_array_equal(params['bn1']['scale'], 1)


@pytest.mark.parametrize('name', ['resnet18', 'vgg16_bn'])
def test_recomputation_changes_nothing(name):
  plain = backbones.make(name, width=4, pool='avg')
  remat = backbones.make(name, width=4, pool='avg', remat=True)
  x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  variables = plain.init(jax.random.key(0), x, train=False)
  again = jax.eval_shape(lambda: remat.init(jax.random.key(0), x, train=False))
  assert jax.tree.structure(again) == jax.tree.structure(variables)

  def run(module):
    def value(params, stats):
      y, updates = module.apply(
        {'params': params, 'batch_stats': stats},
        x,
        train=True,
        mutable=['batch_stats'],
      )
      return (y**2).sum(), updates

    return jax.jit(jax.value_and_grad(value, has_aux=True))(
      variables['params'], variables['batch_stats']
    )

  (value_1, stats_1), grads_1 = run(plain)
  (value_2, stats_2), grads_2 = run(remat)
  np.testing.assert_allclose(value_1, value_2, rtol=1e-4)
  all_close(stats_1, stats_2, rtol=1e-3, atol=1e-5)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads_1))
  all_close(grads_1, grads_2, rtol=1e-2, atol=1e-3 * largest)


def test_bfloat16_keeps_parameters_statistics_and_features_in_float32():
  module = backbones.make('resnet18', width=8, pool='avg', dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  variables = module.init(jax.random.key(0), x, train=False)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('f4')}
  y, state = jax.jit(
    lambda v, x: module.apply(
      v, x, train=True, capture_intermediates=True, mutable=True
    )
  )(variables, x)
  assert y.dtype == jnp.float32
  assert {v.dtype for v in jax.tree.leaves(state['batch_stats'])} == {
    jnp.dtype('f4')
  }
  inner = state['intermediates']['layer3_0']['__call__'][0]
  assert inner.dtype == jnp.bfloat16
  wide = backbones.make('resnet18', width=8, pool='avg')
  exact, _ = jax.jit(
    lambda v, x: wide.apply(v, x, train=True, mutable=['batch_stats'])
  )(variables, x)
  np.testing.assert_allclose(y, exact, atol=0.1 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize('name', ['resnet18', 'convnext_mini'])
def test_university1652_takes_imagenet_weights_of_every_trunk(name):
  method = university1652.Method(num_classes=3, backbone=name, backbone_width=8)
  variables = jax.eval_shape(
    lambda: method.init(jax.random.key(0), dict.fromkeys(method.views))
  )
  trunk = {
    kind: tree['model_1']['model']
    for kind, tree in variables.items()
    if 'model' in tree.get('model_1', {})
  }
  halves = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), trunk)
  source = torch_names.state_dict(halves)
  head = 'fc'
  if name == 'convnext_mini':  # timm's names.
    head = 'head.fc'
    for kind in ('weight', 'bias'):
      source[f'head.norm.{kind}'] = source.pop(f'norm.{kind}')
  source[f'{head}.bias'] = np.zeros(1000, np.float32)
  found = method.variables_from_torch(variables, source, where='x')
  for view in ('model_1', 'model_2'):
    for leaf in jax.tree.leaves(found['params'][view]['model']):
      np.testing.assert_array_equal(leaf, 0.5)
  source['heads.bias'] = np.zeros(1000, np.float32)
  with pytest.raises(ValueError, match=r'unexpected \(1\): heads\.bias'):
    method.variables_from_torch(variables, source, where='x')


def test_unknown_names_and_small_pictures_are_explained():
  with pytest.raises(ValueError, match=r"'resnet51'.*resnet101"):
    backbones.make('resnet51')
  with pytest.raises(ValueError, match='at least 32x32'):
    shapes(backbones.make('vgg16_bn'), 16)
