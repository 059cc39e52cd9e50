"""Diffused rows on disk, named by a hash of what they were computed from.

A file is found again only by the same features and parameters, bit for bit.
(The published code names its file after the models, and so reuses rows that
were diffused with other options or features.) Files are plain `.npz`; a file
that is damaged or does not fit is reported and replaced.
"""

import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping

import numpy as np
from absl import logging

# Part of every hash: changes whenever the meaning of the stored rows does.
_FORMAT = 'cvgl_jax diffusion 1'


def key(features: np.ndarray, *, parameters: Mapping[str, int | float]) -> str:
  """Hex digest of features [N, D] float32 and of what was done to them."""
  digest = hashlib.sha256(_FORMAT.encode())
  description = {**parameters, 'shape': features.shape}
  digest.update(json.dumps(description, sort_keys=True).encode())
  digest.update(np.ascontiguousarray(features, '<f4'))
  return digest.hexdigest()


def path(folder: str, digest: str) -> pathlib.Path:
  """The file of a key."""
  return pathlib.Path(folder) / f'diffusion_{digest[:32]}.npz'


def load(
  folder: str, digest: str, *, shape: tuple[int, int], nodes: int
) -> dict[str, np.ndarray] | None:
  """Arrays that `store` wrote, or None where they must be computed.

  Args:
    folder: of the cache.
    digest: of `key`.
    shape: [M, T] of the rows that are expected.
    nodes: N; neighbour numbers must be below.
  """
  file = path(folder, digest)
  if not file.exists():
    return None
  try:
    with np.load(file, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
    _check(arrays, digest, shape, nodes)
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
    logging.warning(
      'diffusion cache: %s is damaged and is computed again (%s)', file, error
    )
    return None
  del arrays['key']
  return arrays


def store(folder: str, digest: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays so that no reader ever sees half a file.

  A full disk costs the cache, not the result: it is reported as a warning.
  """
  file = path(folder, digest)
  temporary = None
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix='.tmp')
    with os.fdopen(handle, 'wb') as stream:
      np.savez(stream, key=np.array(digest), **arrays)
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(temporary, file)
  except OSError as error:
    logging.warning('diffusion cache: cannot write %s: %s', file, error)
    if temporary is not None:
      pathlib.Path(temporary).unlink(missing_ok=True)


def _check(arrays, digest, shape, nodes) -> None:
  """Raises ValueError unless arrays are rows of that key and shape."""
  expected = {
    'nodes': (shape[:1], np.int64),
    'ids': (shape, np.int32),
    'values': (shape, np.float32),
    'iterations': (shape[:1], np.int32),
    'residual': (shape[:1], np.float32),
  }
  if set(arrays) != {'key', *expected}:
    raise ValueError(f'it holds {sorted(arrays)}')
  if str(arrays['key']) != digest:
    raise ValueError('it belongs to other features or options')
  for name, (wanted, dtype) in expected.items():
    got = arrays[name]
    if got.shape != wanted or got.dtype != dtype:
      raise ValueError(f'{name} is {got.dtype}{got.shape}')
  ids = arrays['ids']
  if (
    ids.min() < 0
    or ids.max() >= nodes
    or not np.isfinite(arrays['values']).all()
  ):
    raise ValueError('values out of range')
