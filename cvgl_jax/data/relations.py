"""Ground truth beyond the equality of places: rows, offsets, metres.

The optional columns of a `sources.Split`, joining those of several data sets,
and their inverse (which queries a gallery row is the truth of).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Columns that only some data sets have -> what stands for unknown in a row.
OPTIONAL: Mapping[str, float] = {
  'positive': -1,
  'semi_positives': -1,
  'offset_px': np.nan,
  'utm_m': np.nan,
}
GALLERY_ROWS = ('positive', 'semi_positives')


def covers(positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Gallery rows that are the positive of a query, and of which.

  Args:
    positive: [N] int, as of `sources.Split`.

  Returns:
    [P] int64 gallery rows, in the order of their first query; [P, M] int64
    queries of each, ascending, padded with -1 (M: of the row with the most).

  Source: zqwlearning/FRGeo-Code `dataset/VIGOR.py`, train_sat_cover_list and
  train_sat_cover_dict.
  """
  queries: dict[int, list[int]] = {}
  for query, row in enumerate(np.asarray(positive).tolist()):
    if row >= 0:
      queries.setdefault(row, []).append(query)
  most = max(map(len, queries.values()), default=0)
  padded = np.full((len(queries), most), -1, np.int64)
  for i, members in enumerate(queries.values()):
    padded[i, : len(members)] = members
  return np.array(list(queries), np.int64), padded


def join(
  parts: Sequence[Mapping[str, np.ndarray | None]],
  *,
  lengths: Sequence[int],
  gallery_starts: Sequence[int],
) -> dict[str, np.ndarray]:
  """The optional columns of several data sets, one after the other.

  Args:
    parts: of each, name -> [N_i, ...]; None or absent = it has no such column.
    lengths: N_i.
    gallery_starts: the row at which the gallery of each begins in the joint
      gallery.

  Returns:
    The columns that one of them has: name -> [sum of N_i, ...]. Rows of those
    that lack it, and semi-positives beyond their number, are unknown.
  """
  starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
  joint = {}
  for name, unknown in OPTIONAL.items():
    given = [part.get(name) for part in parts]
    known = [column for column in given if column is not None]
    if not known:
      continue
    shape = [
      max(sizes) for sizes in zip(*(c.shape[1:] for c in known), strict=True)
    ]
    joint[name] = np.full((starts[-1], *shape), unknown, known[0].dtype)
    for i, column in enumerate(given):
      if column is None:
        continue
      if name in GALLERY_ROWS:
        column = np.where(column >= 0, column + gallery_starts[i], column)
      inside = (slice(size) for size in column.shape[1:])
      joint[name][(slice(starts[i], starts[i + 1]), *inside)] = column
  return joint


@dataclasses.dataclass(frozen=True)
class Tiles:
  """The references that a training set uses, and whose truth each of them is.

  Attributes:
    reference: [P] int64 rows of the reference split, in the order of their
      first query: tile p is row reference[p].
    queries: [P, M] int64 rows of the query split that show a tile, ascending,
      padded with -1.
    tile: [N] int64 tile of every query, -1 = unknown.
    labels: [N, 1 + S] int64 rows of the reference split that show the place of
      a query: its truth and its semi-positives, -1 = none.
    listed: the query split lists its truths (VIGOR); else they are the
      references of the same place.
  """

  reference: np.ndarray
  queries: np.ndarray
  tile: np.ndarray
  labels: np.ndarray
  listed: bool

  def shown_by(self) -> list[frozenset[int]]:
    """Of every tile, the references that show the place of a query of it."""
    labels = without_padding(self.labels)
    return [
      frozenset(label for query in queries for label in labels[query])
      for queries in without_padding(self.queries)
    ]

  def check_batch(self, batch_size: int) -> None:
    """Raises ValueError where a batch cannot hold so many different tiles."""
    count = len(self.reference)
    if not 1 <= batch_size <= count:
      raise ValueError(
        f'batch {batch_size} is not in 1 to {count}, the number of places '
        'that have a pair'
      )


def tiles(splits: Mapping[str, Any], views: tuple[str, str]) -> Tiles:
  """What the queries of a training set are pairs with.

  Args:
    splits: view -> split with `place` and, where the truth is listed,
      `positive`, `semi_positives` and `gallery` (see `sources.Split`). Of
      several references of a place the first is used.
    views: of the queries, of the references.

  Raises:
    ValueError: a view is absent, no query has a reference, or the truths are
      rows of another split.
  """
  for view in views:
    if view not in splits:
      raise ValueError(f'no view {view!r}; there are {sorted(splits)}')
  query, reference = (splits[view] for view in views)
  positive = getattr(query, 'positive', None)
  if positive is not None:
    if query.gallery != reference.name or positive.max() >= len(
      reference.place
    ):
      raise ValueError(
        f'{query.name} lists its truths as rows of {query.gallery!r}, which is '
        f'not the whole of {reference.name!r}; use the splits of one protocol'
      )
    labels = positive[:, None]
    if query.semi_positives is not None:
      labels = np.concatenate([labels, query.semi_positives], axis=1)
  else:
    positive = _first_of_place(
      np.asarray(query.place), np.asarray(reference.place)
    )
    labels = positive[:, None]
  rows, queries = covers(positive)
  if not len(rows):
    sizes = {view: len(np.unique(splits[view].place)) for view in views}
    raise ValueError(
      f'no place has pictures in every view of {views} (places: {sizes}); '
      'are the splits of the same data set?'
    )
  tile = np.full(len(positive), -1, np.int64)
  for column in queries.T:
    there = column >= 0
    tile[column[there]] = np.flatnonzero(there)
  return Tiles(
    reference=rows,
    queries=queries,
    tile=tile,
    labels=labels.astype(np.int64),
    listed=getattr(query, 'positive', None) is not None,
  )


def without_padding(numbers: np.ndarray) -> list[list[int]]:
  """The rows of [N, M] without their -1."""
  return [row[row >= 0].tolist() for row in np.asarray(numbers)]


def _first_of_place(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """The first reference of the place of each query, -1 where there is none."""
  places, first = np.unique(reference, return_index=True)
  at = np.searchsorted(places, query).clip(max=len(places) - 1)
  known = (places[at] == query) & (query >= 0)
  return np.where(known, first[at], -1)
