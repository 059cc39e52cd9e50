"""ACT_data.mat: which panoramas exist, where, and in which split.

Sources: zqwlearning/FRGeo-Code `dataset/CVACT.py`, Liumouliu/OriCNN (loaders).
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

# Split -> struct of the file, field of the struct.
STRUCTS = {
  'train': ('trainSet', 'trainInd'),
  'val': ('valSet', 'valInd'),
  'test': ('valSetAll', 'valInd'),
}


@dataclasses.dataclass(frozen=True)
class Lists:
  """What the file says.

  Attributes:
    panoramas: ids, in the order of the file.
    utm_m: [N, 2] float64, easting and northing, in the same order.
    splits: 'train', 'val', 'test' -> int64 [n], rows of the two, in the
      published order.
  """

  panoramas: list[str]
  utm_m: np.ndarray
  splits: dict[str, np.ndarray]

  def ids(self, split: str) -> list[str]:
    """The panorama ids of a split, in the published order."""
    return [self.panoramas[row] for row in self.splits[split]]


def read(path: pathlib.Path) -> Lists:
  """Reads ACT_data.mat (MATLAB v5).

  Raises:
    ValueError: with the file: unreadable, a variable or field is missing or of
      another kind, indices that do not count from 1.
  """
  import scipy.io

  try:
    content = scipy.io.loadmat(path)
  except NotImplementedError as error:
    raise ValueError(
      f'{path}: MATLAB v7.3; the official file is v5 (save it with -v7)'
    ) from error
  except Exception as error:  # scipy raises many kinds on damaged files
    raise ValueError(
      f'{path} cannot be read as a MATLAB file ({error}); get it again'
    ) from error
  names = sorted(name for name in content if not name.startswith('__'))
  for name in ('panoIds', 'utm', *(struct for struct, _ in STRUCTS.values())):
    if name not in content:
      raise ValueError(f'{path} has no variable {name!r}; it has {names}')
  panoramas = _texts(content['panoIds'], path)
  utm_m = content['utm']
  if not np.issubdtype(utm_m.dtype, np.number) or utm_m.shape != (
    len(panoramas),
    2,
  ):
    raise ValueError(
      f'{path}: utm is {utm_m.dtype} {utm_m.shape}; expected numbers of shape'
      f' ({len(panoramas)}, 2), one row for each of panoIds'
    )
  splits = {
    split: _indices(
      content[struct], struct, field, count=len(panoramas), path=path
    )
    for split, (struct, field) in STRUCTS.items()
  }
  return Lists(panoramas, utm_m.astype(np.float64), splits)


def _texts(array: np.ndarray, path: pathlib.Path) -> list[str]:
  """A char array or a cell array of texts, as a list."""
  entries = [
    entry.item() if isinstance(entry, np.ndarray) and entry.size == 1 else entry
    for entry in array.ravel()
  ]
  texts = [entry.strip() for entry in entries if isinstance(entry, str)]
  if len(texts) != len(entries) or not all(texts):
    raise ValueError(
      f'{path}: panoIds is {array.dtype} {array.shape}; expected a char array'
      ' with one panorama id a row'
    )
  for text in texts:
    if '/' in text or '\\' in text:
      raise ValueError(f'{path}: panoIds has {text!r}, no part of a file name')
  return texts


def _indices(
  struct: Any, name: str, field: str, *, count: int, path: pathlib.Path
) -> np.ndarray:
  """Field of a 1x1 struct as 0-based rows, int64 [n]."""
  if struct.dtype.names is None or struct.size != 1:
    raise ValueError(
      f'{path}: {name} is {struct.dtype} {struct.shape}; expected a struct with'
      f' the field {field}'
    )
  if field not in struct.dtype.names:
    raise ValueError(
      f'{path}: the struct {name} has no field {field!r}; it has'
      f' {list(struct.dtype.names)}'
    )
  values = np.asarray(struct[field].item()).ravel()
  if not values.size or not np.issubdtype(values.dtype, np.number):
    raise ValueError(f'{path}: {name}.{field} holds no numbers')
  if (values != np.floor(values)).any():
    raise ValueError(f'{path}: {name}.{field} holds fractions, not indices')
  if values.min() < 1 or values.max() > count:
    off = ' (they count from 0?)' if values.min() == 0 else ''
    raise ValueError(
      f'{path}: {name}.{field} has indices {values.min()} to {values.max()};'
      f' expected 1 to {count}, the number of panoIds{off}'
    )
  return values.astype(np.int64) - 1
