"""The head with its regions, and the whole network, against the release."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.losses import pairs
from cvgl_jax.methods import plcd
from cvgl_jax.models import layers, peer_network
from tests import full_networks
from tests.golden_case import Case
from tests.torch_names import leaf, nchw, nhwc, variables_for

VIEWS = ('street', 'drone')


def check_part_windows(case: Case) -> None:
  case.equal('out/windows_y0y1x0x1', np.array(peer_network.windows(12, 12)))


class Head(nn.Module):
  """The network on maps that some trunk has made."""

  parts: int
  train: bool
  num_classes: int
  dim: int
  droprate: float

  @nn.compact
  def __call__(self, first, second):
    network = peer_network.PeerNetwork(
      trunks=VIEWS,
      trunk={},
      pool='max',
      num_classes=self.num_classes,
      dim=self.dim,
      droprate=self.droprate,
      dtype=None,
    )
    nn.share_scope(self, network)
    one = network.describe(first, train=self.train)[:, -1]
    more = network.describe(
      second, parts=self.parts, recorded_parts=self.parts, train=self.train
    )
    h2 = more[:, -1]
    out = {'f1': pairs.l2_normalize(one), 'y1': network.classify(one)}
    out |= {'f2': pairs.l2_normalize(h2), 'y2': network.classify(h2)}
    if self.parts:
      out['part_f'] = pairs.l2_normalize(more[:, :-1]).swapaxes(0, 1)
    return out


def check_head(case: Case) -> None:
  with jax.enable_x64(True):  # gradients that cancel are rounding otherwise
    check_head_exactly(case)


def check_head_exactly(case: Case) -> None:
  train = bool(case.scalar('in/train'))
  tolerance = 3e-5 if train else 1e-6
  has_parts = 'out/part_f' in case
  shapes = {k: v.shape for k, v in case.prefix('param/').items()}
  classes, dim = shapes['classifier.classifier.0.weight']
  masks = dropout_masks(case)
  module = Head(
    parts=peer_network.REGIONS if has_parts else 0,
    train=train,
    num_classes=classes,
    dim=dim,
    droprate=case.scalar('in/droprate'),
  )
  maps = [nhwc(case[f'in/fm{i}']) for i in (1, 2)]
  source = dict(case.prefix('param/'))
  variables, maps = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float64),
    (variables_for(module, source, *maps), maps),
  )
  if masks:
    tolerance = 1e-4

  def run(params, first, second):
    order = iter(masks)

    def recorded(call, args, kwargs, context):
      if not isinstance(context.module, nn.Dropout) or not masks:
        return call(*args, **kwargs)
      return args[0] * next(order) / (1 - context.module.rate)

    with nn.intercept_methods(recorded):
      out, after = module.apply(
        {**variables, 'params': params},
        first,
        second,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )
    return out, after

  @jax.jit
  def run_with_gradients(params, *maps):
    out, pull, after = jax.vjp(run, params, *maps, has_aux=True)
    weights = {k: cotangent(k, v.shape).astype(v.dtype) for k, v in out.items()}
    return out, pull(weights), after

  with jax.default_matmul_precision('highest'):
    out, grads, after = run_with_gradients(variables['params'], *maps)
  for name, value in out.items():
    case.close(f'out/{name}', value, rtol=tolerance)
  for i, grad in enumerate(grads[1:], 1):
    case.close(f'out/grad_fm{i}', nchw(grad), rtol=tolerance)
  names = case.prefix('out/grad_param/')
  largest = max(np.abs(leaf(grads[0], name)).max() for name in names)
  for name in names:
    # A bias before batch norm has gradient 0; what is left is rounding.
    silent = train and name.endswith('add_block.0.bias')
    case.close(
      f'out/grad_param/{name}',
      leaf(grads[0], name),
      rtol=tolerance,
      scale=largest if silent else None,
    )
  if 'out/running_mean' in case:
    stats = after['batch_stats']['classifier']['add_block_1']
    case.close('out/running_mean', stats['mean'], rtol=1e-6)
    case.close('out/running_var', stats['var'], rtol=1e-6)
    case.ignore('out/bn_updates', 'seen in the statistics that it led to')


def cotangent(name: str, shape) -> jnp.ndarray:
  """What the README's scalar weighs an output by."""
  rng = np.random.default_rng(zlib.crc32(f'cot/{name}'.encode()))
  return jnp.asarray(rng.standard_normal(shape).astype(np.float32))


def dropout_masks(case: Case) -> list[np.ndarray]:
  """Of the anchors and of regions and whole drone pictures, as ours drop."""
  if 'in/dropout_keep_first' not in case:
    return []
  first = case['in/dropout_keep_first'][:, None]
  last = case['in/dropout_keep_last'][:, None]
  regions = case['in/dropout_keep_parts'].swapaxes(0, 1)
  return [first, np.concatenate([regions, last], axis=1)]


def check_network(case: Case) -> None:
  """The network of 384-pixel pictures with all regions, in evaluation."""
  source = full_networks.source(
    case, f'{case.stem.removesuffix("_eval")}_names'
  )
  classes = len(source['classifier.classifier.0.bias'])
  method = plcd.Method(num_classes=classes, views=VIEWS, generation=1)
  rng = np.random.default_rng(case.scalar('in/seed'))
  pictures = []
  for i in (1, 2):
    shape = tuple(case[f'in/x{i}_shape'].tolist())
    x = rng.standard_normal(shape).astype(np.float32)
    case.close(f'in/x{i}_head', x.reshape(-1)[:8], rtol=0)
    pictures.append(nhwc(x))
  sizes = {view: x.shape[1:3] for view, x in zip(VIEWS, pictures, strict=True)}
  variables = full_networks.variables(method, sizes, source)
  network = method.network
  with jax.default_matmul_precision('highest'):
    (h1, more), state = jax.jit(
      lambda v, *x: network.apply(
        v,
        *x,
        parts=peer_network.REGIONS,
        train=False,
        method='both',
        capture_intermediates=True,
        mutable=['intermediates'],
      )
    )(variables, *pictures)
    for i, h in ((1, h1), (2, more[:, -1])):
      y = network.apply(variables, h, method='classify')
      case.close(f'out/f{i}', pairs.l2_normalize(h), rtol=1e-6)
      case.close(f'out/y{i}', y, rtol=1e-6)
  parts = pairs.l2_normalize(more[:, :-1]).swapaxes(0, 1)
  case.close('out/part_f', parts, rtol=1e-6)
  for name in case.prefix('out/stat_mean_std_absmax/'):
    branch, module = name.split('.')
    value = of_module(state['intermediates'][branch]['model'], module)
    case.close(
      f'out/stat_mean_std_absmax/{name}', full_networks.stats(value), rtol=1e-6
    )


def of_module(maps: dict, name: str) -> np.ndarray:
  """Output of a torch module of a ResNet-50, float64."""
  if name.startswith('layer'):
    name = full_networks.last_of(maps, name)
  if name == 'maxpool':
    stem = nn.relu(maps['bn1']['__call__'][0])
    return np.asarray(
      layers.max_pool(stem, 3, strides=2, padding=1), np.float64
    )
  if name == 'maxpool2':
    last = full_networks.last_of(maps, 'layer4')
    return full_networks.output(maps, last).max(axis=(2, 3))
  return full_networks.output(maps, name)


CHECKS = {
  'part_windows': check_part_windows,
  'head_': check_head,
  'net_rmac_': check_network,
}
