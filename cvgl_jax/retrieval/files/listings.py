"""CSV lists of what feature rows show: labels, paths, positives, coordinates.

One line for every feature row, in the same order. With a header line, in any
order and with any further columns:

  place (or label, class, id)     equal ones show the same place, -1 is junk
  path (or name, file, filename)  of the picture
  positive, semi_positives        of a query: gallery rows from 0, or names of
                                  gallery pictures; several with blanks between
  x_m, y_m                        coordinates on a plane, such as UTM, metres
  latitude_deg, longitude_deg     WGS 84
  row                             0, 1, ...: checked

Without a header line: labels, one a line. A TAB separates as well as a comma.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

SUFFIXES = ('.csv', '.tsv', '.txt')
JUNK = -1

# What a column is -> the names that it goes by.
_COLUMNS = {
  'place': ('place', 'label', 'class', 'id'),
  'path': ('path', 'name', 'file', 'filename'),
  'positive': ('positive', 'positives'),
  'semi_positives': ('semi_positives', 'semi_positive'),
  'x_m': ('x_m', 'easting_m', 'utm_x'),
  'y_m': ('y_m', 'northing_m', 'utm_y'),
  'latitude_deg': ('latitude_deg', 'latitude', 'lat'),
  'longitude_deg': ('longitude_deg', 'longitude', 'lon', 'lng'),
  'row': ('row',),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
  """Columns of a list; None where it has no such column.

  Attributes:
    name: the file.
    size: N lines, the header not counted.
    labels: [N] text.
    paths: [N] text.
    positives: [N] tuples of gallery rows or names, as text.
    semi_positives: the same; right answers that are not the positive.
    metres: [N, 2] float64, NaN where unknown.
    latlon_deg: [N, 2] float64, NaN where unknown.
  """

  name: str
  size: int
  labels: np.ndarray | None = None
  paths: np.ndarray | None = None
  positives: list[tuple[str, ...]] | None = None
  semi_positives: list[tuple[str, ...]] | None = None
  metres: np.ndarray | None = None
  latlon_deg: np.ndarray | None = None

  def __len__(self) -> int:
    return self.size


def read(path: str | os.PathLike) -> Listing:
  """Reads a list.

  Raises:
    ValueError: no such file, no text, lines of different length, no column
      that is known, values that are no numbers; names the line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  try:
    text = path.read_text(encoding='utf-8-sig')
    first = text.partition('\n')[0]
    lines = csv.reader(
      text.splitlines(), delimiter='\t' if '\t' in first else ',', strict=True
    )
    rows = [[cell.strip() for cell in line] for line in lines if line]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{path}: no list in CSV form ({error})') from error
  if not rows:
    raise ValueError(f'{path}: empty; expected a line for every feature row')
  header = [cell.lower() for cell in rows[0]]
  place = {
    what: header.index(name)
    for what, names in _COLUMNS.items()
    for name in names[::-1]
    if name in header
  }
  if not place:
    return _headerless(path, rows)
  rows = rows[1:]
  for number, row in enumerate(rows, 2):
    if len(row) != len(header):
      raise ValueError(
        f'{path}, line {number}: {len(row)} columns, the header has '
        f'{len(header)} (a comma in a path needs quotes around it)'
      )
  columns = {what: [row[at] for row in rows] for what, at in place.items()}
  return _listing(path, columns, len(rows))


def match_labels(
  query: np.ndarray, gallery: np.ndarray, *, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
  """Labels of both sides as int64 that are equal where the labels are.

  Where all labels of both sides are whole numbers they compare as numbers
  ('0839' is 839), otherwise as text. -1 stays -1.

  Args:
    query: [Q] integers or text.
    gallery: [G] integers or text.
    names: of both, for messages.

  Raises:
    ValueError: numbers on one side and names on the other.
  """
  query, gallery = np.asarray(query), np.asarray(gallery)
  numbers = [_whole_numbers(labels) for labels in (query, gallery)]
  if all(side is not None for side in numbers):
    return tuple(numbers)
  if query.dtype.kind + gallery.dtype.kind != 'UU':
    text = 0 if query.dtype.kind == 'U' else 1
    example = next(x for x in (query, gallery)[text] if not _is_whole(x))
    raise ValueError(
      f'labels of {names[1 - text]} are numbers, those of {names[text]} are '
      f'names (such as {str(example)!r}); both sides must name a place in the '
      'same way'
    )
  both = np.concatenate([query, gallery])
  _, codes = np.unique(both, return_inverse=True)
  codes = np.where(both == str(JUNK), JUNK, codes).astype(np.int64)
  return codes[: len(query)], codes[len(query) :]


def gallery_rows(
  wanted: Sequence[tuple[str, ...]],
  gallery_size: int,
  *,
  paths: np.ndarray | None,
  where: str,
) -> np.ndarray:
  """Gallery rows [Q, P] int32 of a column of row numbers or names, -1 fills.

  Args:
    wanted: [Q] tuples of text.
    gallery_size: G.
    paths: [G] text, for names; a name is a path or its last part.
    where: file and column, for messages.

  Raises:
    ValueError: rows that are not in 0..G-1, names that no path has or several.
  """
  rows = np.full((len(wanted), max(map(len, wanted), default=0)), -1, np.int32)
  known: dict[str, int] = {}
  for row, path in enumerate(() if paths is None else paths):
    for name in {path, pathlib.PurePosixPath(path.replace('\\', '/')).name}:
      known[name] = -1 if name in known else row
  for line, texts in enumerate(wanted):
    for column, text in enumerate(texts):
      row = int(text) if _is_whole(text) else known.get(text)
      if row is None or not 0 <= row < gallery_size:
        raise ValueError(
          f'{where}, entry {line}: {text!r} is no row of the gallery '
          f'(0 to {gallery_size - 1}) and not the name of exactly one of its '
          'pictures'
          + ('' if paths is not None else ' (the gallery lists no paths)')
        )
      rows[line, column] = row
  return rows


def _headerless(path: pathlib.Path, rows: list[list[str]]) -> Listing:
  if max(map(len, rows)) > 1:
    known = sorted(name for names in _COLUMNS.values() for name in names)
    raise ValueError(
      f'{path}: several columns, but the first line {rows[0]} names none that '
      f'is known; expected some of {known}'
    )
  cells = [row[0] for row in rows]
  if not _is_whole(cells[0]) and all(map(_is_whole, cells[1:])) and cells[1:]:
    raise ValueError(
      f'{path}: the first line {cells[0]!r} is no number, but all others are; '
      "call the column 'place', or leave the header out"
    )
  return _listing(path, {'place': cells}, len(rows))


def _listing(
  path: pathlib.Path, columns: dict[str, list[str]], size: int
) -> Listing:
  if 'row' in columns and columns['row'] != [str(i) for i in range(size)]:
    raise ValueError(
      f'{path}: the column row does not count 0, 1, ..., {size - 1}; lines must '
      'stand in the order of the feature rows'
    )
  text = {
    name: np.array(columns[what])
    for name, what in (('labels', 'place'), ('paths', 'path'))
    if what in columns
  }
  rows = {
    name: [tuple(cell.replace(';', ' ').split()) for cell in columns[what]]
    for name, what in (
      ('positives', 'positive'),
      ('semi_positives', 'semi_positives'),
    )
    if what in columns
  }
  numbers = {
    name: np.stack([_floats(path, what, columns[what]) for what in pair], 1)
    for name, pair in (
      ('metres', ('x_m', 'y_m')),
      ('latlon_deg', ('latitude_deg', 'longitude_deg')),
    )
    if all(what in columns for what in pair)
  }
  return Listing(name=str(path), size=size, **text, **rows, **numbers)


def _floats(path: pathlib.Path, name: str, cells: list[str]) -> np.ndarray:
  values = np.empty(len(cells))
  for i, cell in enumerate(cells):
    try:
      values[i] = float(cell or 'nan')
    except ValueError as error:
      raise ValueError(
        f'{path}, entry {i}: {name} is {cell!r}, expected a number'
      ) from error
  return values


def _is_whole(text: str) -> bool:
  digits = text[1:] if text[:1] in ('-', '+') else text
  return digits.isascii() and digits.isdigit()


def _whole_numbers(labels: np.ndarray) -> np.ndarray | None:
  """int64 of integers or of text that is all integers; else None."""
  labels = np.asarray(labels)
  if labels.dtype.kind in 'iu':
    return labels.astype(np.int64)
  if not all(map(_is_whole, labels)):
    return None
  return labels.astype(np.int64)
