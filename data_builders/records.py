"""Files of a built data set beyond what TFDS writes by itself.

- Shards: records are streamed to ArrayRecord files in order. TFDS' own writer
  keeps or copies a whole split in order to sort it; ours are in order already.
- `index-<split>.npz`: every feature of every row except the picture, so that
  plans and metrics never read records to learn labels.
- `<protocol>/index-<split>.npz`: splits that share the pictures of a stored
  one (`Selection`), such as VIGOR's galleries.
- `build_report.json`: what the builder noticed about the pictures.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

REPORT_FILE = 'build_report.json'


def index_file(split: str) -> str:
  """The file name of a split's index inside the version directory."""
  return f'index-{split}.npz'


@dataclasses.dataclass(frozen=True)
class Remark:
  """What a builder noticed about one picture.

  Attributes:
    kind: 'damaged' (cannot be read: the build refuses, or leaves it out when
      told so), 'missing' (a list names it, but it is not there or lacks its
      counterpart: left out), 'converted' (stored as another file, because the
      original would be read as other pixels) or 'note' (kept as it is, worth
      knowing).
    path: of the picture, as in the release.
    text: one sentence.
  """

  kind: str
  path: str
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """A split that has no pictures of its own: rows of a stored split.

  Attributes:
    protocol: the part of the data set that it belongs to, such as 'same'.
    split: its name, such as 'train_satellite'.
    stored: the split that has the pictures.
    rows: [N] row numbers in it.
    columns: what differs from the stored rows, or only this split knows:
      name -> [N, ...].
    gallery: the split (of this protocol) that row numbers in `columns`
      ('positive', 'semi_positives') refer to; '' = there are none.
  """

  protocol: str
  split: str
  stored: str
  rows: np.ndarray
  columns: Mapping[str, np.ndarray]
  gallery: str = ''


class ShardWriter:
  """Streams serialized records of one split into numbered shards.

  The number of shards is part of their names, so shards get a temporary name
  first and the final one in `close`.
  """

  def __init__(self, template: Any, *, shard_bytes: int):
    """Takes a tfds ShardedFileTemplate and the size at which a shard ends."""
    self._template, self._shard_bytes = template, shard_bytes
    self._writer = None
    self._files: list[pathlib.Path] = []
    self._written_bytes = 0
    self.lengths: list[int] = []
    self.num_bytes = 0

  def write(self, record: bytes) -> None:
    """Appends a record. Raises OSError if the disk is full."""
    if self._writer is None or self._written_bytes >= self._shard_bytes:
      self._next_shard()
    self._writer.write(record)
    self.lengths[-1] += 1
    self._written_bytes += len(record)
    self.num_bytes += len(record)

  def _end_shard(self) -> None:
    if self._writer is None:
      return
    try:
      self._writer.close()
    except RuntimeError as error:  # such as a full disk
      raise OSError(f'{self._files[-1]}: {error}') from error

  def _next_shard(self) -> None:
    self._end_shard()
    prefix = pathlib.Path(os.fspath(self._template.filepath_prefix()))
    path = prefix.with_name(f'{prefix.name}.shard{len(self._files):05d}')
    # group_size 1: one read fetches one record, not its neighbours too.
    self._writer = array_record_module.ArrayRecordWriter(
      os.fspath(path), 'group_size:1'
    )
    self._files.append(path)
    self._written_bytes = 0
    self.lengths.append(0)

  def close(self) -> None:
    """Ends the last shard and gives all their final names."""
    self._end_shard()
    for i, path in enumerate(self._files):
      path.rename(
        os.fspath(
          self._template.sharded_filepath(
            shard_index=i, num_shards=len(self._files)
          )
        )
      )


class Columns:
  """Collects the features of the rows of a split, picture left out."""

  def __init__(self):
    self._rows: dict[str, list[Any]] = {}

  def add(self, record: Mapping[str, Any]) -> None:
    for name, value in record.items():
      if name != 'image':
        self._rows.setdefault(name, []).append(value)

  def arrays(self) -> dict[str, np.ndarray]:
    """Name -> array [N, ...]; text is UTF-8 bytes of a fixed width."""
    arrays = {}
    for name, rows in self._rows.items():
      if isinstance(rows[0], str):
        rows = [row.encode('utf-8') for row in rows]
      arrays[name] = np.array(rows)
    return arrays


def save_index(
  folder: pathlib.Path, split: str, columns: Mapping[str, np.ndarray]
) -> None:
  """Writes the index of a stored split."""
  np.savez_compressed(folder / index_file(split), **columns)


def save_selection(
  folder: pathlib.Path,
  selection: Selection,
  stored: Mapping[str, np.ndarray],
) -> None:
  """Writes the index of a split without pictures of its own.

  Args:
    folder: of the version.
    selection: what it is.
    stored: the columns of the stored split.
  """
  columns = {name: column[selection.rows] for name, column in stored.items()}
  (folder / selection.protocol).mkdir(exist_ok=True)
  save_index(
    folder / selection.protocol,
    selection.split,
    {
      **columns,
      **selection.columns,
      'stored_split': np.array(selection.stored.encode()),
      'stored_row': np.asarray(selection.rows, np.int64),
      'gallery_split': np.array(selection.gallery.encode()),
    },
  )


def write_report(
  folder: pathlib.Path,
  pictures: Mapping[str, int],
  remarks: Sequence[Remark],
  *,
  protocols: Mapping[str, Mapping[str, int]],
) -> None:
  """Writes build_report.json: rows per split, remarks by kind."""
  kinds: dict[str, list[dict[str, str]]] = {}
  for remark in remarks:
    kinds.setdefault(remark.kind, []).append(
      {'path': remark.path, 'text': remark.text}
    )
  report = {'pictures': dict(pictures)}
  if protocols:
    report['protocols'] = protocols
  report |= kinds
  (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + '\n')


def protocol_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The indices of protocols that a complete data set has, from its report."""
  try:
    report = json.loads((folder / REPORT_FILE).read_text())
  except (OSError, ValueError):
    return []
  return [
    folder / protocol / index_file(split)
    for protocol, splits in report.get('protocols', {}).items()
    for split in splits
  ]
