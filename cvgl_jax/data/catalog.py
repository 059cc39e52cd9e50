"""Built data sets on disk: from a name to a folder, its splits, its protocols.

  <data_dir>/<name>/<version>/                 'university1652'
  <data_dir>/<name>/<config>/<version>/        'rendered_city/demo'
  <data_dir>/<name>/<version>/<protocol>/      'vigor/same'

The last is a protocol: index files that choose rows of the splits stored in the
version folder, so that several protocols share the pictures.
"""

import dataclasses
import json
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np

from cvgl_jax.data import flight

VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
INDEX = re.compile(r'index-(.+)\.npz')
# What np.load raises on a cut or foreign file.
UNREADABLE = (
  OSError,
  ValueError,
  KeyError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set, or one protocol of it.

  Attributes:
    name: as the user gave it.
    folder: of the version: TFDS' metadata and the records.
    protocol: '' or the name of the subfolder with the indices.
  """

  name: str
  folder: pathlib.Path
  protocol: str = ''

  def index(self, split: str) -> pathlib.Path:
    """The file with the columns of a split."""
    return self.folder / self.protocol / f'index-{split}.npz'

  def stored(self) -> dict[str, int]:
    """Splits that have records of their own -> how many.

    Raises:
      ValueError: the metadata cannot be read.
    """
    try:
      info = json.loads((self.folder / 'dataset_info.json').read_text())
      return {
        split['name']: sum(map(int, split['shardLengths']))
        for split in info['splits']
      }
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(
        f'{self.folder / "dataset_info.json"} cannot be read ({error}); build'
        ' the data set anew with --overwrite'
      ) from error

  def splits(self) -> list[str]:
    """The splits that can be opened."""
    if self.protocol:
      return _indices(self.folder / self.protocol)
    return list(self.stored())

  def check_split(self, split: str) -> None:
    """Raises ValueError, with what there is, if there is no such split."""
    splits = self.splits()
    if split in splits:
      return
    more = flight.hint(split, splits)
    if not self.protocol and (protocols := _protocols(self.folder)):
      more += f'; its protocols are {[f"{self.name}/{p}" for p in protocols]}'
    raise ValueError(
      f'{self.name} has no split {split!r}; it has {splits}{more}'
    )

  def rows(self, split: str) -> int:
    """How many pictures a split has.

    Raises:
      ValueError: no such split, or its index cannot be read.
    """
    self.check_split(split)
    if not self.protocol:
      return self.stored()[split]
    try:
      with np.load(self.index(split)) as file:
        return len(file['stored_row'])
    except UNREADABLE as error:
      raise ValueError(
        f'{self.index(split)} cannot be read ({error}); build the data set'
        ' anew with --overwrite'
      ) from error


def find(data_dir: str | os.PathLike, name: str) -> DataSet:
  """The latest version of a data set, or a protocol of it.

  Args:
    data_dir: root of the built data sets.
    name: path below it, such as 'university1652', 'rendered_city/demo',
      'vigor/same' or 'university1652/1.0.0'.

  Raises:
    ValueError: no such data set (with the command that builds it).
  """
  root = pathlib.Path(data_dir).expanduser().absolute()
  folder = _version_folder(root / name)
  if folder is not None:
    return DataSet(name, folder)
  configs = sorted(p.name for p in (root / name).glob('*/') if _versions(p))
  if configs:
    raise ValueError(
      f'{name} in {root} holds several data sets: use one of'
      f' {[f"{name}/{config}" for config in configs]}'
    )
  pure = pathlib.PurePath(name)
  above = _version_folder(root / pure.parent) if len(pure.parts) > 1 else None
  if above is not None:
    protocols = _protocols(above)
    if pure.name in protocols:
      return DataSet(name, above, pure.name)
    raise ValueError(
      f'{pure.parent} in {root} has no protocol {pure.name!r}; it has'
      f' {protocols or "none"}'
    )
  raise ValueError(
    f'no data set {name!r} in {root}; there are {_data_sets(root) or "none"}.'
    f' Build it with\n  {_build_command(root, name)}'
  )


def _version_folder(folder: pathlib.Path) -> pathlib.Path | None:
  if (folder / 'dataset_info.json').is_file():
    return folder  # the name includes the version
  versions = _versions(folder)
  return folder / versions[-1] if versions else None


def _versions(folder: pathlib.Path) -> list[str]:
  """Complete versions in a folder, oldest first."""
  found = [
    (tuple(map(int, match.groups())), path.name)
    for path in folder.glob('*.*.*')
    if (match := VERSION.fullmatch(path.name))
    and (path / 'dataset_info.json').is_file()
  ]
  return [name for _, name in sorted(found)]


def _indices(folder: pathlib.Path) -> list[str]:
  names = sorted(path.name for path in folder.glob('index-*.npz'))
  return [INDEX.fullmatch(name)[1] for name in names]


def _protocols(folder: pathlib.Path) -> list[str]:
  """The protocols in a version folder."""
  return sorted(path.name for path in folder.glob('*/') if _indices(path))


def _data_sets(root: pathlib.Path) -> list[str]:
  found = set()
  for depth in range(1, 5):
    for path in root.glob('*/' * depth + 'dataset_info.json'):
      if VERSION.fullmatch(path.parent.name):
        name = path.parent.parent.relative_to(root).as_posix()
        found.add(name)
        found.update(f'{name}/{p}' for p in _protocols(path.parent))
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
