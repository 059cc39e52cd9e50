"""The lists of VIGOR: satellite tiles of a city, panoramas with their tiles.

Sources: Jeff-Zilence/VIGOR (format, units), zqwlearning/FRGeo-Code
`dataset/VIGOR.py` (order of cities, use), tudelft-iv/SliceMatch (corrected
labels: file names end in `__corrected.txt`).
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_builders import folders

CITIES = ('NewYork', 'Seattle', 'SanFrancisco', 'Chicago')
SATELLITE_LIST = 'satellite_list.txt'
CORRECTED = '__corrected'
# Degrees of latitude and longitude per 320 px of a tile of 640 px, as in the
# published labels.
UNIT_DEG = (0.0003280724526376747, 0.00043301140280175833)
FIELDS = 13
SATELLITE_NAME = re.compile(
  r'satellite_(-?\d+(?:\.\d+)?)_(-?\d+(?:\.\d+)?)\.\w+'
)
# Offsets follow from the names up to some metres; a tile is 640 px wide.
PLAUSIBLE_PX = 160.0


@dataclasses.dataclass(frozen=True)
class Part:
  """Cities and label file of one half of a protocol."""

  cities: tuple[str, ...]
  labels: str


ALL_PANORAMAS = 'pano_label_balanced'
PROTOCOLS: Mapping[str, Mapping[str, Part]] = {
  'same': {
    'train': Part(CITIES, 'same_area_balanced_train'),
    'test': Part(CITIES, 'same_area_balanced_test'),
  },
  'cross': {
    'train': Part(CITIES[:2], ALL_PANORAMAS),
    'test': Part(CITIES[2:], ALL_PANORAMAS),
  },
}
LABEL_FILES = (
  ALL_PANORAMAS,
  'same_area_balanced_train',
  'same_area_balanced_test',
)


@dataclasses.dataclass(frozen=True)
class Labels:
  """A label file: N panoramas, the positive tile and three others of each.

  Attributes:
    panoramas: [N] file names.
    satellites: [N] of four file names: the positive, three semi-positives.
    offset_px: [N, 4, 2] float64, (latitude, longitude) offset of the tile's
      centre from the panorama in pixels of a 640 px tile: the panorama is at
      x = 320 - longitude offset, y = 320 + latitude offset.
  """

  panoramas: list[str]
  satellites: list[tuple[str, ...]]
  offset_px: np.ndarray


@dataclasses.dataclass(frozen=True)
class Side:
  """One half of a protocol, all cities together.

  Attributes:
    satellites: [G] (city, file name), the gallery in its official order.
    panoramas: [N] (city, file name).
    rows: [N, 4] int64 rows of `satellites`: positive, semi-positives.
    offset_px: [N, 4, 2] float64, see `Labels`.
  """

  satellites: list[tuple[str, str]]
  panoramas: list[tuple[str, str]]
  rows: np.ndarray
  offset_px: np.ndarray


def satellite_deg(name: str) -> tuple[float, float]:
  """Latitude and longitude in 'satellite_<lat>_<lon>.png'.

  Raises:
    ValueError: it is no such name.
  """
  match = SATELLITE_NAME.fullmatch(name)
  if not match:
    raise ValueError(f'{name!r} is not satellite_<lat>_<lon>.png')
  return _degrees(match[1], match[2], name)


def panorama_deg(name: str) -> tuple[float, float]:
  """Latitude and longitude in '<prefix>,<lat>,<lon>,.jpg'.

  Raises:
    ValueError: it is no such name.
  """
  parts = name.rsplit(',', 3)
  if len(parts) != 4 or not parts[3].startswith('.'):
    raise ValueError(f'{name!r} is not <prefix>,<lat>,<lon>,.jpg')
  return _degrees(parts[1], parts[2], name)


def _degrees(lat: str, lon: str, name: str) -> tuple[float, float]:
  try:
    degrees = float(lat), float(lon)
  except ValueError:
    raise ValueError(f'{name!r}: {lat}, {lon} are no coordinates') from None
  if abs(degrees[0]) > 90 or not abs(degrees[1]) <= 180:
    raise ValueError(f'{name!r}: {lat} is no latitude or {lon} no longitude')
  return degrees


def read_satellites(path: pathlib.Path) -> list[str]:
  """Reads a `satellite_list.txt`: the file names of a city's tiles, in order.

  Raises:
    ValueError: with file and line: unreadable, or other names.
  """
  names = folders.lines(path)
  for number, name in enumerate(names, start=1):
    try:
      satellite_deg(name)
    except ValueError as error:
      raise ValueError(f'{path}, line {number}: {error}') from error
  return names


def read_labels(path: pathlib.Path, known: Sequence[str]) -> Labels:
  """Reads a label file.

  A line has 13 fields, one blank between them: the panorama, then four times
  tile, latitude offset, longitude offset.

  Args:
    path: of the file.
    known: the tiles of the city.

  Raises:
    ValueError: with file and line: another number of fields, names or numbers
      of another form, a tile that the city does not have, offsets that
      contradict the coordinates in the names (columns swapped, or shifted
      against each other).
  """
  centre_deg = {tile: satellite_deg(tile) for tile in known}
  panoramas, satellites, numbers, expected = [], [], [], []
  for line_number, line in enumerate(folders.lines(path), start=1):
    where = f'{path}, line {line_number}'
    fields = line.split(' ')
    if len(fields) != FIELDS:
      raise ValueError(
        f'{where}: {len(fields)} fields, expected {FIELDS} with one blank'
        ' between them: panorama, then four times satellite tile, latitude'
        f' offset, longitude offset; got {line[:120]!r}'
      )
    tiles = tuple(fields[1::3])
    try:
      here = panorama_deg(fields[0])
      for tile in tiles:
        if tile not in centre_deg:
          satellite_deg(tile)  # raises if it is something else
          raise ValueError(
            f'{tile} is not in {SATELLITE_LIST} of this city'
            f' ({len(centre_deg)} tiles): labels of another city or version?'
          )
      numbers.append(
        [float(f) for i, f in enumerate(fields) if i and i % 3 != 1]
      )
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from error
    panoramas.append(fields[0])
    satellites.append(tiles)
    expected.append([centre_deg[tile] for tile in tiles] + [here])
  offset_px = np.array(numbers, np.float64).reshape(-1, 4, 2)
  if not np.isfinite(offset_px).all():
    line = int(np.flatnonzero(~np.isfinite(offset_px).all((1, 2)))[0]) + 1
    raise ValueError(f'{path}, line {line}: an offset is not finite')
  degrees = np.array(expected)  # [N, 5, 2]
  _check_offsets(path, offset_px, degrees[:, :4] - degrees[:, 4:])
  return Labels(panoramas, satellites, offset_px)


def _check_offsets(
  path: pathlib.Path, offset_px: np.ndarray, difference_deg: np.ndarray
) -> None:
  """Compares offsets [N, 4, 2] with those of the coordinates in the names."""
  expected = difference_deg / UNIT_DEG * 320
  error = float(np.median(np.abs(offset_px - expected).max((1, 2))))
  if error <= PLAUSIBLE_PX:
    return
  swapped = np.median(np.abs(offset_px[..., ::-1] - expected).max((1, 2)))
  cause = (
    'latitude and longitude offsets are swapped'
    if swapped <= PLAUSIBLE_PX
    else 'the columns are shifted against each other'
  )
  raise ValueError(
    f'{path}: offsets contradict the coordinates in the names by {error:.0f} px'
    f' (median): {cause}'
  )


def side(
  part: Part,
  satellites: Mapping[str, Sequence[str]],
  labels: Mapping[str, Labels],
) -> Side:
  """Puts the cities of one half of a protocol together.

  Args:
    part: its cities.
    satellites: city -> its list.
    labels: city -> the label file of this half.
  """
  gallery = [(city, name) for city in part.cities for name in satellites[city]]
  row_of = {entry: row for row, entry in enumerate(gallery)}
  return Side(
    satellites=gallery,
    panoramas=[
      (city, name) for city in part.cities for name in labels[city].panoramas
    ],
    rows=np.array(
      [
        [row_of[city, tile] for tile in tiles]
        for city in part.cities
        for tiles in labels[city].satellites
      ],
      np.int64,
    ),
    offset_px=np.concatenate([labels[c].offset_px for c in part.cities]),
  )
