"""Trunks and whole networks, with formula weights."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.methods import university1652
from cvgl_jax.models import backbones, layers
from tests import formula_weights
from tests.golden_case import Case
from tests.torch_names import leaf, nchw, nhwc, variables_for

UNUSED = r'(model_\d\.)?model\.(fc|classifier)\..*'  # Never executed, large.


def ft_net_source(case: Case, stem: str) -> dict[str, np.ndarray]:
  names = [(n.removeprefix('model.'), n, s) for n, s in case.names(stem)]
  return {
    short: formula_weights.entry(name, shape)
    for short, name, shape in names
    if not re.fullmatch(UNUSED, name)
  }


def ft_net_options(case: Case) -> dict:
  """Stride and pool stand in the file's name (README)."""
  tokens = case.stem.replace('avg+max', 'avgmax').split('_')
  pools = [t for t in tokens if t in ('avg', 'max', 'avgmax', 'gem')]
  pool = pools[0].replace('avgmax', 'avg+max') if pools else 'avg'
  last_stride = 2 if 's2' in tokens else 1
  return {'pool': pool, 'last_stride': last_stride}


def captured(intermediates: dict, name: str):
  return intermediates[name]['__call__'][0]


def check_stats(case: Case, maps: dict):
  for name, value in maps.items():
    value = nchw(value)
    if f'out/shape/{name}' in case:
      case.equal(f'out/shape/{name}', value.shape)
    value = value.astype(np.float64)
    stats = [value.mean(), value.std(), np.abs(value).max()]
    case.close(f'out/stats/{name}', stats, rtol=1e-5)


def check_ft_net(case: Case):
  options = ft_net_options(case)
  stem = 'ft_net_gem' if options['pool'] == 'gem' else 'ft_net'
  module = backbones.make('resnet50', **options)
  x = nhwc(case.normal())
  variables = variables_for(module, ft_net_source(case, stem), x, train=False)
  with jax.default_matmul_precision('highest'):
    feature, state = jax.jit(
      lambda v, x: module.apply(
        v, x, train=False, capture_intermediates=True, mutable=['intermediates']
      )
    )(variables, x)
  case.close('out/feature', feature, rtol=1e-5)
  maps = state['intermediates']
  last = nchw(captured(maps, 'layer4_2'))
  case.close('out/layer4_first8ch', last[:, :8], rtol=1e-5)
  stem_map = nn.relu(captured(maps, 'bn1'))
  check_stats(
    case,
    {
      'conv1': captured(maps, 'conv1'),
      'bn1': captured(maps, 'bn1'),
      'maxpool': layers.max_pool(stem_map, 3, strides=2, padding=1),
      'layer1': captured(maps, 'layer1_2'),
      'layer2': captured(maps, 'layer2_3'),
      'layer3': captured(maps, 'layer3_5'),
      'layer4': captured(maps, 'layer4_2'),
    },
  )
  if 'out/grad_x' in case:
    check_ft_net_gradients(case, module, variables, x)
  if 'out/train/feature' in case:
    check_ft_net_training(case, module, variables, x)


def check_ft_net_gradients(case: Case, module, variables: dict, x):
  t = case.normal(seed='in/t_seed', shape=case['out/feature'].shape)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(params, x):
    y = module.apply({**variables, 'params': params}, x, train=False)
    return (y * t).sum()

  with jax.default_matmul_precision('highest'):
    grads, grad_x = gradients(variables['params'], x)
  case.close('out/grad_x', nchw(grad_x), rtol=1e-5)
  for name in set(case.prefix('out/grad_')) - {'x'}:
    case.close(f'out/grad_{name}', leaf(grads, name), rtol=1e-5)
  for name in case.prefix('out/gradnorm_'):
    norm = np.linalg.norm(leaf(grads, name))
    case.close(f'out/gradnorm_{name}', norm, rtol=1e-5)


def check_ft_net_training(case: Case, module, variables: dict, x):
  with jax.default_matmul_precision('highest'):
    feature, updates = jax.jit(
      lambda v, x: module.apply(v, x, train=True, mutable=['batch_stats'])
    )(variables, x)
  case.close('out/train/feature', feature, rtol=2e-4)
  for name, expected in case.prefix('out/train/after/').items():
    first = leaf(updates['batch_stats'], name)[: len(expected)]
    case.close(f'out/train/after/{name}', first, rtol=2e-4)


def check_ft_net_vgg16(case: Case):
  pool = ft_net_options(case)['pool']
  source = ft_net_source(case, 'ft_net_vgg16')
  x = nhwc(case.normal())
  module = backbones.make('vgg16_bn', pool=pool)
  if pool == 'gem':  # Named after the parameter, README note 1.
    shape = case['out/feature'].shape[1:]
    source['gem2.p'] = formula_weights.entry('model.gem2.p', shape)
  variables = variables_for(module, source, x, train=False)
  with jax.default_matmul_precision('highest'):
    feature, state = jax.jit(
      lambda v, x: module.apply(
        v, x, train=False, capture_intermediates=True, mutable=['intermediates']
      )
    )(variables, x)
  case.close('out/feature', feature, rtol=1e-5)
  maps = {
    # A pool follows the ReLU of the batch norm two places before it.
    key: layers.max_pool(
      nn.relu(captured(state['intermediates'], f'features_{int(key[9:]) - 2}')),
      2,
      strides=2,
    )
    for key in case.prefix('out/stats/')
  }
  check_stats(case, maps)
  last = nchw(maps['features.43'])
  case.close('out/last_map_first8ch', last[:, :8], rtol=1e-5)


def check_view_net(case: Case, views: tuple[str, ...]):
  """Evaluation in float32, one training pass in float64."""
  names = case.names()
  has = lambda prefix: any(name.startswith(prefix) for name, _ in names)
  returns_f = 'out/eval/f1' in case
  if 'in/labels4' in case:
    views = (*views, 'google')
  shapes = dict(names)
  classes, dim = shapes['classifier.classifier.0.weight']
  inputs = shapes['classifier.add_block.0.weight'][1]
  options = ft_net_options(case)
  vgg = has('model_1.model.features.')
  if has('model_1.gem2.') or has('model_1.model.gem2.'):
    options['pool'] = 'gem'
  elif inputs == 2 * (512 if vgg else 2048):
    options['pool'] = 'avg+max'
  method = university1652.Method(
    num_classes=classes,
    views=views,
    backbone='vgg16_bn' if vgg else 'resnet50',
    share_satellite_drone='drone' in views and not has('model_3.'),
    share_satellite_street=not has('model_2.'),
    dim=dim,
    droprate=0.0,
    **options,
  )
  source = formula_weights.state_dict(names, skip=UNUSED)
  assert len(case['in/x_seed']) == len(views)
  batch = {
    view: {
      'image': nhwc(case.normal(i)),
      'label': case[f'in/labels{i + 1}'].astype(np.int32),
    }
    for i, view in enumerate(views)
  }
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
  variables = method.variables_from_torch(shapes, source, where='golden')

  network = method.network
  embed = jax.jit(
    lambda v, x, trunk: network.apply(
      v, x, trunk, train=False, method='features'
    ),
    static_argnums=2,
  )
  for i, view in enumerate(views):
    with jax.default_matmul_precision('highest'):
      f = embed(variables, batch[view]['image'], method.trunks[view])
      logits = network.apply(variables, f, method='classify')
    case.close(f'out/eval/logits{i + 1}', logits, rtol=1e-5)
    if f'out/test/feature{i + 1}' in case:
      case.close(f'out/test/feature{i + 1}', f, rtol=1e-5)
    if returns_f:
      case.close(f'out/eval/f{i + 1}', f, rtol=1e-5)
  with jax.enable_x64(True):
    check_training_pass(case, method, variables, batch)


def check_training_pass(case: Case, method, variables: dict, batch: dict):
  variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
  mean, std = np.array(layers.MEAN), np.array(layers.STD)
  # The inputs are normalised pictures; the method takes pixels.
  batch = {
    view: {
      'image': (slot['image'].astype(np.float64) * std + mean) * 255,
      'label': slot['label'],
    }
    for view, slot in batch.items()
  }
  params = variables['params']
  mutable = {'batch_stats': variables['batch_stats']}

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params, mutable, batch):
    rng = jax.random.key(0)
    features, after = method.features(params, mutable, batch, rng)
    loss, _ = method.loss_from_features(params, features, batch, 0)
    logits = {
      view: method.network.apply({'params': params}, f, method='classify')
      for view, f in features.items()
    }
    return loss, (logits, after)

  (loss, (logits, after)), grads = run(params, mutable, batch)
  assert loss.dtype == jnp.float64
  case.close('out/train/loss', loss, rtol=1e-6)
  for i, view in enumerate(method.ordered_views):
    case.close(f'out/train/logits{i + 1}', logits[view], rtol=1e-6)
  largest = max(np.abs(gradient).max() for gradient in jax.tree.leaves(grads))
  for name in case.prefix('out/train/gradnorm/'):
    norm = np.linalg.norm(leaf(grads, name))
    # A bias before batch norm has gradient 0; what is left is rounding.
    scale = None if norm > 1e-9 * largest else largest
    case.close(f'out/train/gradnorm/{name}', norm, rtol=1e-6, scale=scale)
  for name, expected in case.prefix('out/train/gradslice/').items():
    first = leaf(grads, name)[tuple(slice(n) for n in expected.shape)]
    scale = None if np.abs(first).max() > 1e-9 * largest else largest
    case.close(f'out/train/gradslice/{name}', first, rtol=1e-6, scale=scale)
  for name, expected in case.prefix('out/train/after/').items():
    first = leaf(after['batch_stats'], name)[: len(expected)]
    case.close(f'out/train/after/{name}', first, rtol=1e-6)


CHECKS = {
  'ft_net': check_ft_net,
  'ft_net_vgg16': check_ft_net_vgg16,
  'two_view': functools.partial(check_view_net, views=('satellite', 'street')),
  'three_view': functools.partial(
    check_view_net, views=('satellite', 'street', 'drone')
  ),
}
