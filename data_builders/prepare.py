"""Builds one data set by name: `prepare` is what the command line calls.

A complete data set is kept, an incomplete one is built anew, and a rebuild
replaces the old one only when it has succeeded.
"""

import importlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging

from data_builders import records, unfinished

BUILDERS = pathlib.Path(__file__).parent


def names() -> list[str]:
  """The data sets that have a builder."""
  return sorted(
    path.parent.name for path in BUILDERS.glob('*/*_dataset_builder.py')
  )


def name_of(dataset: str) -> str:
  """'university1652', 'data_builders/university1652' or a path to it.

  Raises:
    ValueError: there is no such builder.
  """
  name = pathlib.PurePath(dataset).name
  if name not in names():
    raise ValueError(f'no builder {dataset!r}; there are {names()}')
  return name


def builder_class(name: str) -> Any:
  """The class Builder of data_builders/<name>."""
  module = f'data_builders.{name}.{name}_dataset_builder'
  return importlib.import_module(module).Builder


def prepare(
  dataset: str,
  data_dir: str | os.PathLike,
  *,
  config: str | None = None,
  manual_dir: str | os.PathLike | None = None,
  num_processes: int = 1,
  overwrite: bool = False,
  skip_damaged: bool = False,
) -> pathlib.Path:
  """Builds a data set unless it is there, complete.

  Args:
    dataset: name or folder of the builder.
    data_dir: root of the built data sets.
    config: one of the builder's configurations; None = its default. The name
      of a protocol is accepted: the data set is built with all of them.
    manual_dir: the download, for builders that need one.
    num_processes: worker processes; the result does not depend on it.
    overwrite: build anew even if complete.
    skip_damaged: leave out unreadable pictures instead of refusing.

  Returns:
    The version directory.

  Raises:
    ValueError: unknown name or config, missing or unusable download, damaged
      pictures, another process at work on the same data set.
  """
  name = name_of(dataset)
  cls = builder_class(name)
  if config in cls.PROTOCOLS:
    config = None  # one data set has all of its protocols
  configs = [c.name for c in cls.BUILDER_CONFIGS] or list(cls.PROTOCOLS)
  if config is not None and config not in configs:
    raise ValueError(
      f'{name}: no config {config!r}; there are {configs or "none"}'
    )
  if num_processes < 1:
    raise ValueError(f'--num-processes is {num_processes}, expected 1 or more')
  if cls.NEEDS_MANUAL_DIR:
    manual_dir = _checked_manual_dir(name, cls, manual_dir)

  root = pathlib.Path(data_dir).expanduser().absolute()
  options = {
    'config': config,
    'num_processes': num_processes,
    'skip_damaged': skip_damaged,
  }
  folder = pathlib.Path(cls(data_dir=os.fspath(root), **options).data_dir)
  if folder.exists() and not overwrite:
    missing = missing_files(folder)
    if not missing:
      logging.info('%s is complete, kept (--overwrite builds it anew)', folder)
      return folder
    logging.warning(
      '%s is incomplete (%s is missing); building it anew', folder, missing[0]
    )
  if not folder.exists():
    _download_and_prepare(cls, root, manual_dir, options)
    return folder
  staging = folder.parent / f'rebuild_{folder.name}'
  built = _download_and_prepare(cls, staging, manual_dir, options)
  shutil.rmtree(folder)
  built.rename(folder)
  shutil.rmtree(staging)
  return folder


def missing_files(folder: pathlib.Path) -> list[str]:
  """Files that a complete data set would have and this one lacks."""
  import tensorflow_datasets as tfds

  for file in ('dataset_info.json', 'features.json'):
    if not (folder / file).is_file():
      return [file]
  info = tfds.builder_from_directory(os.fspath(folder)).info
  files = [
    path
    for split, details in info.splits.items()
    for path in (
      *(pathlib.Path(os.fspath(path)) for path in details.filepaths),
      folder / records.index_file(split),
    )
  ]
  return [
    path.relative_to(folder).as_posix()
    for path in (*files, *records.protocol_files(folder))
    if not path.is_file()
  ]


def _checked_manual_dir(
  name: str, cls: Any, manual_dir: str | os.PathLike | None
) -> pathlib.Path:
  instructions = cls.MANUAL_DOWNLOAD_INSTRUCTIONS.strip()
  if manual_dir is None:
    raise ValueError(
      f'{name} is made from a download: give --manual_dir=FOLDER.\n'
      f'{instructions}'
    )
  folder = pathlib.Path(manual_dir).expanduser().absolute()
  if not folder.is_dir():
    raise ValueError(f'--manual_dir={folder} is not a folder.\n{instructions}')
  if not any(folder.iterdir()):
    raise ValueError(f'--manual_dir={folder} is empty.\n{instructions}')
  return folder


def _download_and_prepare(
  cls: Any,
  root: pathlib.Path,
  manual_dir: pathlib.Path | None,
  options: dict[str, Any],
) -> pathlib.Path:
  """Builds under `root`; returns the version directory."""
  import tensorflow_datasets as tfds

  builder = cls(data_dir=os.fspath(root), **options)
  folder = pathlib.Path(builder.data_dir)
  unfinished.remove_leftovers(folder)
  if folder.exists():  # of a rebuild that was stopped before its last step
    shutil.rmtree(folder)
  tfds.disable_progress_bar()  # ours counts pictures over all splits
  # Nothing is downloaded, but TFDS makes its download folder all the same.
  with tempfile.TemporaryDirectory() as downloads:
    builder.download_and_prepare(
      download_dir=downloads,
      download_config=tfds.download.DownloadConfig(
        manual_dir=None if manual_dir is None else os.fspath(manual_dir)
      ),
    )
  return folder
