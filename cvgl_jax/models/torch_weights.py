"""Puts the entries of a torch state dict into a tree of Flax variables.

Modules carry torch's names with '.' before an index written as '_' (see
`layers`), so one rule serves every network: kernel, scale <- weight; mean, var
<- running_mean, running_var; convolutions go from [out, in, *spatial] to
[*spatial, in, out], matrices are transposed, all else is taken as it is. Every
variable needs exactly one entry of the same shape, and every entry a variable,
unless the caller says which may be left over.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Flax leaf -> torch entry; other leaves keep their name.
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Entries of any network that are bookkeeping, not weights.
ALWAYS_EXTRA = (r'(.*\.)?num_batches_tracked',)
LISTED = 20


def convert(
  variables: Mapping[str, Any],
  source: Mapping[str, np.ndarray],
  *,
  where: str,
  allowed_extra: Sequence[str] = (),
  allowed_missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Fills `variables` from `source`.

  Args:
    variables: {'params': tree, 'batch_stats': tree, ...} of arrays or
      `jax.ShapeDtypeStruct`.
    source: torch names -> arrays in torch's layouts.
    where: the file, for messages.
    allowed_extra: regular expressions of entries (whole names) that may stay
      unused. `num_batches_tracked` always may.
    allowed_missing: regular expressions of variables (whole paths such as
      'gem2/p', without the collection) that keep the value they have (or their
      abstract shape).

  Returns:
    Trees of the same structure; NumPy arrays of the variables' types.

  Raises:
    ValueError: lists all missing, extra and mis-shaped entries, and those with
      values that are not finite.
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(dict(variables))
  targets = {}
  for path, leaf in flat:
    name = jax.tree_util.keystr(path[1:], simple=True, separator='/')
    targets[name, path[0].key] = leaf
  by_key = _by_key(source, where)
  result, missing, misshaped, damaged, used = [], [], [], [], set()
  for (path, _), leaf in targets.items():
    name = by_key.get(_key_of_path(path))
    if name is None:
      if not _matches(allowed_missing, path):
        missing.append(f'{path} {_torch_shape(path, leaf.shape)}')
      result.append(leaf)
      continue
    used.add(name)
    value = _to_flax(path, np.asarray(source[name]))
    if value.shape != leaf.shape:
      misshaped.append(
        f'{name} {tuple(source[name].shape)}, expected '
        f'{_torch_shape(path, leaf.shape)}'
      )
    elif np.issubdtype(value.dtype, np.floating) and not np.all(
      np.isfinite(value)
    ):
      damaged.append(name)
    result.append(value.astype(leaf.dtype, order='C'))
  extra = [
    name
    for name in source
    if name not in used and not _matches((*ALWAYS_EXTRA, *allowed_extra), name)
  ]
  problems = [
    _listing('missing', missing, extra),
    _listing('unexpected', extra),
    _listing('of another shape', misshaped),
    _listing('with values that are not finite', damaged),
  ]
  if any(problems):
    raise ValueError(
      f'{where}: does not fit the network ({len(used)} of {len(targets)} '
      'variables found).' + ''.join(problems)
    )
  return jax.tree_util.tree_unflatten(structure, result)


def convert_part(
  variables: Mapping[str, Any],
  path: Sequence[str],
  source: Mapping[str, np.ndarray],
  *,
  where: str,
  allowed_extra: Sequence[str] = (),
  allowed_missing: Sequence[str] = (),
) -> dict[str, Any]:
  """`convert` for one module; the variables of all others stay.

  Args:
    variables: {'params': tree, ...}.
    path: names of the modules that lead to it, such as ('model_1', 'model').
    source: torch names as the module alone has them.
    where, allowed_extra, allowed_missing: see `convert`.
  """

  def pick(tree):
    for name in path:
      tree = tree.get(name, {})
    return tree

  def put(tree, names, part):
    if not names:
      return part
    return {**tree, names[0]: put(tree[names[0]], names[1:], part)}

  parts = {name: pick(tree) for name, tree in variables.items()}
  converted = convert(
    {name: part for name, part in parts.items() if part},
    source,
    where=f'{where}, into {"/".join(path)}',
    allowed_extra=allowed_extra,
    allowed_missing=allowed_missing,
  )
  return {
    name: put(tree, path, converted[name]) if name in converted else tree
    for name, tree in variables.items()
  }


def drop_tied(
  source: Mapping[str, np.ndarray], aliases: Mapping[str, str], *, where: str
) -> dict[str, np.ndarray]:
  """Removes entries that repeat those of a shared module.

  A torch state dict lists a module once for every name that it has.

  Args:
    source: torch names -> arrays.
    aliases: prefix -> prefix of the module that it is the same object as.
    where: the file, for messages.

  Raises:
    ValueError: the two differ, so the checkpoint does not share the module.
  """
  result, different = {}, []
  for name, value in source.items():
    prefix = next((p for p in aliases if name.startswith(p)), None)
    if prefix is None:
      result[name] = value
      continue
    original = aliases[prefix] + name.removeprefix(prefix)
    if original not in source:
      result[name] = value  # Reported as unexpected later.
    elif not np.array_equal(value, source[original]):
      different.append(f'{name} differs from {original}')
  if different:
    raise ValueError(
      f'{where}: the method shares modules that the checkpoint keeps apart; use '
      'the settings it was trained with.' + _listing('different', different)
    )
  return result


def _by_key(source: Mapping[str, Any], where: str) -> dict[str, str]:
  """Separator-free key -> name."""
  result = {}
  for name in source:
    key = _key(name)
    if key in result:
      raise ValueError(
        f'{where}: entries {result[key]!r} and {name!r} have the same name up to '
        'separators'
      )
    result[key] = name
  return result


def _key(name: str) -> str:
  return re.sub(r'[./]', '_', name)


def _key_of_path(path: str) -> str:
  parent, _, leaf = path.rpartition('/')
  leaf = LEAVES.get(leaf, leaf)
  return _key(f'{parent}/{leaf}' if parent else leaf)


def _to_flax(path: str, value: np.ndarray) -> np.ndarray:
  """Torch layout to Flax layout."""
  if path.endswith('kernel') and value.ndim >= 2:
    return value.transpose(*range(2, value.ndim), 1, 0)
  return value


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that a torch entry for this variable has."""
  if path.endswith('kernel') and len(shape) >= 2:
    return (shape[-1], shape[-2], *shape[:-2])
  return tuple(shape)


def _matches(patterns: Sequence[str], name: str) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _listing(
  title: str, items: Sequence[str], candidates: Sequence[str] = ()
) -> str:
  """One line of an error message; '' for no items."""
  if not items:
    return ''
  keys = {_key(name): name for name in candidates[:LISTED]}
  shown = []
  for item in items[:LISTED]:
    wanted = _key_of_path(item.split(' ')[0])
    near = difflib.get_close_matches(wanted, keys, n=1, cutoff=0.8)
    shown.append(f'{item} (is it {keys[near[0]]}?)' if near else item)
  more = f', and {len(items) - LISTED} more' if len(items) > LISTED else ''
  return f'\n  {title} ({len(items)}): {", ".join(shown)}{more}'
