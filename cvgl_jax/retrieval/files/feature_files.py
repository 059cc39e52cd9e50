"""Feature files of this project and of the published PyTorch code bases.

  file         keys (SIDE is query or gallery)    of
  .npy         none: the features of one side     `main.py embed`
  .mat         SIDE_f, SIDE_label, SIDE_path      University-1652, LPN, MobileGeo
  .hdf5, .h5   SIDE_feature                       PLCD (the rest is in its .mat)
  .npz         any of these

Source: layumi/University1652-Baseline `test.py`; PLCD `test_PL_G2D.py`,
`test_D2S.py`, `test_D2S_for_diffusion.py`; MobileGeo `Tools/evaluate_norm.py`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from absl import logging

from cvgl_jax.retrieval.files import array_files

SideName = Literal['query', 'gallery']
SIDES: tuple[SideName, ...] = ('query', 'gallery')
Format = Literal['mat', 'hdf5']

# Behind 'query_' or 'gallery_'; without it in a file of one side.
_NAMES = {
  'features': ('f', 'feature', 'features'),
  'labels': ('label', 'labels', 'place', 'places'),
  'paths': ('path', 'paths'),
}
# MATLAB's limit for a variable of a version 5 file.
_MAT_BYTES = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Side:
  """The queries or the gallery, as they stand in files.

  Attributes:
    features: [N, D] numbers as stored; a memory map where the file allows it.
    labels: [N] int64 or text, or None; equal labels show the same place, -1
      is junk.
    paths: [N] text, or None.
    name: file and key of the features, for messages.
  """

  features: np.ndarray
  labels: np.ndarray | None = None
  paths: np.ndarray | None = None
  name: str = 'features'


def read_side(
  paths: Sequence[str | os.PathLike],
  side: SideName,
  *,
  alone: bool = False,
  lenient: bool = False,
) -> Side:
  """One side, from one file or from several that complete one another.

  The labels of a PLCD file `pytorch_x.hdf5` are looked for in
  `pytorch_result_x.mat` beside it, if no given file has them.

  Args:
    paths: the files.
    side: 'query' or 'gallery'.
    alone: the files belong to this side: their keys need no 'query_' or
      'gallery_', and a single key may have any name.
    lenient: labels and paths of another length than the features are left out,
      with a warning, instead of refused.

  Raises:
    ValueError: no features of the side (with the keys that were expected and
      those that were found), entries of different length, damaged files.
  """
  files = _with_labels([array_files.ArrayFile(path) for path in paths])
  return _read(files, side, alone=alone, lenient=lenient)


def read_labels(path: str | os.PathLike, side: SideName) -> np.ndarray:
  """[N] int64 or text: a .npy list, or the labels of a larger file.

  Raises:
    ValueError: no labels, or something else in their place.
  """
  file = array_files.ArrayFile(path)
  key = '' if file.keys == ('',) else _find(file, 'labels', side, alone=True)
  if key is None:
    raise ValueError(_missing([file], 'labels', side, alone=True))
  return _labels(file.array(key), file.where(key))


def write(
  folder: str | os.PathLike,
  file_format: Format,
  sides: Mapping[SideName, Side],
  *,
  suffix: str = '',
) -> list[pathlib.Path]:
  """Writes both sides as the published code does, for its evaluators.

  'mat': `pytorch_result.mat`, read by University-1652, LPN and MobileGeo.
  'hdf5': `pytorch.hdf5` and `pytorch_result.mat`, read by PLCD.

  Args:
    folder: made if it does not exist.
    file_format: 'mat' or 'hdf5'.
    sides: features [N, D] float32, labels [N] integers, paths [N] or None.
    suffix: of the file names; PLCD's diffusion reads '_for_diffusion'.

  Returns:
    The files.

  Raises:
    ValueError: an unknown format, features that a .mat file cannot hold.
    OSError: the disk is full or the folder cannot be written.
  """
  if file_format not in ('mat', 'hdf5'):
    raise ValueError(f"format {file_format!r}: expected 'mat' or 'hdf5'")
  folder = pathlib.Path(folder)
  mat = folder / f'pytorch_result{suffix}.mat'
  hdf5 = folder / f'pytorch{suffix}.hdf5'
  entries: dict[str, Any] = {}
  for name in ('gallery', 'query'):  # their order
    side = sides[name]
    if file_format == 'mat':
      if side.features.nbytes >= _MAT_BYTES:
        raise ValueError(
          f'{mat}: the {name} features take {side.features.nbytes / 2**30:.1f} '
          'GiB, a variable of a .mat file 2 at most; write hdf5'
        )
      entries[f'{name}_f'] = np.asarray(side.features)
    entries[f'{name}_label'] = np.asarray(side.labels)[None]  # [1, N]
    if side.paths is not None:
      entries[f'{name}_path'] = np.asarray(side.paths, str)

  def write_mat(part: str) -> None:
    import scipy.io

    scipy.io.savemat(part, entries, appendmat=False)

  def write_hdf5(part: str) -> None:
    import h5py

    with h5py.File(part, 'w') as file:
      for name in ('gallery', 'query'):
        file.create_dataset(f'{name}_feature', data=sides[name].features)

  folder.mkdir(parents=True, exist_ok=True)
  written = []
  if file_format == 'hdf5':
    _replace(hdf5, write_hdf5)
    written.append(hdf5)
  _replace(mat, write_mat)
  return [*written, mat]


def check_length(values: Sequence, where: str, side: Side) -> None:
  """One entry for every feature row, or a ValueError that names both files."""
  if len(values) != len(side.features):
    raise ValueError(
      f'{where}: {len(values)} entries, but {side.name} has '
      f'{len(side.features)} feature rows; there must be one entry for every '
      'row, in the same order'
    )


def _read(
  files: Sequence[array_files.ArrayFile],
  side: SideName,
  *,
  alone: bool,
  lenient: bool,
) -> Side:
  found = {}
  for what in _NAMES:
    keys = ((file, _find(file, what, side, alone=alone)) for file in files)
    found[what] = next((hit for hit in keys if hit[1] is not None), None)
  if found['features'] is None:
    raise ValueError(_missing(files, 'features', side, alone=alone))
  file, key = found['features']
  features = file.array(key)
  if features.dtype.kind not in 'fiu' or features.ndim != 2:
    raise ValueError(
      f'{file.where(key)}: {features.dtype} of shape {features.shape}, '
      'expected numbers of shape [rows, dimension]'
    )
  result = Side(features=features, name=file.where(key))
  for what, convert in (('labels', _labels), ('paths', _paths)):
    if found[what] is not None:
      file, key = found[what]
      values = convert(file.array(key), file.where(key))
      if lenient and len(values) != len(features):
        logging.warning(
          '%s: %d entries for %d feature rows, left out',
          file.where(key),
          len(values),
          len(features),
        )
        continue
      check_length(values, file.where(key), result)
      result = dataclasses.replace(result, **{what: values})
  return result


def _find(
  file: array_files.ArrayFile, what: str, side: SideName, *, alone: bool
) -> str | None:
  """The key of 'features', 'labels' or 'paths', or None."""
  keys = [key for key in _expected(what, side, alone) if key in file.keys]
  if keys or not alone or what != 'features' or len(file.keys) > 1:
    return keys[0] if keys else None
  # The only key, unless it is the other side's.
  return next((key for key in file.keys if not key.startswith(SIDES)), None)


def _expected(what: str, side: SideName, alone: bool) -> list[str]:
  names = list(_NAMES[what])
  return [f'{side}_{name}' for name in names] + (names if alone else [])


def _missing(
  files: Sequence[array_files.ArrayFile],
  what: str,
  side: SideName,
  *,
  alone: bool,
) -> str:
  single = [file.path for file in files if file.keys == ('',)]
  if single and not alone:
    return (
      f'{single[0]}: a .npy file holds one side; give --query_features and '
      '--gallery_features'
    )
  keys = '; '.join(f'{file.path}: {sorted(file.keys)}' for file in files)
  expected = ' or '.join(_expected(what, side, alone))
  return f'no {side} {what}: expected the key {expected}, found {keys}'


def _with_labels(
  files: list[array_files.ArrayFile],
) -> list[array_files.ArrayFile]:
  """The files, and PLCD's `pytorch_result_x.mat` of a `pytorch_x.hdf5`."""
  beside = [
    file.path.with_name(
      f'{file.path.stem.replace("pytorch", "pytorch_result", 1)}.mat'
    )
    for file in files
    if file.path.suffix.lower() in ('.hdf5', '.h5')
  ]
  given = [file.path for file in files]
  more = [path for path in beside if path.is_file() and path not in given]
  return files + [array_files.ArrayFile(path) for path in more]


def _labels(array: np.ndarray, where: str) -> np.ndarray:
  """[N] int64 or text of a row, a column or a list."""
  if array.dtype.kind in 'OSU':
    array = _text(array, where)
  flat = array.reshape(-1)
  if flat.size != max(array.shape, default=1):
    raise ValueError(
      f'{where}: labels of shape {array.shape}, expected one for every row'
    )
  if flat.dtype.kind == 'U':
    return np.char.strip(flat)
  # MATLAB writes whole numbers as float64.
  rounded = np.round(flat) if flat.dtype.kind == 'f' else flat
  if flat.dtype.kind not in 'fiu' or not np.array_equal(flat, rounded):
    raise ValueError(
      f'{where}: labels are {flat.dtype}, expected whole numbers or text'
    )
  return flat.astype(np.int64)


def _paths(array: np.ndarray, where: str) -> np.ndarray:
  if array.dtype.kind not in 'OSU':
    raise ValueError(f'{where}: paths are {array.dtype}, expected text')
  array = _text(array, where)
  # The (path, class) pairs of torchvision's ImageFolder.
  pairs = array.ndim == 2 and array.shape[1] == 2 < array.size
  return np.char.strip(
    (array[:, 0] if pairs else array).reshape(-1).astype(str)
  )


def _text(array: np.ndarray, where: str) -> np.ndarray:
  """The texts or numbers of a cell array or of bytes, in the same shape."""
  if array.dtype.kind == 'S':
    return np.char.decode(array, 'utf-8')
  if array.dtype.kind == 'U':
    return array
  cells = [np.asarray(cell).reshape(-1) for cell in array.reshape(-1)]
  if any(cell.size != 1 or cell.dtype.kind not in 'Ufiu' for cell in cells):
    raise ValueError(f'{where}: a cell holds no single text or number')
  return np.array([cell[0] for cell in cells]).reshape(array.shape)


def _replace(path: pathlib.Path, write_part: Callable[[str], None]) -> None:
  """Writes a file whole or not at all."""
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    write_part(str(part))
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
