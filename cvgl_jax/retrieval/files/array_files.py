"""Files of named arrays: .npy, .npz, .mat (version 4 to 7.3), .hdf5.

Only what is asked for is read, by memory map where the file allows it: .npy,
and HDF5 data that lie in one piece. Nothing in a file is executed; pickled
Python objects are refused.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

SUFFIXES = ('.npy', '.npz', '.mat', '.hdf5', '.h5')


class ArrayFile:
  """One file of arrays; the contents are read when they are asked for.

  Attributes:
    path: of the file.
    keys: names of its arrays; ('',) for a .npy file.

  Raises:
    ValueError: no such file, an unknown kind, or a damaged one.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise ValueError(f'{path}: no such file')
    suffix = self.path.suffix.lower()
    if suffix not in SUFFIXES:
      raise ValueError(
        f'{path}: a file of features ends in one of {", ".join(SUFFIXES)}. '
        'From PyTorch: numpy.save("features.npy", features.cpu().numpy())'
      )
    with _reading(str(path)):
      keys, self._read = _READERS[suffix](self.path)
    self.keys = tuple(keys)

  def array(self, key: str) -> np.ndarray:
    """The array of a key; text comes as a 'U' or an object array.

    Raises:
      ValueError: it cannot be read, or holds Python objects.
    """
    with _reading(self.where(key)):
      return self._read(key)

  def where(self, key: str) -> str:
    """File and key, for messages."""
    return f'{self.path}, key {key}' if key else str(self.path)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
  """Names file and key in whatever goes wrong while a file is read."""
  try:
    yield
  except ImportError as error:
    raise ValueError(
      f'{where}: a package is missing, pip install {error.name}'
    ) from error
  # A damaged file makes its reader fail in any way that there is.
  except Exception as error:
    if 'pickle' in str(error) or 'Python objects' in str(error):
      raise ValueError(
        f'{where}: holds pickled Python objects, which could run code and are '
        'not read; save numbers and text as plain arrays'
      ) from error
    raise ValueError(
      f'{where}: cannot be read ({error or type(error).__name__}); the file is '
      'damaged, cut short or not what its name says'
    ) from error


# A kind of file: path -> (keys, key -> array).
_Opened = tuple[Sequence[str], Callable[[str], np.ndarray]]


def _open_npy(path: pathlib.Path) -> _Opened:
  _check_start(path, b'\x93NUMPY')
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  return [''], lambda key: array


def _open_npz(path: pathlib.Path) -> _Opened:
  _check_start(path, b'PK')
  file = np.load(path, allow_pickle=False)
  return file.files, lambda key: file[key]


def _check_start(path: pathlib.Path, expected: bytes) -> None:
  """NumPy takes whatever it does not know for a pickle, and says so."""
  with path.open('rb') as file:
    start = file.read(len(expected))
  if start != expected:
    pickled = start[:1] == b'\x80'  # protocol 2 and later
    raise ValueError('a pickle' if pickled else f'it begins with {start!r}')


def _open_mat(path: pathlib.Path) -> _Opened:
  with path.open('rb') as file:
    start = file.read(520)
  # Version 7.3 is HDF5, behind a header of 512 bytes.
  if b'\x89HDF\r\n\x1a\n' in start:
    return _open_hdf5(path)
  import scipy.io

  with warnings.catch_warnings():
    # Of names that stand twice; the last one counts, as in MATLAB.
    warnings.simplefilter('ignore')
    keys = [name for name, _, _ in scipy.io.whosmat(str(path))]

  def read(key: str) -> np.ndarray:
    return scipy.io.loadmat(str(path), variable_names=[key])[key]

  return keys, read


def _open_hdf5(path: pathlib.Path) -> _Opened:
  import h5py

  with h5py.File(path, 'r') as file:
    keys = [key for key in file if isinstance(file[key], h5py.Dataset)]

  def read(key: str) -> np.ndarray:
    with h5py.File(path, 'r') as file:
      return _dataset(path, file, file[key])

  return keys, read


def _dataset(path: pathlib.Path, file: Any, data: Any) -> np.ndarray:
  """An HDF5 data set; MATLAB's are stored column by column."""
  import h5py

  kind = data.attrs.get('MATLAB_class')
  if kind == b'char':
    codes = np.atleast_2d(data[()].T)
    return np.array([''.join(map(chr, row)) for row in codes])
  if kind == b'cell':
    cells = np.empty(data.shape[::-1], object)
    for index, reference in np.ndenumerate(data[()].T):
      cells[index] = _dataset(path, file, file[reference])
    return cells
  if h5py.check_string_dtype(data.dtype):
    return data.asstr()[()].astype(str)
  # Data in chunks have no offset, those in other files none in this one.
  offset = None if data.external or not data.size else data.id.get_offset()
  array = (
    data[()]
    if offset is None
    else np.memmap(
      path, mode='r', dtype=data.dtype, shape=data.shape, offset=offset
    )
  )
  return array if kind is None else array.T


_READERS: dict[str, Callable[[pathlib.Path], _Opened]] = {
  '.npy': _open_npy,
  '.npz': _open_npz,
  '.mat': _open_mat,
  '.hdf5': _open_hdf5,
  '.h5': _open_hdf5,
}
