"""Which gallery rows answer a query, and which do not count.

The right answers of a query are the rows of its place, or rows that are listed
for it. Some rows are taken out of every ranking (junk), some out of one query's.
"""

import dataclasses

import numpy as np

JUNK = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
  """Ground truth of Q queries in a gallery of G rows.

  Row lists hold each row of the gallery at most once for a query; -1 fills.

  Attributes:
    positives: [Q, P] int32, rows that answer the query; none is taken out.
    semi_positives: [Q, S] int32, rows that show the place too, but are not the
      answer; None where the data set knows none.
    junk: bool [G], taken out of all rankings.
    exclude: [Q, E] int32, taken out of the query's ranking; none is junk.
  """

  positives: np.ndarray
  semi_positives: np.ndarray | None
  junk: np.ndarray
  exclude: np.ndarray


def ground_truth(
  size: tuple[int, int],
  query_place: np.ndarray | None = None,
  gallery_place: np.ndarray | None = None,
  *,
  positives: np.ndarray | None = None,
  semi_positives: np.ndarray | None = None,
  junk: np.ndarray | None = None,
  ignore_distractors: bool = False,
) -> Truth:
  """Puts together what a caller knows.

  Args:
    size: (Q, G).
    query_place: [Q] integers; a gallery row of the same place is a positive.
    gallery_place: [G] integers; -1 marks junk.
    positives: [Q, P] integers instead of places: rows of the gallery, -1 fills;
      [Q] for one row each.
    semi_positives: [Q, S] rows; a row that is also a positive counts as such.
    junk: bool [G] or [Q, G]; True takes the row out of the ranking.
    ignore_distractors: rows of places that no query has are junk.

  Returns:
    `Truth`.

  Raises:
    ValueError: both or neither of places and positives, arrays of the wrong
      length or type, rows outside the gallery or listed twice.
  """
  by_place = query_place is not None and gallery_place is not None
  if by_place == (positives is not None) or (
    not by_place and (query_place is not None or gallery_place is not None)
  ):
    raise ValueError(
      'the right answers must be given either as query_place and gallery_place '
      'or as positives (rows of the gallery for every query)'
    )
  exclude = np.full((size[0], 0), -1, np.int32)
  taken_out = np.zeros(size[1], bool)
  if by_place:
    query_place = _places(query_place, 'query', size[0])
    gallery_place = _places(gallery_place, 'gallery', size[1])
    taken_out |= gallery_place == JUNK
    if ignore_distractors:
      taken_out |= ~np.isin(gallery_place, query_place)
    positives = rows_of_places(query_place, gallery_place)
  else:
    if ignore_distractors:
      raise ValueError(
        'ignore_distractors: with positives instead of places nothing tells '
        'distractors; mark them in junk'
      )
    positives = np.asarray(positives)
    positives = positives[:, None] if positives.ndim == 1 else positives
    positives = check_rows(positives, 'positives', size)
  if junk is not None:
    junk = np.asarray(junk)
    if junk.dtype != bool or junk.shape not in (size[1:], tuple(size)):
      raise ValueError(
        f'junk: {junk.dtype} of shape {junk.shape}, expected bool of shape '
        f'{size[1:]} or {tuple(size)}'
      )
    if junk.ndim == 1:
      taken_out |= junk
    else:
      exclude = listed(junk & ~taken_out[None])
  positives = _without(positives, taken_out, exclude)
  if semi_positives is not None:
    semi_positives = check_rows(semi_positives, 'semi_positives', size)
    semi_positives = _without(semi_positives, taken_out, exclude)
    semi_positives = np.where(
      is_listed(semi_positives, positives), -1, semi_positives
    )
  return Truth(
    positives=positives,
    semi_positives=semi_positives,
    junk=taken_out,
    exclude=exclude,
  )


def rows_of_places(
  query_place: np.ndarray, gallery_place: np.ndarray
) -> np.ndarray:
  """Gallery rows [Q, P] int32 of each query's place, ascending, -1 fills."""
  order = np.argsort(gallery_place, kind='stable')
  ordered = gallery_place[order]
  start = np.searchsorted(ordered, query_place, side='left')
  count = np.searchsorted(ordered, query_place, side='right') - start
  offset = np.arange(max(1, count.max()))[None]
  rows = order[np.minimum(start[:, None] + offset, len(order) - 1)]
  return np.where(offset < count[:, None], rows, -1).astype(np.int32)


def listed(mask: np.ndarray) -> np.ndarray:
  """Columns [Q, E] int32 of the True entries of each row, -1 fills."""
  count = mask.sum(axis=1)
  rows = np.full((len(mask), count.max(initial=0)), -1, np.int32)
  column = np.nonzero(mask)[1]
  rows[np.arange(rows.shape[1])[None] < count[:, None]] = column
  return rows


def is_listed(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
  """[Q, N] bool: which of each query's rows its other list [Q, M] has too."""
  result = np.zeros(rows.shape, bool)
  for n in range(rows.shape[1]):
    row = rows[:, n, None]
    result[:, n] = ((row == others) & (row >= 0)).any(axis=1)
  return result


def check_rows(
  rows: np.ndarray, name: str, size: tuple[int, int]
) -> np.ndarray:
  """Row lists [Q, *] as int32; refuses what no list of gallery rows can be."""
  rows = np.asarray(rows)
  if rows.ndim != 2 or len(rows) != size[0]:
    raise ValueError(
      f'{name}: shape {rows.shape}, expected [{size[0]}, *], one list of '
      'gallery rows for every query, filled up with -1'
    )
  if not np.issubdtype(rows.dtype, np.integer):
    raise ValueError(f'{name}: rows are {rows.dtype}, expected integers')
  if rows.size and (rows.min() < -1 or rows.max() >= size[1]):
    raise ValueError(
      f'{name}: rows from {rows.min()} to {rows.max()}, expected 0 to '
      f'{size[1] - 1}, the rows of the gallery, and -1 for fills'
    )
  ordered = np.sort(rows, axis=1)
  repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
  if repeated.any():
    query = np.flatnonzero(repeated.any(axis=1))[0]
    raise ValueError(
      f'{name}: query {query} lists a gallery row twice '
      f'({rows[query].tolist()[:10]})'
    )
  return rows.astype(np.int32)


def _without(rows, taken_out, exclude) -> np.ndarray:
  gone = is_listed(rows, exclude) | taken_out[rows]
  return np.where(gone, -1, rows)


def _places(place: np.ndarray, name: str, size: int) -> np.ndarray:
  place = np.asarray(place)
  if place.shape != (size,):
    raise ValueError(
      f'{name}: {size} feature rows but places of shape {place.shape}; there '
      'must be one place for every row'
    )
  if not np.issubdtype(place.dtype, np.integer):
    raise ValueError(f'{name}: places are {place.dtype}, expected integers')
  return place
