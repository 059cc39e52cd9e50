"""Torch's names and layouts for Flax variables and arrays, for tests."""

import re

import jax
import numpy as np

from cvgl_jax.models import torch_weights


def nhwc(x: np.ndarray) -> np.ndarray:
  """[B, C, H, W] -> [B, H, W, C]."""
  return x.transpose(0, 2, 3, 1)


def nchw(x) -> np.ndarray:
  """[B, H, W, C] -> [B, C, H, W]."""
  return np.asarray(x).transpose(0, 3, 1, 2)


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


def state_dict(variables) -> dict[str, np.ndarray]:
  """Variables as torch entries, in the references' names and layouts."""
  kinds = {'kernel': 'weight', 'scale': 'weight'}
  kinds |= {'mean': 'running_mean', 'var': 'running_var'}
  state = {}
  for path, value in jax.tree_util.tree_leaves_with_path(dict(variables)):
    *modules, kind = [key.key for key in path[1:]]
    name = '.'.join(map(torch_name, modules))
    value = np.ascontiguousarray(to_torch(kind, value))
    state[f'{name}.{kinds.get(kind, kind)}'] = value
  return state
