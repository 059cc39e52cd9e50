"""Is what was read what was saved? Shapes and checksums of trees of arrays."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

# Below this key of the JSON lie the checksums.
KEY = '_checksums'


def sign(state: Any, loop: Mapping[str, Any]) -> dict[str, Any]:
  """`loop` with the checksums of both.

  All processes must call it together where arrays are split over them.

  Args:
    state: tree of arrays, in any sharding.
    loop: JSON-serialisable.
  """
  return {**loop, KEY: {'arrays': _of_arrays(state), 'loop': _of_json(loop)}}


def fingerprint(state: Any) -> str:
  """One word for all arrays of a tree, in any sharding; see `sign`."""
  text = json.dumps(_of_arrays(state), sort_keys=True)
  return f'{zlib.crc32(text.encode()):08x}'


def verify(state: Any, loop: Mapping[str, Any]) -> dict[str, Any]:
  """`loop` without the checksums, which must be those of what was read.

  Args:
    state: what was signed or a part of it, in any sharding.
    loop: as signed. Without checksums there is a warning, no check.

  Raises:
    ValueError: what was read is not what was signed (names some of it).
  """
  found = _of_arrays(state)
  loop = dict(loop)
  stored = loop.pop(KEY, None)
  if stored is None:
    logging.warning('a checkpoint has no checksums: it was not verified')
    return loop
  wrong = [k for k, value in found.items() if stored['arrays'].get(k) != value]
  if stored['loop'] != _of_json(loop):
    wrong.append('the loop state')
  if wrong:
    raise ValueError(
      f'wrong checksum of {_some(wrong)}: the files changed after they were '
      'written'
    )
  return loop


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
  """Leaves by path, alike for dataclasses, mappings and tuples."""
  part = lambda key: jax.tree_util.keystr((key,), simple=True)
  return {
    tuple(map(part, path)): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def differences(
  stored: Mapping[tuple[str, ...], Any], wanted: Mapping[tuple[str, ...], Any]
) -> list[str]:
  """Lines that list the arrays that differ; none where all are alike.

  Args:
    stored: things with `shape` and `dtype`, by path.
    wanted: likewise.
  """
  text = lambda x: f'{np.dtype(x.dtype).name}{list(x.shape)}'
  names = lambda paths: ['/'.join(path) for path in paths]
  kinds = {
    'not in the checkpoint': names(wanted.keys() - stored.keys()),
    'only in the checkpoint': names(stored.keys() - wanted.keys()),
    'of another shape or type': [
      f'{"/".join(path)} is {text(stored[path])}, not {text(wanted[path])}'
      for path in wanted.keys() & stored.keys()
      if text(stored[path]) != text(wanted[path])
    ],
  }
  return [
    f'  {kind} ({len(found)}): {_some(sorted(found))}'
    for kind, found in kinds.items()
    if found
  ]


@jax.jit
def array_checksum(x: jax.Array) -> jax.Array:
  """uint32 scalar, of the bits of an array and of where they are.

  A sum of hashes modulo 2**32, so it does not depend on how the array is split
  over devices and is computed where the array is. One changed element always
  changes it; more do but for one in 2**32.

  Args:
    x: booleans, integers or floats of 8 to 64 bits, any shape.

  Source: the finaliser of MurmurHash3 (Austin Appleby, public domain), own
  implementation.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
  position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position += along * np.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  # Odd factors and shifted xor: every line maps one to one.
  bits ^= position * np.uint32(0x9E3779B9)
  bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
  return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)


def _of_arrays(tree: Any) -> dict[str, int]:
  # One program for each shape: a network has few of them. One at a time: CPU
  # processes that sum sharded arrays in several programs at once can lock up.
  return {
    '/'.join(path): int(array_checksum(x)) for path, x in by_path(tree).items()
  }


def _of_json(value: Any) -> int:
  # Twice, since JSON makes keys of mappings text, which sorts differently.
  plain = json.loads(json.dumps(value))
  return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def _some(names: list[str]) -> str:
  return '; '.join(names[:10]) + ('; ...' if len(names) > 10 else '')
