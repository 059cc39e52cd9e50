"""Modules and small networks of FRGeo and TransGeo, with stored weights."""

from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from cvgl_jax.models import convnext, layers, recombination, vit
from tests.golden_case import Case
from tests.torch_names import nchw, nhwc, variables_for


def check_module(case: Case, module: nn.Module, *, atol: float, **kwargs):
  """Output and input gradient of a module of [B, H, W, C]."""
  x = nhwc(case['in/x'])
  cotangent = case['in/cotangent']
  if cotangent.ndim == 4:
    cotangent = nhwc(cotangent)
  variables = variables_for(module, dict(case.prefix('param/')), x, **kwargs)

  def run(variables, x, cotangent):
    y, pull = jax.vjp(lambda x: module.apply(variables, x, **kwargs), x)
    return y, pull(cotangent)[0]

  with jax.default_matmul_precision('highest'):
    y, grad_x = jax.jit(run)(variables, x, cotangent)
  within(case, 'out/y', nchw(y) if y.ndim == 4 else y, atol=atol)
  within(case, 'out/grad_x', nchw(grad_x), atol=atol)


def within(case: Case, key: str, got, *, atol: float):
  """`case.close` with the absolute tolerance of the README."""
  case.close(key, got, rtol=atol, scale=1.0)
  assert np.abs(np.asarray(got)).max() > 100 * atol, f'{key} says nothing'


def check_layernorm(case: Case):
  # The stored names have no module before them, as those of a bare LayerNorm.
  check_module(case, layers.layer_norm(), atol=1e-5)


class Downsample(nn.Module):
  """What leads from one stage to the next, by its own names."""

  @nn.compact
  def __call__(self, x):
    x = layers.layer_norm(name='0')(x)
    return convnext.patches(24, 2, name='1')(x)


def check_downsample(case: Case):
  check_module(case, Downsample(), atol=1e-5)


def check_block(case: Case):
  check_module(case, convnext.Block(), atol=1e-5, train=True)


def check_small_network(case: Case):
  """A whole network of FRGeo; training and evaluation are the same."""
  height, width = case['in/x'].shape[2:]
  options = {
    'cut': 'satellite' if height == width else 'panorama',
    'train': True,
  }
  sizes = {'golden': ((1, 1, 2, 1), (8, 12, 16, 20))}  # README
  with mock.patch.dict(convnext.VARIANTS, sizes):
    module = recombination.Net(backbone='golden')
    check_module(case, module, atol=1e-5, **options)


def tiny_deit(case: Case) -> vit.DistilledViT:
  """The network that the case's weights are of."""
  params = case.prefix('param/')
  blocks = [name for name in params if name.startswith('blocks.')]
  return vit.DistilledViT(
    dim=params['cls_token'].shape[-1],
    depth=len({name.split('.')[1] for name in blocks}),
    heads=case.scalar('in/num_heads'),
    out_dim=len(params['head.bias']),
  )


def check_deit(case: Case):
  module = tiny_deit(case)
  check_module(case, module, atol=1e-5)
  x = nhwc(case['in/x'])
  variables = variables_for(module, dict(case.prefix('param/')), x)
  with jax.default_matmul_precision('highest'):
    _, state = module.apply(
      variables, x, capture_intermediates=True, mutable=['intermediates']
    )
  tokens = state['intermediates']['norm']['__call__'][0]
  within(case, 'out/cls_feature', tokens[:, 0], atol=1e-5)
  within(case, 'out/dist_feature', tokens[:, 1], atol=1e-5)


def check_attend_zoom(case: Case):
  """Both stages of TransGeo's aerial network."""
  module = tiny_deit(case)
  small, large = nhwc(case['in/x1']), nhwc(case['in/x2'])
  source = dict(case.prefix('param/'))
  variables = variables_for(module, source, small)
  with jax.default_matmul_precision('highest'):
    within(case, 'out/y1', module.apply(variables, small), atol=1e-5)
    exact, stored = (
      module.apply(variables, small, as_stored=as_stored, method='attention')
      for as_stored in (False, True)
    )
  within(case, 'out/attention_map_over_max', exact, atol=1e-5)
  case.equal('out/attention_png', np.rint(np.asarray(stored) * vit.LEVELS))
  within(case, 'out/attention_loaded', stored, atol=1e-6)
  grid = tuple(side // module.patch for side in large.shape[1:3])
  resized = vit.resize_attention(stored, grid)
  resized = np.asarray(resized).reshape(len(resized), -1)
  within(case, 'out/attention_resized', resized, atol=1e-6)
  keep = vit.kept_patches(stored, grid)
  case.equal('out/kept_patches_sorted', keep)
  positions = vit.resize_positions(source['pos_embed'], grid)
  within(case, 'out/pos_embed_stage2', positions, atol=1e-6)
  source['pos_embed'] = positions
  variables = variables_for(module, source, large)
  with jax.default_matmul_precision('highest'):
    y = module.apply(variables, large, keep=keep)
  within(case, 'out/y2', y, atol=1e-5)


def check_positions(case: Case):
  given = case['in/pos_embed']
  for key in case.keys('out/'):
    size, antialias = key.removeprefix('out/').split('_antialias')
    grid = tuple(int(side) // 16 for side in size.split('x'))
    got = vit.resize_positions(given, grid, antialias=antialias == '1')
    within(case, key, got, atol=1e-6)


CHECKS = {
  'deit_mini_pano': check_deit,
  'deit_mini_attend_zoom': check_attend_zoom,
  'deit_pos_embed_adapt': check_positions,
  'convnext_layernorm_cf': check_layernorm,
  'convnext_block': check_block,
  'convnext_downsample': check_downsample,
  'convnext_mini': check_small_network,
}
