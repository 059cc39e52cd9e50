"""Drone pictures of a flight: their order, and three bands of altitude.

A flight circles a place in three rounds while it descends. Of every drone split
'<split>_drone' there are the parts '<split>_drone_high', '..._middle' and
'..._low', one round each: rows of the stored split, whose view is 'drone' too.

Source: ZelongZeng/PLCD `prepare_limited_view.py`; `index/drone_view_id.txt`.
Differs: the script copies the highest round into the folder of the lowest.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

ALTITUDES = ('high', 'middle', 'low')  # in the order of a flight
VIEWS_PER_FLIGHT = 54  # of University-1652
_VIEWS_PER_ROUND = VIEWS_PER_FLIGHT // len(ALTITUDES)

_PART = re.compile(rf'(.*_drone)_({"|".join(ALTITUDES)})')
_NUMBER = re.compile(r'[^/-]*-(\d\d)[^/]*')


def split_and_altitude(name: str) -> tuple[str, str]:
  """'test_gallery_drone_low' -> ('test_gallery_drone', 'low').

  Returns:
    the stored split, one of `ALTITUDES`; or `name` itself and '' where it is no
    part of a drone split.
  """
  match = _PART.fullmatch(name)
  return (match[1], match[2]) if match else (name, '')


def view_of(split: str) -> str:
  """The view that a split of this name shows: 'drone', 'satellite', ..."""
  whole, _ = split_and_altitude(split)
  return whole.rsplit('_', 1)[-1]


def hint(name: str, stored: Sequence[str]) -> str:
  """What a name that is no split may have meant, after a list of the stored."""
  whole, _, last = name.rpartition('_')
  if whole in stored and whole.endswith('_drone'):
    parts = ', '.join(f'{whole}_{altitude}' for altitude in ALTITUDES)
    return f'; the parts of {whole} by altitude are {parts}'
  if last in ALTITUDES and whole in stored:
    return f'; only drone splits have parts by altitude such as {last!r}'
  return ''


def numbers(split: Any, rows: np.ndarray | None = None) -> np.ndarray:
  """The number of every picture in its flight, int64 [N], ascending in time.

  `frame`, or, where that is unknown, the two digits after the first hyphen of
  the file name ('image-07.jpeg' is number 7).

  Args:
    split: has `name`, `path` [N] and `frame` [N] (data/sources).
    rows: the ones that are asked for; None: all.

  Returns:
    int64 [len(rows)].

  Raises:
    ValueError: a picture has no number.
  """
  rows = np.arange(len(split.frame)) if rows is None else np.asarray(rows)
  found = np.asarray(split.frame, np.int64)[rows]
  for i in np.flatnonzero(found < 0):
    path = str(split.path[rows[i]])
    match = _NUMBER.fullmatch(path.rpartition('/')[2])
    if match is None:
      raise ValueError(
        f'{split.name}: {path!r} has no number in a flight, neither as its '
        'frame nor in its name as in image-07.jpeg; the order in which the '
        'pictures were taken is needed to tell altitudes and directions apart'
      )
    found[i] = int(match[1])
  return found


def ranks(place: np.ndarray, number: np.ndarray) -> np.ndarray:
  """Position of every picture among those of its place, int64 [N], from 0.

  Args:
    place: int [N].
    number: int [N], ascending in time.
  """
  order = np.lexsort((number, place))
  ordered = place[order]
  first = np.searchsorted(ordered, ordered)
  found = np.empty(len(order), np.int64)
  found[order] = np.arange(len(order)) - first
  return found


def rows_at(split: Any, altitude: str) -> np.ndarray:
  """Rows of the pictures of one round, ascending.

  Pictures 1 to 18 of a flight of 54 are high, 19 to 36 middle, all others low;
  a flight is of 54 if most places have 54 pictures. In other data sets the
  first third of a place's pictures are high, the last third low; what does not
  divide by three goes by the middle of its share of the flight, so that of two
  pictures one is high and one is low.

  Args:
    split: has `name`, `place`, `path` and `frame` [N] (data/sources).
    altitude: of `ALTITUDES`.

  Returns:
    int64 [M].

  Raises:
    ValueError: another altitude; a picture has no number; there is no picture.
  """
  if altitude not in ALTITUDES:
    raise ValueError(f'altitude {altitude!r}; expected one of {ALTITUDES}')
  number = numbers(split)
  place = np.asarray(split.place)
  _, of_row, counts = np.unique(place, return_inverse=True, return_counts=True)
  usual = int(np.bincount(counts).argmax()) if counts.size else 0
  if usual == VIEWS_PER_FLIGHT:
    band = np.clip((number - 1) // _VIEWS_PER_ROUND, 0, len(ALTITUDES) - 1)
  else:
    rank = ranks(place, number)
    band = (2 * rank + 1) * len(ALTITUDES) // (2 * counts[of_row])
  rows = np.flatnonzero(band == ALTITUDES.index(altitude))
  if not rows.size:
    raise ValueError(
      f'{split.name}: no picture is {altitude}; its places have {usual} drone '
      f'pictures each, which is too few for {len(ALTITUDES)} altitudes'
    )
  return rows
