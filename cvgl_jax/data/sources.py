"""Splits of built data sets: arrays about every row, picture bytes on demand.

A data set is a set of pictures in splits `<split>_<view>`, built by
data_builders as a TFDS data set in ArrayRecord. The columns (place, path, ...)
come from the small index that the builder stores beside the records, so that
opening a split reads no record.
"""

import dataclasses
import json
import os
import pathlib
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
COLUMNS = (
  'place',
  'path',
  'latlon_deg',
  'heading_deg',
  'altitude_m',
  'frame',
)
# What np.load raises on a cut or foreign file.
_UNREADABLE = (
  OSError,
  ValueError,
  KeyError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)


class _Records:
  """The records of one split of one data set; opened at the first read.

  Any number of threads may read. A pickle carries the place on disk only, so
  worker processes open their own files.
  """

  def __init__(self, folder: str, split: str):
    self._folder, self._split = folder, split
    self._source = None
    self._lock = threading.Lock()

  def __getstate__(self) -> tuple[str, str]:
    return self._folder, self._split

  def __setstate__(self, state: tuple[str, str]) -> None:
    self.__init__(*state)

  def __getitem__(self, row: int) -> dict[str, Any]:
    try:
      return self._open()[row]
    except Exception as error:
      raise ValueError(
        f'{self._folder}, split {self._split}: record {row} cannot be read'
        f' ({error}); build the data set anew with --overwrite'
      ) from error

  def __len__(self) -> int:
    return len(self._open())

  def _open(self) -> Any:
    if self._source is None:
      with self._lock:
        if self._source is None:
          import tensorflow_datasets as tfds

          # Not the builder's class: constructing it would need its module.
          builder = tfds.builder_from_directory(self._folder)
          self._source = builder.as_data_source(
            self._split, decoders={'image': tfds.decode.SkipDecoding()}
          )
    return self._source


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Split:
  """The pictures of one split (of one or several data sets), N rows.

  Attributes:
    name: such as 'train_drone' or 'test_gallery_satellite'.
    place: [N] int64.
    path: [N] text, as in the official release.
    latlon_deg: [N, 2] float64, WGS 84; NaN = unknown.
    heading_deg: [N] float32, clockwise from north; NaN = unknown.
    altitude_m: [N] float32, of the camera above the ground; NaN = unknown.
    frame: [N] int64, number in a flight or video; -1 = unknown.
  """

  name: str
  place: np.ndarray
  path: np.ndarray
  latlon_deg: np.ndarray
  heading_deg: np.ndarray
  altitude_m: np.ndarray
  frame: np.ndarray
  _records: tuple[_Records, ...]
  _origin: np.ndarray  # [N, 2] int64: which of _records, row in it

  @property
  def view(self) -> str:
    """The last part of the name: 'drone', 'satellite', ..."""
    return self.name.rsplit('_', 1)[-1]

  def __len__(self) -> int:
    return len(self.place)

  def __repr__(self) -> str:
    places = len(np.unique(self.place))
    return f'Split({self.name}: {len(self)} pictures of {places} places)'

  def image_bytes(self, row: int) -> bytes:
    """The encoded picture of a row. Any number of threads may call this.

    Raises:
      IndexError: there is no such row.
      ValueError: the record is damaged on disk.
    """
    if not 0 <= row < len(self):
      raise IndexError(f'{self.name} has rows 0 to {len(self) - 1}, not {row}')
    source, record = self._origin[row]
    return self._records[source][int(record)]['image']

  def select(self, rows: Sequence[int] | np.ndarray) -> 'Split':
    """These rows, in this order, as a split of the same name.

    Args:
      rows: row numbers, or a boolean mask [N].

    Raises:
      IndexError: there is no such row.
    """
    rows = np.asarray(rows)
    if rows.dtype == bool:
      if rows.shape != (len(self),):
        raise IndexError(f'mask of shape {rows.shape} for {len(self)} rows')
      rows = np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
      raise IndexError(f'{self.name} has rows 0 to {len(self) - 1}')
    columns = {name: getattr(self, name)[rows] for name in COLUMNS}
    return dataclasses.replace(self, _origin=self._origin[rows], **columns)


def open_split(
  data_dir: str | os.PathLike, name: str | Sequence[str], split: str
) -> Split:
  """Opens a split of a data set, or of several as one.

  Args:
    data_dir: root of the built data sets.
    name: the data set's path under `data_dir`, such as 'university1652' or
      'rendered_city/demo' (its latest version is used), or several of them:
      their rows are concatenated in this order.
    split: such as 'train_drone'.

  Raises:
    ValueError: no such data set (with the command that builds it), no such
      split (with those that exist), or data sets that share place numbers.
  """
  names = [name] if isinstance(name, str) else list(name)
  if not names:
    raise ValueError('no name of a data set given')
  parts = [_open_one(_version_dir(data_dir, one), one, split) for one in names]
  _check_disjoint(names, parts)
  return Split(
    name=split,
    **{
      column: np.concatenate([getattr(part, column) for part in parts])
      for column in COLUMNS
    },
    _records=tuple(records for part in parts for records in part._records),
    _origin=np.concatenate(
      [part._origin + np.array([[i, 0]]) for i, part in enumerate(parts)]
    ),
  )


def split_names(
  data_dir: str | os.PathLike, name: str | Sequence[str]
) -> list[str]:
  """The splits of a data set; of several, those that all of them have."""
  names = [name] if isinstance(name, str) else list(name)
  found = [_splits_in(_version_dir(data_dir, one)) for one in names]
  return [
    split for split in found[0] if all(split in others for others in found)
  ]


def class_labels(splits: Iterable[Split]) -> dict[int, int]:
  """Place -> class 0..K-1: the rank of the place among those of all splits.

  The union keeps one label per place even where a view has no picture of it.
  """
  places = np.unique(np.concatenate([split.place for split in splits]))
  return {int(place): label for label, place in enumerate(places)}


def _open_one(folder: pathlib.Path, name: str, split: str) -> Split:
  splits = _splits_in(folder)
  if split not in splits:
    raise ValueError(f'{name} has no split {split!r}; it has {list(splits)}')
  records = _Records(str(folder), split)
  index = folder / f'index-{split}.npz'
  if index.is_file():
    columns = _read_index(index)
  else:
    logging.warning(
      '%s is missing: reading all records of %s instead', index, split
    )
    columns = _columns_of(records)
  rows = len(columns['place'])
  if rows != splits[split]:
    raise ValueError(
      f'{index} has {rows} rows, the split {splits[split]} records; build the'
      ' data set anew with --overwrite'
    )
  origin = np.stack([np.zeros(rows, np.int64), np.arange(rows)], axis=1)
  return Split(name=split, _records=(records,), _origin=origin, **columns)


def _read_index(index: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(index) as file:
      columns = {name: file[name] for name in COLUMNS}
  except _UNREADABLE as error:
    raise ValueError(
      f'{index} cannot be read ({error}); delete it (it is remade in memory'
      ' from the records at each start) or build the data set anew with'
      ' --overwrite'
    ) from error
  columns['path'] = np.char.decode(columns['path'], 'utf-8')
  return columns


def _columns_of(records: _Records) -> dict[str, np.ndarray]:
  """The index, from the records themselves: thousands a second."""
  rows = [records[row] for row in range(len(records))]
  paths = [row['path'].decode('utf-8') for row in rows]
  return {
    'place': np.array([row['place'] for row in rows], np.int64),
    'path': np.array(paths),
    'latlon_deg': np.array([row['latlon_deg'] for row in rows], np.float64),
    'heading_deg': np.array([row['heading_deg'] for row in rows], np.float32),
    'altitude_m': np.array([row['altitude_m'] for row in rows], np.float32),
    'frame': np.array([row['frame'] for row in rows], np.int64),
  }


def _check_disjoint(names: Sequence[str], parts: Sequence[Split]) -> None:
  seen: dict[int, str] = {}
  for name, part in zip(names, parts, strict=True):
    places = np.unique(part.place).tolist()
    shared = [place for place in places if place in seen]
    if shared:
      more = ', ...' if len(shared) > 8 else ''
      raise ValueError(
        f'{name} and {seen[shared[0]]} share {len(shared)} place numbers in'
        f' {part.name} ({", ".join(map(str, shared[:8]))}{more}); data sets'
        ' that are used together need different numbers'
      )
    seen.update(dict.fromkeys(places, name))


def _splits_in(folder: pathlib.Path) -> dict[str, int]:
  """Split -> number of records, from TFDS' metadata."""
  try:
    info = json.loads((folder / 'dataset_info.json').read_text())
    return {
      split['name']: sum(map(int, split['shardLengths']))
      for split in info['splits']
    }
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f'{folder / "dataset_info.json"} cannot be read ({error}); build the'
      ' data set anew with --overwrite'
    ) from error


def _version_dir(data_dir: str | os.PathLike, name: str) -> pathlib.Path:
  """The folder of the latest version of a data set."""
  root = pathlib.Path(data_dir).expanduser().absolute()
  folder = root / name
  if (folder / 'dataset_info.json').is_file():
    return folder  # the name includes the version
  versions = _versions(folder)
  if versions:
    return folder / versions[-1]
  configs = sorted(p.name for p in folder.glob('*/') if _versions(p))
  if configs:
    raise ValueError(
      f'{name} in {root} holds several data sets: use one of'
      f' {[f"{name}/{config}" for config in configs]}'
    )
  there = _data_sets(root)
  raise ValueError(
    f'no data set {name!r} in {root}; there are {there or "none"}.'
    f' Build it with\n  {_build_command(root, name)}'
  )


def _versions(folder: pathlib.Path) -> list[str]:
  """Complete versions in a folder, oldest first."""
  found = [
    (tuple(map(int, match.groups())), path.name)
    for path in folder.glob('*.*.*')
    if (match := VERSION.fullmatch(path.name))
    and (path / 'dataset_info.json').is_file()
  ]
  return [name for _, name in sorted(found)]


def _data_sets(root: pathlib.Path) -> list[str]:
  found = {
    path.parent.parent.relative_to(root).as_posix()
    for depth in range(1, 5)
    for path in root.glob('*/' * depth + 'dataset_info.json')
    if VERSION.fullmatch(path.parent.name)
  }
  return sorted(found)


def _build_command(root: pathlib.Path, name: str) -> str:
  """The command for 'builder', 'builder/config' or 'folder/builder'."""
  # Looked up by folder name: this package does not import the builders.
  builders = pathlib.Path(__file__).parents[2] / 'data_builders'
  parts = pathlib.PurePath(name).parts
  for i, part in enumerate(parts):
    module = builders / part / f'{part}_dataset_builder.py'
    if module.is_file():
      config = f' --config={parts[i + 1]}' if i + 1 < len(parts) else ''
      manual = (builders / part / 'download.py').is_file()
      return (
        f'python -m data_builders data_builders/{part}'
        f' --data_dir={root.joinpath(*parts[:i])}{config}'
        f'{" --manual_dir=<the unpacked download>" if manual else ""}'
      )
  return (
    f'python -m data_builders data_builders/<builder> --data_dir={root}'
    ' (`python -m data_builders --help` lists the builders)'
  )
