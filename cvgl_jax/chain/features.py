"""Features of a stage's network, kept on disk as long as they are valid.

`features/<stage>.<split>.npz` of the chain holds them with a key: a hash of the
weights, the pictures, the network and the way of embedding. A file with another
key is never read, whatever its name and date; it is made again.
"""

import hashlib
import io
import pathlib
import zipfile
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from cvgl_jax import evaluate, writer
from cvgl_jax.chain import ledger, recipe
from cvgl_jax.data import stream

# Part of every key: changes whenever the meaning of the files does.
_FORMAT = 'cvgl_jax chain features 1'
# Keys of config.data that change no feature.
_NEUTRAL = ('dir', 'threads', 'eval_batch_size', 'train_split')
_UNREADABLE = (
  *(OSError, ValueError, KeyError, EOFError),
  *(zipfile.BadZipFile, zlib.error),
)


class Embedded(NamedTuple):
  """A split and its features.

  Attributes:
    split: N pictures.
    features: [N, D] float32 of unit norm; None on all processes but the first.
    key: of the features.
    step: of the weights.
  """

  split: stream.Split
  features: np.ndarray | None
  key: str
  step: int


def embed(
  stage: recipe.Stage, names: tuple[str, ...], plan: recipe.Plan
) -> list[Embedded]:
  """Features of some splits by one stage, from disk where they are there.

  The weights are restored only if a split must be embedded. Each file is
  complete before the next split begins, so a stopped run loses one split.

  Raises:
    ValueError: there is no checkpoint, or features are not finite.
  """
  joint, embedder = plan.joint, None
  step, weights = ledger.weights_of(stage, joint.checkpoint)
  found = []
  for name in names:
    split = stage.open_split(name)
    key = _key(stage, split, weights=weights, options=joint.embedding)
    path = pathlib.Path(plan.workdir) / f'features/{stage.name}.{name}.npz'
    features = None if jax.process_index() else _load(path, key, split)
    if not ledger.agreed(lambda features=features: features is not None):
      if embedder is None:
        _, embedder, _ = evaluate.restored(
          stage.config, stage.workdir, str(step)
        )
      features = embedder(split, **joint.embedding)
      if jax.process_index() == 0:
        _store(path, key, split, features)
    found.append(Embedded(split, features, key, step))
  return found


def _key(
  stage: recipe.Stage, split: stream.Split, *, weights: str, options: Any
) -> str:
  data = {k: v for k, v in stage.config['data'].items() if k not in _NEUTRAL}
  parts = {
    'weights': weights,
    'pictures': _pictures(split),
    'method': stage.config['method'],
    'data': data,
    'options': options,
  }
  text = _FORMAT + recipe.digest_text(parts)
  return hashlib.sha256(text.encode()).hexdigest()


def _pictures(split: stream.Split) -> str:
  """Identifies the pictures of a split: its lists and a few pictures."""
  digest = hashlib.sha256(f'{split.name}/{split.view}/{len(split)}'.encode())
  digest.update(np.ascontiguousarray(split.place).tobytes())
  digest.update('\n'.join(map(str, split.path)).encode())
  for row in sorted({0, len(split) // 2, len(split) - 1}):
    digest.update(split.image_bytes(row))
  return digest.hexdigest()


def _load(
  path: pathlib.Path, key: str, split: stream.Split
) -> np.ndarray | None:
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      if str(file['key']) != key:
        logging.info('%s is of other weights or pictures: made again', path)
        return None
      features = file['features']
  except _UNREADABLE as error:
    logging.warning('%s is damaged and is made again (%s)', path, error)
    return None
  if features.dtype != np.float32 or features.shape[:1] != (len(split),):
    logging.warning('%s does not fit %s and is made again', path, split)
    return None
  return features


def _store(
  path: pathlib.Path, key: str, split: stream.Split, features: np.ndarray
) -> None:
  data = io.BytesIO()
  np.savez(
    data,
    key=np.array(key),
    features=features,
    place=split.place,
    path=np.asarray(split.path, str),
  )
  writer.replace_bytes(path, data.getvalue())
  logging.info('%s: %d x %d', path, *features.shape)
