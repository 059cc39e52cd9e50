"""Ground truth beyond the equality of places: rows, offsets, metres.

The optional columns of a `sources.Split`, joining those of several data sets,
and their inverse (which queries a gallery row is the truth of).
"""

from collections.abc import Mapping, Sequence

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
