"""The files of CVUSA that say what is a pair and where it is.

Sources: zqwlearning/FRGeo-Code `dataset/CVUSA.py` (which columns are read),
Skyy93/Sample4Geo `calc_distance_cvusa.py` (columns of the locations).
"""

import dataclasses
import pathlib

import numpy as np

from data_builders import folders, pictures, report


@dataclasses.dataclass(frozen=True)
class Pair:
  """A line of a split file.

  Attributes:
    number: the image id, the same in both names, counted from 1.
    satellite: path below the root, such as 'bingmap/19/0000001.jpg'.
    panorama: the same, such as 'streetview/panos/0000001.jpg'.
  """

  number: int
  satellite: str
  panorama: str


def read_pairs(path: pathlib.Path) -> list[Pair]:
  """Reads `splits/train-19zl.csv` or `splits/val-19zl.csv`.

  Lines are `<satellite>,<panorama>[,<annotation>]`, without a header; what
  follows the second column is not used.

  Raises:
    ValueError: with file and line: unreadable, too few columns, a header,
      swapped columns, columns shifted against each other, repeated pairs.
  """
  pairs = []
  lines_of: dict[int, int] = {}
  for number, line in enumerate(folders.lines(path), start=1):
    where = f'{path}, line {number}'
    fields = [field.strip() for field in line.split(',')]
    if len(fields) < 2:
      raise ValueError(
        f'{where}: {line[:80]!r} has one column; expected'
        ' <satellite path>,<panorama path>[,<annotation path>]'
      )
    pair = _pair(fields[0], fields[1], where)
    if pair.number in lines_of:
      raise ValueError(
        f'{where}: image {pair.number} is in line {lines_of[pair.number]} too'
      )
    lines_of[pair.number] = number
    pairs.append(pair)
  return pairs


def _pair(satellite: str, panorama: str, where: str) -> Pair:
  for field in (satellite, panorama):
    parts = pathlib.PurePosixPath(field).parts
    if not pictures.is_picture(parts[-1] if parts else ''):
      raise ValueError(
        f'{where}: {field[:80]!r} is no path of a picture (the file has no'
        ' header line; columns are satellite, panorama, annotation)'
      )
    if parts[0] == '/' or '..' in parts:
      raise ValueError(f'{where}: {field!r} is not below the root of CVUSA')
  if 'streetview' in satellite or 'bingmap' in panorama:
    raise ValueError(
      f'{where}: the columns are swapped: the first must be the satellite'
      f' picture, the second the panorama; got {satellite}, {panorama}'
    )
  numbers = [
    pathlib.PurePosixPath(field).stem for field in (satellite, panorama)
  ]
  if not all(number.isascii() and number.isdigit() for number in numbers):
    raise ValueError(
      f'{where}: file names must be image numbers; got {satellite}, {panorama}'
    )
  if int(numbers[0]) != int(numbers[1]):
    raise ValueError(
      f'{where}: {satellite} and {panorama} are different images: the columns'
      ' are shifted against each other'
    )
  return Pair(int(numbers[0]), satellite, panorama)


@dataclasses.dataclass(frozen=True)
class Locations:
  """`split_locations/all.csv`: row i is image i + 1.

  Attributes:
    satellite_deg: [N, 2] float64, latitude and longitude.
    panorama_deg: [N, 2] float64.
  """

  satellite_deg: np.ndarray
  panorama_deg: np.ndarray

  def of(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Satellite and panorama, [n, 2] each; NaN beyond the file's end."""
    rows = np.asarray(numbers, np.int64) - 1
    inside = (rows >= 0) & (rows < len(self.satellite_deg))
    return tuple(
      np.where(inside[:, None], table[np.where(inside, rows, 0)], np.nan)
      for table in (self.satellite_deg, self.panorama_deg)
    )


def read_locations(path: pathlib.Path) -> Locations:
  """Reads the locations.

  Columns are latitude and longitude of the satellite picture, latitude and
  longitude of the panorama, and one of unknown meaning, which is not used.

  Raises:
    ValueError: with file and line: unreadable, not numbers, fewer than four
      columns, latitude and longitude swapped.
  """
  rows = []
  for number, line in enumerate(folders.lines(path), start=1):
    try:
      rows.append([float(field) for field in line.split(',')[:4]])
    except ValueError as error:
      raise ValueError(
        f'{path}, line {number}: {line[:80]!r} holds something else than'
        ' numbers'
      ) from error
    if len(rows[-1]) < 4:
      raise ValueError(
        f'{path}, line {number}: {len(rows[-1])} columns, expected satellite'
        ' latitude, longitude, panorama latitude, longitude'
      )
  table = np.array(rows, np.float64)
  wrong = np.flatnonzero((np.abs(table[:, [0, 2]]) > 90).any(1))
  if wrong.size:
    raise ValueError(
      f'{path}: latitudes beyond 90 degrees in lines'
      f' {report.listing(wrong + 1)}: are latitude and longitude swapped?'
    )
  return Locations(table[:, :2], table[:, 2:])
