"""Weights for two vision transformers, one of which may zoom (TransGeo).

Variables are {'params': {network: tree}, 'constants': {'grid': {network: rows
and columns of patches}}} and, where the satellite network zooms, its first
stage as 'teacher': {'reference_net': tree}. Networks carry the names of the
published checkpoints.

Source: names of Jeff-Zilence/TransGeo2022 and facebookresearch/deit.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cvgl_jax.models import torch_file, torch_weights, vit

ZOOMING = 'reference_net'
POSITIONS = f'{ZOOMING}.pos_embed'


def fill(
  variables: Mapping[str, Any],
  source: Mapping[str, np.ndarray],
  *,
  attend_grid: tuple[int, int],
  teacher_weights: str,
  out_dim: int,
  where: str,
) -> dict[str, Any]:
  """Takes a released checkpoint, or DeiT's ImageNet weights for both networks.

  Args:
    variables: see the module; 'constants' with values.
    source: torch state dict, 'query_net.cls_token', ... or 'cls_token', ...
    attend_grid: rows and columns of satellite patches in stage 1.
    teacher_weights: file of stage 1, or '' where `source` is of stage 1.
    out_dim: size of the embedding.
    where: the file of `source`, for messages.

  Raises:
    ValueError: it does not fit; the message says what is missing or to be set.
  """
  zooms = 'teacher' in variables
  if POSITIONS not in source:
    if zooms:
      raise ValueError(
        f'{where}: stage 2 starts from stage 1, not from ImageNet weights; give '
        'its run as config.init.workdir or its checkpoint as config.init.weights'
      )
    return _from_imagenet(variables, source, out_dim, where)
  result = dict(variables)
  if zooms:
    is_first = _patches(source[POSITIONS]) == math.prod(attend_grid)
    first, first_where = source, where
    if teacher_weights:
      first = torch_file.read(torch_file.fetch(teacher_weights))
      first_where = teacher_weights
    elif not is_first:
      raise ValueError(
        f'{where}: its satellite network has {_patches(source[POSITIONS])} '
        f'patches, stage 1 has {attend_grid[0]}x{attend_grid[1]} '
        '(config.method.attend_size). Stage 2 asks the network of stage 1 where '
        'to look: give its checkpoint as config.method.teacher_weights'
      )
    result |= torch_weights.convert(
      {'teacher': variables['teacher']},
      {k: v for k, v in first.items() if k.startswith(f'{ZOOMING}.')},
      where=f'{first_where}, as config.method.teacher_weights',
    )
    if is_first:
      grid = grids(variables)[ZOOMING]
      moved = _moved(source[POSITIONS], attend_grid, grid, where)
      source = {**source, POSITIONS: moved}
  params = {'params': variables['params']}
  return result | torch_weights.convert(params, source, where=where)


def from_run(
  variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
  """Takes the variables of another run; positions move to our grids.

  Args:
    variables: of `Method.init`, 'constants' with values.
    source: of the other run; of stage 1, or of the same stage.
    where: its workdir, for messages.

  Raises:
    ValueError: the other run has other networks; lists what differs.
  """
  ours, theirs = grids(variables), grids(source)
  params = {}
  for name, tree in source['params'].items():
    moved = _moved(tree['pos_embed'], theirs[name], ours[name], where)
    params[name] = {**tree, 'pos_embed': moved}
  filled = {'params': params, 'constants': variables['constants']}
  if 'teacher' in variables:
    first = {ZOOMING: source['params'][ZOOMING]}
    filled['teacher'] = source.get('teacher', first)
  there, wanted = _shapes(filled), _shapes(variables)
  different = [
    f'{name} is {there.get(name)}, expected {wanted.get(name)}'
    for name in sorted(there.keys() | wanted.keys())
    if there.get(name) != wanted.get(name)
  ]
  if different:
    more = f'; and {len(different) - 5} more' if len(different) > 5 else ''
    raise ValueError(
      f'{where}: a run of other networks; set width, depth, heads, patch, dim '
      'and attend_size of config.method as there. '
      + '; '.join(different[:5])
      + more
    )
  return filled


def grids(variables: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
  """Network -> (rows, columns) of patches that its positions are for."""
  return {
    name: tuple(np.asarray(grid).astype(int).tolist())
    for name, grid in variables['constants']['grid'].items()
  }


def _from_imagenet(variables, source, out_dim, where) -> dict[str, Any]:
  for name, grid in grids(variables).items():
    fitted = vit.fit_imagenet(source, grid=grid, out_dim=out_dim, where=where)
    variables = torch_weights.convert_part(
      variables, (name,), fitted, where=where
    )
  return variables


def _patches(positions: np.ndarray) -> int:
  return positions.shape[1] - vit.SPECIAL_TOKENS


def _moved(positions, from_grid, to_grid, where) -> np.ndarray:
  """Position embeddings on another grid."""
  try:
    return np.asarray(
      vit.resize_positions(positions, to_grid, from_grid=from_grid)
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
