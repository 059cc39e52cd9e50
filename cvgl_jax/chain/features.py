"""Features of a stage's network, kept on disk as long as they are valid.

`features/<stage>.<split>.npz` of the chain holds them with a key: a hash of the
weights, the pictures, the network and the way of embedding. A file with another
key is never read, whatever its name and date; it is made again. With regions it
is `<stage>.<split>.regions<N>.npz`, so that both can be there.
"""

import functools
import hashlib
import io
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cvgl_jax import evaluate, writer
from cvgl_jax.chain import ledger, recipe
from cvgl_jax.data import stream

# Part of every key: changes whenever the meaning of the files does.
_FORMAT = 'cvgl_jax chain features 2'
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
    features: [N (1 + R), D] float32 of unit norm, every picture as a whole and
      then R regions of it; None on all processes but the first.
    key: of the features.
    step: of the weights.
  """

  split: stream.Split
  features: np.ndarray | None
  key: str
  step: int

  @property
  def whole(self) -> np.ndarray:
    """[N, D], without the regions."""
    return self.features[:: len(self.features) // len(self.split)]


class _File:
  """The file of one split's features, as process 0 sees it.

  Args:
    path: of the file.
    key: of the features that are wanted.
    split: N pictures.
    vectors: of a picture.
  """

  def __init__(
    self, path: pathlib.Path, *, key: str, split: stream.Split, vectors: int
  ):
    self._path, self._key, self._split = path, key, split
    self._rows = len(split) * vectors
    self.features: np.ndarray | None = None

  def load(self) -> bool:
    """Whether the features are there."""
    self.features = self._read()
    return self.features is not None

  def store(self, features: np.ndarray) -> bool:
    """Writes features at once."""
    self.features = features
    data = io.BytesIO()
    np.savez(
      data,
      key=np.array(self._key),
      features=features,
      place=self._split.place,
      path=np.asarray(self._split.path, str),
    )
    writer.replace_bytes(self._path, data.getvalue())
    logging.info('%s: %d x %d', self._path, *features.shape)
    return True

  def _read(self) -> np.ndarray | None:
    path = self._path
    if not path.exists():
      return None
    try:
      with np.load(path, allow_pickle=False) as file:
        if str(file['key']) != self._key:
          logging.info('%s is of other weights or pictures: made again', path)
          return None
        features = file['features']
    except _UNREADABLE as error:
      logging.warning('%s is damaged and is made again (%s)', path, error)
      return None
    if features.dtype != np.float32 or features.shape[:1] != (self._rows,):
      logging.warning('%s does not fit %s and is made again', path, self._split)
      return None
    return features


def embed(
  stage: recipe.Stage, wanted: Sequence[tuple[str, int]], plan: recipe.Plan
) -> list[Embedded]:
  """Features of some splits by one stage, from disk where they are there.

  The weights are restored only if a split must be embedded. Each file is
  complete before the next split begins, so a stopped run loses one split.

  Args:
    stage: whose network.
    wanted: names of splits, and of how many regions of every picture too.
    plan: of the chain.

  Raises:
    ValueError: there is no checkpoint, or features are not finite; process 0
      could not write (on the other processes).
    OSError: a file could not be written.
  """
  joint, embedder = plan.joint, None
  step, weights = ledger.weights_of(stage, joint.checkpoint)
  found = []
  for name, regions in wanted:
    split = stage.open_split(name)
    options = joint.embedding | {'regions': regions}
    key = _key(stage, split, weights=weights, options=options)
    suffix = f'.regions{regions}' if regions else ''
    path = pathlib.Path(plan.workdir) / 'features'
    path /= f'{stage.name}.{name}{suffix}.npz'
    file = _File(path, key=key, split=split, vectors=1 + regions)
    if not ledger.agreed(file.load):
      if embedder is None:
        _, embedder, _ = evaluate.restored(
          stage.config, stage.workdir, str(step)
        )
      features = embedder(split, **options)
      ledger.agreed(functools.partial(file.store, features))
    found.append(Embedded(split, file.features, key, step))
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
