"""Batches of decoded pictures: Grain executes the plan, threads first.

The order is the plan's (`plans`); here it is only cut into this process's
share, decoded in threads (OpenCV and Pillow release the interpreter lock) and
stacked. Nothing is carried from batch to batch: batch k of an epoch is a pure
function of (plan, seed, epoch, k), so a run resumes at any step, with another
number of threads, workers or processes, without saved iterator state.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from grain import experimental

Load = Callable[[bytes, np.random.Generator | None, str, str], np.ndarray]

_BATCHES_AHEAD = 2  # batches held ready, besides the one being filled


class Split(Protocol):
  """What this module needs of `sources.Split`."""

  name: str
  view: str
  place: np.ndarray
  path: np.ndarray

  def __len__(self) -> int: ...

  def image_bytes(self, row: int) -> bytes: ...


def batches(
  splits: Mapping[str, Split],
  rows: np.ndarray,
  *,
  views: Sequence[str],
  load: Load,
  labels: Mapping[int, int] | np.ndarray | None,
  seed: int,
  epoch: int,
  start_step: int = 0,
  process: tuple[int, int] = (0, 1),
  threads: int | None = None,
  workers: int = 0,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
  """Yields this process's share of the batches of one epoch.

  Args:
    splits: view -> split that the rows of its slot point into.
    rows: int [steps, batch, slots], a plan's epoch; the same on every process.
    views: the view of each slot; a view may have several.
    load: bytes, generator, view, name for errors -> uint8 [H, W, 3]; with a
      generator of its own for every (seed, epoch, position in the epoch).
    labels: place -> class, as a mapping or as an array indexed by the place;
      None makes the place itself the label.
    seed: of the run, not negative.
    epoch: counted from 0.
    start_step: first batch to yield.
    process: (index, count); the shares of all processes, concatenated in
      order of the index, are the global batch.
    threads: that decode; default: the cores this process may use.
    workers: processes that decode; 0 (recommended) uses threads alone.

  Yields:
    view -> {'image': uint8 [b n, H, W, 3], 'label': int32 [b n],
    'place': int32 [b n], 'row': int32 [b n], the number in the split} with b =
    batch / process count, for a view of n slots (mostly 1): rows n k to
    n k + n - 1 are those of row k of the plan, in the order of the slots.

  Raises:
    ValueError: sizes that do not fit, a row or place without an entry, a
      picture that cannot be decoded (names split, row and path).
  """
  rows = np.asarray(rows)
  _check_plan(splits, rows, views)
  _check_share(rows.shape[1], process)
  if not 0 <= start_step <= rows.shape[0]:
    raise ValueError(
      f'start_step {start_step} is outside the {rows.shape[0]} steps of the plan'
    )
  index, count = process
  local = rows.shape[1] // count
  numbers = np.arange(rows.size).reshape(rows.shape)
  mine = slice(index * local, (index + 1) * local)
  task = _LoadRow(
    splits=tuple(splits[view] for view in views),
    classes=tuple(
      _classes(splits[view], labels, np.unique(rows[..., slot]))
      for slot, view in enumerate(views)
    ),
    views=tuple(views),
    load=load,
    seed=seed,
    epoch=epoch,
  )
  keys = np.stack([rows, numbers], axis=-1)[start_step:, mine]
  keys = keys.reshape(-1, len(views), 2)  # [samples, slots, (row, position)]
  return map(
    _peers_in_a_row, _run(keys, task, local, threads=threads, workers=workers)
  )


def sequential(
  split: Split,
  *,
  load: Load,
  batch_size: int,
  process: tuple[int, int] = (0, 1),
  threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields all pictures of a split in row order, for embedding.

  Every process gets the same number of batches; what is missing in the last
  ones is padded.

  Args:
    split: the pictures.
    load: as for `batches`, with an attribute `image_size` (height, width); it
      gets no random generator.
    batch_size: over all processes.
    process: (index, count), as for `batches`.
    threads: that decode; default: the cores this process may use.

  Yields:
    {'image': uint8 [b, H, W, 3], 'row': int64 [b]} with b = batch_size /
    process count; padding has row -1 and a black picture.

  Raises:
    ValueError: as `batches`.
  """
  _check_share(batch_size, process)
  index, count = process
  local = batch_size // count
  steps = -(-len(split) // batch_size)
  rows = np.full(steps * batch_size, -1, np.int64)
  rows[: len(split)] = np.arange(len(split))
  mine = rows.reshape(steps, count, local)[:, index].reshape(-1)
  task = _LoadInOrder(split=split, load=load)
  return _run(mine, task, local, threads=threads, workers=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadRow(grain.transforms.Map):
  """One place in the batch: view -> the pictures of its slots, [n, ...]."""

  splits: tuple[Split, ...]
  classes: tuple[np.ndarray, ...]
  views: tuple[str, ...]
  load: Load
  seed: int
  epoch: int

  def map(self, key: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    sample: dict[str, list[dict[str, Any]]] = {}
    for slot, view in enumerate(self.views):
      row, position = (int(number) for number in key[slot])
      split = self.splits[slot]
      word = (self.epoch << 40) | position
      rng = np.random.Generator(np.random.Philox(key=[self.seed, word]))
      picture = {
        'image': _load(self.load, split, row, view=view, rng=rng),
        'label': self.classes[slot][row],
        'place': np.int32(split.place[row]),
        'row': np.int32(row),
      }
      sample.setdefault(view, []).append(picture)
    return {view: _stack(pictures) for view, pictures in sample.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LoadInOrder(grain.transforms.Map):
  """One picture of a split, or padding."""

  split: Split
  load: Load

  def map(self, row: int) -> dict[str, Any]:
    row = np.int64(row)
    if row < 0:
      height, width = self.load.image_size
      return {'image': np.zeros((height, width, 3), np.uint8), 'row': row}
    image = _load(
      self.load, self.split, int(row), view=self.split.view, rng=None
    )
    return {'image': image, 'row': row}


def _stack(pictures: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Pictures as one, [n, ...]; a single one is not copied."""
  if len(pictures) == 1:
    return {key: np.asarray(value)[None] for key, value in pictures[0].items()}
  return {
    key: np.stack([picture[key] for picture in pictures]) for key in pictures[0]
  }


def _peers_in_a_row(
  batch: dict[str, dict[str, np.ndarray]],
) -> dict[str, dict[str, np.ndarray]]:
  """[b, n, ...] -> [b n, ...]."""
  return {
    view: {
      key: value.reshape(-1, *value.shape[2:]) for key, value in arrays.items()
    }
    for view, arrays in batch.items()
  }


def _run(
  keys: np.ndarray,
  task: grain.transforms.Map,
  batch_size: int,
  *,
  threads: int | None,
  workers: int,
) -> Iterator[Any]:
  """Maps `task` over `keys` in order, in parallel, in bounded memory."""
  threads = threads or _cores()
  samples = grain.MapDataset.source(keys).map(task)
  if workers:
    # Workers take turns by element, so an element must be a whole batch.
    stacked = samples.batch(batch_size, drop_remainder=True).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    options = grain.multiprocessing.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD
    )
    return iter(stacked.mp_prefetch(options))
  # An element is one sample: all threads work on the batch that is due.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, batch_size)
  )
  stacked = samples.to_iter_dataset(options).batch(
    batch_size, drop_remainder=True
  )
  return iter(
    experimental.ThreadPrefetchIterDataset(
      stacked, prefetch_buffer_size=_BATCHES_AHEAD
    )
  )


def _load(
  load: Load,
  split: Split,
  row: int,
  *,
  view: str,
  rng: np.random.Generator | None,
) -> np.ndarray:
  where = f'{split.name}[{row}] {split.path[row]}'
  return load(split.image_bytes(row), rng, view, where)


def _check_plan(
  splits: Mapping[str, Split], rows: np.ndarray, views: Sequence[str]
) -> None:
  if rows.ndim != 3 or rows.shape[2] != len(views):
    raise ValueError(
      f'the plan has shape {rows.shape}; expected [steps, batch, '
      f'{len(views)}] for views {tuple(views)}'
    )
  for slot, view in enumerate(views):
    if view not in splits:
      raise ValueError(
        f'no split for view {view!r}; there are {sorted(splits)}'
      )
    column = rows[..., slot]
    if column.size and not 0 <= column.min() <= column.max() < len(
      splits[view]
    ):
      raise ValueError(
        f'the plan asks for rows {column.min()} to {column.max()} of '
        f'{splits[view].name}, which has {len(splits[view])} pictures'
      )


def _check_share(batch_size: int, process: tuple[int, int]) -> None:
  index, count = process
  if not 0 <= index < count:
    raise ValueError(f'process {index} of {count}; expected 0 to {count - 1}')
  if batch_size < 1 or batch_size % count:
    raise ValueError(
      f'batch {batch_size} is not divisible by {count} processes; '
      f'use {max(count, batch_size // count * count)}'
    )


def _classes(
  split: Split,
  labels: Mapping[int, int] | np.ndarray | None,
  used: np.ndarray,
) -> np.ndarray:
  """The class of every row of a split, int32 [N].

  Args:
    split: the pictures.
    labels: place -> class; None: the place is the class.
    used: rows that must have a class; other rows without one get -1.
  """
  places, inverse = np.unique(split.place, return_inverse=True)
  if places.size and places[-1] > np.iinfo(np.int32).max:
    raise ValueError(
      f'{split.name}: place {places[-1]} does not fit 32 bits; number the '
      'places of the data set below 2147483648'
    )
  if labels is None:
    return np.asarray(split.place, np.int32)
  if isinstance(labels, Mapping):
    values = [labels.get(int(place), -1) for place in places]
  else:
    known = (places >= 0) & (places < len(labels))
    values = np.where(known, labels[np.where(known, places, 0)], -1)
  classes = np.asarray(values, np.int32)[inverse]
  orphans = np.unique(split.place[used[classes[used] < 0]])
  if orphans.size:
    raise ValueError(
      f'{split.name}: no class for places {orphans[:5].tolist()} '
      f'({orphans.size} in all); make the labels from the training splits'
    )
  return classes


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
