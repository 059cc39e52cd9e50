"""Small batches of two views and published names, for tests of the methods."""

import functools
import re

import jax
import numpy as np

from tests import torch_names
from tests.models import torch_file_test

SIZES = {'panorama': (64, 128), 'satellite': (64, 64)}


def batch(sizes=None, size=4, seed=0) -> dict:
  """Random pictures, uint8; row i of all views is one place."""
  rng = np.random.default_rng(seed)
  place = np.arange(size, dtype=np.int32)
  return {
    view: {
      'image': rng.integers(0, 256, (size, *size_hw, 3), np.uint8),
      'label': place,
      'place': place,
      'row': place,
    }
    for view, size_hw in (sizes or SIZES).items()
  }


def filled(method, sizes=None, seed=0) -> dict:
  """Random variables that all matter, without compiling the initialiser."""
  return _filled(method, tuple((sizes or SIZES).items()), seed)


@functools.cache
def _filled(method, sizes, seed):
  sizes = dict(sizes)
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch(sizes, size=1))
  rng = np.random.default_rng(seed)

  def draw(path, x):
    name = path[-1].key
    value = 0.3 * rng.standard_normal(x.shape) / max(1, x.ndim - 1)
    value = np.abs(value) if name == 'var' else value
    return np.float32(
      value + (name in ('scale', 'gamma', 'var', 'logit_scale'))
    )

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  if 'constants' in variables:  # Numbers that mean something.
    init = lambda: method.init(jax.random.key(0), batch(sizes))['constants']
    variables['constants'] = jax.device_get(jax.jit(init)())
  return variables


def published(tree, prefix='') -> dict[str, np.ndarray]:
  """A tree of parameters as torch entries, in the names of the releases."""
  state = torch_names.state_dict({'params': tree})
  name = lambda key: re.sub(
    r'(stages|downsample_layers)_(\d)(?=\.)', r'\1.\2', key
  )
  return {
    f'{prefix}{name(key).lstrip(".")}': value for key, value in state.items()
  }


def timm(tree, prefix='') -> dict[str, np.ndarray]:
  """A ConvNeXt as timm names it."""
  rules = (
    (r'downsample_layers\.0\.(.*)', r'stem.\1'),
    (r'downsample_layers\.(\d)\.(.*)', r'stages.\1.downsample.\2'),
    (r'(stages\.\d)\.(\d+)\.dwconv\.(.*)', r'\1.blocks.\2.conv_dw.\3'),
    (r'(stages\.\d)\.(\d+)\.pwconv(\d)\.(.*)', r'\1.blocks.\2.mlp.fc\3.\4'),
    (r'(stages\.\d)\.(\d+)\.(.*)', r'\1.blocks.\2.\3'),
    (r'norm\.(.*)', r'head.norm.\1'),
  )
  result = {}
  for name, value in published(tree).items():
    for pattern, replacement in rules:
      if re.fullmatch(pattern, name):
        name = re.sub(pattern, replacement, name)
        break
    result[f'{prefix}{name}'] = value
  return result


def write(path, state, *, inside='') -> str:
  """A `.pth` file as torch.save writes it; `inside`: under that key."""
  tensors = torch_file_test.StateDict(
    {name: torch_file_test.Tensor(value) for name, value in state.items()}
  )
  checkpoint = {'epoch': 50, inside: tensors} if inside else tensors
  return torch_file_test.write(path, checkpoint)


def check_equal(got, expected):
  """Two trees hold the same numbers."""
  jax.tree.map(np.testing.assert_array_equal, got, expected)
