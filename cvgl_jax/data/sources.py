"""Splits of built data sets: arrays about every row, picture bytes on demand.

A data set is a set of pictures in splits `<split>_<view>`, built by
data_builders as a TFDS data set in ArrayRecord. The columns (place, path, ...)
come from the small index that the builder stores beside the records, so that
opening a split reads no record.

Query and gallery pictures belong together if their `place` is the same. Where
the ground truth is more than that, queries know it: `positive`,
`semi_positives` and `offset_px` (VIGOR), `utm_m` (CVACT).
"""

import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

from cvgl_jax.data import catalog, flight, relations

COLUMNS = (
  'place',
  'path',
  'latlon_deg',
  'heading_deg',
  'altitude_m',
  'frame',
)
OPTIONAL = tuple(relations.OPTIONAL)


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
    name: such as 'train_drone', 'test_gallery_satellite' or
      'test_gallery_drone_low'.
    place: [N] int64.
    path: [N] text, as in the official release.
    latlon_deg: [N, 2] float64, WGS 84; NaN = unknown.
    heading_deg: [N] float32, clockwise from north; NaN = unknown.
    altitude_m: [N] float32, of the camera above the ground; NaN = unknown.
    frame: [N] int64, number in a flight or video; -1 = unknown.
    positive: [N] int64, the true row of the whole split `gallery`; -1 =
      unknown. None: the data set has no such relation, only places.
    semi_positives: [N, S] int64, rows of `gallery` that show the place too,
      off the centre; -1 = none. None as above.
    offset_px: [N, 1 + S, 2] float64, of the positive and the semi-positives:
      (latitude, longitude) offset of the tile's centre from the query, in
      pixels of a 640 px tile; the query is at x = 320 - longitude offset,
      y = 320 + latitude offset. None as above.
    utm_m: [N, 2] float64, easting and northing. None: not known.
    gallery: the split that `positive` and `semi_positives` are rows of; '' =
      they are None. `select` on the gallery makes those numbers void.
  """

  name: str
  place: np.ndarray
  path: np.ndarray
  latlon_deg: np.ndarray
  heading_deg: np.ndarray
  altitude_m: np.ndarray
  frame: np.ndarray
  positive: np.ndarray | None = None
  semi_positives: np.ndarray | None = None
  offset_px: np.ndarray | None = None
  utm_m: np.ndarray | None = None
  gallery: str = ''
  _records: tuple[_Records, ...]
  _origin: np.ndarray  # [N, 2] int64: which of _records, row in it

  @property
  def view(self) -> str:
    """What the pictures show: 'drone', 'satellite', ..., by the name."""
    return flight.view_of(self.name)

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
    columns = {
      name: None if (column := getattr(self, name)) is None else column[rows]
      for name in (*COLUMNS, *OPTIONAL)
    }
    return dataclasses.replace(self, _origin=self._origin[rows], **columns)


def open_split(
  data_dir: str | os.PathLike, name: str | Sequence[str], split: str
) -> Split:
  """Opens a split of a data set, or of several as one.

  Args:
    data_dir: root of the built data sets.
    name: the data set's path under `data_dir`, such as 'university1652' or
      'rendered_city/demo' or 'vigor/same' (its latest version is used), or
      several of them: their rows are concatenated in this order, and so are
      the rows of the gallery that `positive` counts.
    split: such as 'train_drone'; or 'train_drone_low', '..._middle',
      '..._high', the part of a drone split at that altitude (`flight`).

  Raises:
    ValueError: no such data set (with the command that builds it), no such
      split (with those that exist), data sets that share place numbers, or
      drone pictures whose altitude is not known.
  """
  names = [name] if isinstance(name, str) else list(name)
  if not names:
    raise ValueError('no name of a data set given')
  sets = [catalog.find(data_dir, one) for one in names]
  parts = [_open_one(data_set, split) for data_set in sets]
  _check_disjoint(names, parts)
  return Split(
    name=split,
    **{
      column: np.concatenate([getattr(part, column) for part in parts])
      for column in COLUMNS
    },
    **_relations(sets, parts),
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
  found = [catalog.find(data_dir, one).splits() for one in names]
  return [
    split for split in found[0] if all(split in others for others in found)
  ]


def class_labels(splits: Iterable[Split]) -> dict[int, int]:
  """Place -> class 0..K-1: the rank of the place among those of all splits.

  The union keeps one label per place even where a view has no picture of it.
  """
  places = np.unique(np.concatenate([split.place for split in splits]))
  return {int(place): label for label, place in enumerate(places)}


def _open_one(data_set: catalog.DataSet, name: str) -> Split:
  """A split of one data set, or the part of it that the name says."""
  split, altitude = flight.split_and_altitude(name)
  whole = _open_whole(data_set, split)
  if not altitude:
    return whole
  try:
    rows = flight.rows_at(whole, altitude)
  except ValueError as error:
    raise ValueError(f'{data_set.name}, {name}: {error}') from error
  return dataclasses.replace(whole.select(rows), name=name)


def _open_whole(data_set: catalog.DataSet, split: str) -> Split:
  data_set.check_split(split)
  stored = data_set.stored()
  index = data_set.index(split)
  if data_set.protocol:
    columns = _read_index(data_set, split)
    link = _read_link(index, stored)
    gallery = str(link['gallery_split'])
    source, rows = str(link['stored_split']), link['stored_row']
  else:
    gallery, source, rows = '', split, np.arange(stored[split])
    if index.is_file():
      columns = _read_index(data_set, split)
    else:
      logging.warning(
        '%s is missing: reading all records of %s instead', index, split
      )
      columns = _columns_of(_Records(str(data_set.folder), split))
  if len(columns['place']) != len(rows):
    raise ValueError(
      f'{index} has {len(columns["place"])} rows, the split {len(rows)}'
      ' records; build the data set anew with --overwrite'
    )
  return Split(
    name=split,
    gallery=gallery,
    _records=(_Records(str(data_set.folder), source),),
    _origin=np.stack([np.zeros(len(rows), np.int64), rows], axis=1),
    **columns,
  )


def _read_index(data_set: catalog.DataSet, split: str) -> dict[str, np.ndarray]:
  index = data_set.index(split)
  try:
    with np.load(index) as file:
      names = (*COLUMNS, *(name for name in OPTIONAL if name in file))
      columns = {name: file[name] for name in names}
  except catalog.UNREADABLE as error:
    remade = (
      ''
      if data_set.protocol
      else ' delete it (it is remade in memory from the records at each start)'
      ' or'
    )
    raise ValueError(
      f'{index} cannot be read ({error});{remade} build the data set anew with'
      ' --overwrite'
    ) from error
  columns['path'] = np.char.decode(columns['path'], 'utf-8')
  return columns


def _read_link(
  index: pathlib.Path, stored: dict[str, int]
) -> dict[str, np.ndarray]:
  """Which rows of which stored split the split of a protocol is."""
  try:
    with np.load(index) as file:
      link = {
        name: np.char.decode(file[name], 'utf-8')
        for name in ('stored_split', 'gallery_split')
      }
      link['stored_row'] = file['stored_row']
  except catalog.UNREADABLE as error:
    raise ValueError(
      f'{index} cannot be read ({error}); build the data set anew with'
      ' --overwrite'
    ) from error
  source, rows = str(link['stored_split']), link['stored_row']
  if source not in stored or (rows.size and rows.max() >= stored[source]):
    raise ValueError(
      f'{index} is about rows of {source!r} that the data set does not have; it'
      f' has {stored}; build it anew with --overwrite'
    )
  return link


def _columns_of(records: _Records) -> dict[str, np.ndarray]:
  """The index, from the records themselves: thousands a second."""
  rows = [records[row] for row in range(len(records))]
  paths = [row['path'].decode('utf-8') for row in rows]
  columns = {
    'place': np.array([row['place'] for row in rows], np.int64),
    'path': np.array(paths),
    'latlon_deg': np.array([row['latlon_deg'] for row in rows], np.float64),
    'heading_deg': np.array([row['heading_deg'] for row in rows], np.float32),
    'altitude_m': np.array([row['altitude_m'] for row in rows], np.float32),
    'frame': np.array([row['frame'] for row in rows], np.int64),
  }
  for name in OPTIONAL:
    if rows and name in rows[0]:
      columns[name] = np.array([row[name] for row in rows])
  return columns


def _relations(
  sets: Sequence[catalog.DataSet], parts: Sequence[Split]
) -> dict[str, Any]:
  """The optional columns of several parts as one, and `gallery`.

  Raises:
    ValueError: the parts are about galleries of different names.
  """
  galleries = sorted({part.gallery for part in parts if part.gallery})
  if len(galleries) > 1:
    raise ValueError(
      f'{[one.name for one in sets]}: the rows of {parts[0].name} refer to'
      f' different splits, {galleries}; they cannot be used as one'
    )
  starts = [0] * len(sets)
  for i in range(1, len(sets) if galleries else 0):
    starts[i] = starts[i - 1] + sets[i - 1].rows(galleries[0])
  columns = relations.join(
    [{name: getattr(part, name) for name in OPTIONAL} for part in parts],
    lengths=[len(part) for part in parts],
    gallery_starts=starts,
  )
  return {**columns, 'gallery': galleries[0] if galleries else ''}


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
