"""Layers, trunks, heads, whole networks and test-time views."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.methods import university1652
from cvgl_jax.models import backbones, layers, test_time, torch_weights
from tests import formula_weights
from tests.golden_case import Case

UNUSED = r'(model_\d\.)?model\.(fc|classifier)\..*'  # Never executed, large.


def close(actual, expected, *, rtol: float, what: str):
  """max |difference| / max |expected|, as the golden READMEs measure it."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
  error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
  assert error <= rtol, f'{what}: relative difference {error:.2e} > {rtol:.0e}'


def nhwc(x: np.ndarray) -> np.ndarray:
  return x.transpose(0, 2, 3, 1)


def nchw(x: np.ndarray) -> np.ndarray:
  return np.asarray(x).transpose(0, 3, 1, 2)


def random_input(
  case: Case, index: int = 0, key: str = 'in/x_seed'
) -> np.ndarray:
  """Input of view `index`, NHWC float32."""
  rng = np.random.default_rng(case[key][index])
  shape = tuple(case['in/x_shape'])
  return nhwc(rng.standard_normal(shape).astype(np.float32))


def variables_for(module, source: dict, *args, **kwargs) -> dict:
  """Variables of a module filled from torch entries."""
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *args, **kwargs)
  )
  return torch_weights.convert(shapes, source, where='golden weights')


def torch_name(module: str) -> str:
  """'layer1_0' -> 'layer1.0'; 'model_1' and 'usam_1' are torch's own names."""
  if module.startswith(('model_', 'usam_')):
    return module
  return re.sub(r'_(\d+)$', r'.\1', module)


def to_torch(path: str, value) -> np.ndarray:
  """A kernel in torch's layout; other leaves as they are."""
  value = np.asarray(value)
  if path == 'kernel' and value.ndim >= 2:
    return value.transpose(-1, -2, *range(value.ndim - 2))
  return value


def leaf(tree, torch_name: str):
  """The entry of a tree by its torch name, in torch's layout."""
  *modules, kind = re.sub(r'\.(\d+)', r'_\1', torch_name).split('.')
  for module in modules:
    tree = tree[module]
  flax_kinds = {
    'weight': ('kernel', 'scale'),
    'running_mean': ('mean',),
    'running_var': ('var',),
  }
  for name in flax_kinds.get(kind, (kind,)):
    if name in tree:
      return to_torch(name, tree[name])
  raise KeyError(torch_name)


def check_gem_pool(case: Case):
  x, t = nhwc(case['in/x']), case['in/t']
  variables = {'params': {'p': case['param/p']}}

  def value(variables, x):
    y = layers.GeM().apply(variables, x)
    return (y * t).sum(), y

  (_, y), (grad, grad_x) = jax.value_and_grad(value, (0, 1), has_aux=True)(
    variables, x
  )
  close(y, case['out/y'], rtol=1e-6, what='y')
  close(nchw(grad_x), case['out/grad_x'], rtol=1e-6, what='grad_x')
  close(grad['params']['p'], case['out/grad_p'], rtol=1e-6, what='grad_p')


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
    relu='relu' in case.stem,
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
    out = case.prefix(f'out/{mode}/')
    close(logits, out['logits'], rtol=1e-6, what=f'{mode} logits')
    close(f, out['f'], rtol=1e-6, what=f'{mode} f')
    close(grad_x, out['grad_x'], rtol=1e-6, what=f'{mode} grad_x')
    largest = max(np.abs(v).max() for k, v in out.items() if 'grad_param' in k)
    for key, expected in out.items():
      if key.startswith('grad_param/'):
        actual = leaf(grads, key.removeprefix('grad_param/'))
        # A bias before batch norm has gradient 0; what is left is rounding.
        scale = max(np.abs(expected).max(), 1e-1 * largest)
        error = np.abs(actual - expected).max()
        assert error <= 2e-6 * scale, (mode, key, error, scale)
      elif key.startswith('after/'):
        actual = leaf(updates['batch_stats'], key.removeprefix('after/'))
        close(actual, expected, rtol=1e-6, what=f'{mode} {key}')


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
  return {'pool': pool, 'last_stride': 2 if 's2' in tokens else 1}


def captured(intermediates: dict, name: str):
  return intermediates[name]['__call__'][0]


def check_stats(case: Case, maps: dict):
  for name, value in maps.items():
    value = nchw(value)
    if f'out/shape/{name}' in case:
      assert value.shape == tuple(case[f'out/shape/{name}']), name
    value = value.astype(np.float64)
    stats = np.array([value.mean(), value.std(), np.abs(value).max()])
    close(stats, case[f'out/stats/{name}'], rtol=1e-5, what=f'stats {name}')


def check_ft_net(case: Case):
  options = ft_net_options(case)
  stem = 'ft_net_gem' if options['pool'] == 'gem' else 'ft_net'
  module = backbones.make('resnet50', **options)
  x = random_input(case)
  variables = variables_for(module, ft_net_source(case, stem), x, train=False)
  with jax.default_matmul_precision('highest'):
    feature, state = jax.jit(
      lambda v, x: module.apply(
        v, x, train=False, capture_intermediates=True, mutable=['intermediates']
      )
    )(variables, x)
  close(feature, case['out/feature'], rtol=1e-5, what='feature')
  maps = state['intermediates']
  last = nchw(captured(maps, 'layer4_2'))
  close(last[:, :8], case['out/layer4_first8ch'], rtol=1e-5, what='layer4')
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
  rng = np.random.default_rng(case['in/t_seed'][0])
  t = rng.standard_normal(case['out/feature'].shape).astype(np.float32)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(params, x):
    y = module.apply({**variables, 'params': params}, x, train=False)
    return (y * t).sum()

  with jax.default_matmul_precision('highest'):
    grads, grad_x = gradients(variables['params'], x)
  close(nchw(grad_x), case['out/grad_x'], rtol=1e-5, what='grad_x')
  for key, expected in case.prefix('out/grad_').items():
    if key != 'x':
      close(leaf(grads, key), expected, rtol=1e-5, what=f'grad {key}')
  for key, expected in case.prefix('out/gradnorm_').items():
    norm = np.linalg.norm(leaf(grads, key)).reshape(1)
    close(norm, expected, rtol=1e-5, what=f'gradnorm {key}')


def check_ft_net_training(case: Case, module, variables: dict, x):
  with jax.default_matmul_precision('highest'):
    feature, updates = jax.jit(
      lambda v, x: module.apply(v, x, train=True, mutable=['batch_stats'])
    )(variables, x)
  close(feature, case['out/train/feature'], rtol=2e-4, what='train feature')
  for key, expected in case.prefix('out/train/after/').items():
    actual = leaf(updates['batch_stats'], key)[: len(expected)]
    close(actual, expected, rtol=2e-4, what=f'after {key}')


def check_ft_net_vgg16(case: Case):
  pool = ft_net_options(case)['pool']
  source = ft_net_source(case, 'ft_net_vgg16')
  x = random_input(case)
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
  close(feature, case['out/feature'], rtol=1e-5, what='feature')
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
  close(last[:, :8], case['out/last_map_first8ch'], rtol=1e-5, what='last map')


def check_view_net(case: Case, views: tuple[str, ...]):
  """Evaluation in float32, one training pass in float64."""
  names = case.names()
  has = lambda prefix: any(name.startswith(prefix) for name, _ in names)
  circle = 'out/eval/f1' in case  # The flag that makes the head return f.
  if 'in/labels4' in case:
    views = (*views, 'google')
  shapes = dict(names)
  classes, dim = shapes['classifier.classifier.0.weight']
  inputs = shapes['classifier.add_block.0.weight'][1]
  options = ft_net_options(case)
  if has('model_1.gem2.') or has('model_1.model.gem2.'):
    options['pool'] = 'gem'
  elif inputs == 2 * 2048:
    options['pool'] = 'avg+max'
  method = university1652.Method(
    num_classes=classes,
    views=views,
    share_satellite_drone='drone' in views and not has('model_3.'),
    share_satellite_street=not has('model_2.'),
    dim=dim,
    droprate=0.0,
    **options,
  )
  source = formula_weights.state_dict(names, skip=UNUSED)
  batch = {
    view: {
      'image': random_input(case, i),
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
    expected = case[f'out/eval/logits{i + 1}']
    close(logits, expected, rtol=1e-5, what=f'eval logits {view}')
    if f'out/test/feature{i + 1}' in case:
      expected = case[f'out/test/feature{i + 1}']
      close(f, expected, rtol=1e-5, what=f'test feature {view}')
    if circle:
      close(f, case[f'out/eval/f{i + 1}'], rtol=1e-5, what=f'eval f {view}')
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
  close(np.asarray(loss)[None], case['out/train/loss'], rtol=1e-6, what='loss')
  for i, view in enumerate(method.ordered_views):
    expected = case[f'out/train/logits{i + 1}']
    close(logits[view], expected, rtol=1e-6, what=f'train logits {view}')
  for key, expected in case.prefix('out/train/gradnorm/').items():
    norm = np.linalg.norm(leaf(grads, key)).reshape(1)
    close(norm, expected, rtol=1e-6, what=f'gradnorm {key}')
  for key, expected in case.prefix('out/train/gradslice/').items():
    first = leaf(grads, key)[tuple(slice(n) for n in expected.shape)]
    close(first, expected, rtol=1e-6, what=f'gradient {key}')
  for key, expected in case.prefix('out/train/after/').items():
    actual = leaf(after['batch_stats'], key)[: len(expected)]
    close(actual, expected, rtol=1e-6, what=f'after {key}')


def check_usam(case: Case):
  module, x, t = layers.USAM(), nhwc(case['in/x']), nhwc(case['in/t'])
  source = case.prefix('param/')
  variables = variables_for(module, source, x, train=False)

  def value(x, train):
    y, updates = module.apply(
      variables, x, train=train, mutable=['batch_stats']
    )
    return (y * t).sum(), (y, updates)

  for mode in ('eval', 'train'):
    (_, (y, updates)), grad_x = jax.value_and_grad(value, has_aux=True)(
      x, mode == 'train'
    )
    close(nchw(y), case[f'out/{mode}/y'], rtol=1e-6, what=f'{mode} y')
    expected = case[f'out/{mode}/grad_x']
    close(nchw(grad_x), expected, rtol=1e-6, what=f'{mode} grad_x')
    for key, expected in case.prefix(f'out/{mode}/after/').items():
      actual = leaf(updates['batch_stats'], f'bn.{key}')
      close(actual, expected, rtol=1e-6, what=f'{mode} {key}')


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
    random_input(case),
    flip=True,
    # Stored as float32; the reference took the decimal numbers.
    scales=[float(str(s)) for s in case['in/ms']],
    cumulative=True,
  )
  feature = total / jnp.linalg.norm(total, axis=1, keepdims=True)
  close(feature, case['out/feature'], rtol=1e-5, what='feature')


def check_interpolate(case: Case):
  x = random_input(case)
  for i, squared in enumerate(case['in/scale_squared']):
    y = test_time.resize_scale_factor(x, float(str(squared)) ** 0.5)
    close(nchw(y), case[f'out/y{i}'], rtol=1e-5, what=f'scale {squared}')


CHECKS = {
  'gem_pool': check_gem_pool,
  'classblock': check_classblock,
  'ft_net': check_ft_net,
  'ft_net_vgg16': check_ft_net_vgg16,
  'two_view': functools.partial(check_view_net, views=('satellite', 'street')),
  'three_view': functools.partial(
    check_view_net, views=('satellite', 'street', 'drone')
  ),
  'usam': check_usam,
  'extract_feature': check_extract_feature,
  'interpolate_scale_factor': check_interpolate,
}
