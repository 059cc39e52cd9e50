"""Queries and gallery of an evaluation from files: features, lists, answers.

`load` reads a side, `check` refuses what cannot be ranked, `answers` finds the
ground truth that the files hold; `evaluation.rank` takes it from there.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from cvgl_jax.retrieval import features, metres
from cvgl_jax.retrieval.files import feature_files, listings

# Rows that are read at a time; of the first, norms are looked at.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Input:
  """One side.

  Attributes:
    side: features, and labels and paths where some file has them.
    listing: its CSV list, if there is one.
  """

  side: feature_files.Side
  listing: listings.Listing | None = None

  @property
  def source(self) -> str:
    """Where its labels stand or should stand, for messages."""
    return self.listing.name if self.listing else self.side.name


def load(
  side: feature_files.SideName,
  *,
  alone: str | os.PathLike | None = None,
  shared: Sequence[str | os.PathLike] = (),
  labels: str | os.PathLike | None = None,
) -> Input:
  """Reads one side.

  Args:
    side: 'query' or 'gallery'.
    alone: file of this side; goes before `shared`.
    shared: files that hold both sides.
    labels: CSV list or feature file with the labels; by default they are
      looked for in the feature files, and in the .csv beside a .npy.

  Raises:
    ValueError: nothing to read, see `feature_files` and `listings`; lists of
      another length than the features.
  """
  if not alone and not shared:
    raise ValueError(
      f'--{side}_features is missing: features of both sides are needed'
    )
  read = feature_files.read_side(
    [alone] if alone else shared, side, alone=bool(alone)
  )
  if not labels and alone and pathlib.Path(alone).suffix.lower() == '.npy':
    beside = pathlib.Path(alone).with_suffix('.csv')
    labels = beside if beside.is_file() else None
  if not labels:
    return Input(side=read)
  if pathlib.Path(labels).suffix.lower() not in listings.SUFFIXES:
    values = feature_files.read_labels(labels, side)
    feature_files.check_length(values, str(labels), read)
    return Input(side=dataclasses.replace(read, labels=values))
  listing = listings.read(labels)
  feature_files.check_length(listing, str(labels), read)
  told = {
    what: getattr(listing, what)
    for what in ('labels', 'paths')
    if getattr(listing, what) is not None
  }
  return Input(side=dataclasses.replace(read, **told), listing=listing)


def check(
  query: feature_files.Side,
  gallery: feature_files.Side,
  *,
  similarity: features.Similarity,
) -> None:
  """Reads all features once and refuses what cannot be ranked.

  Raises:
    ValueError: NaN, infinite or (cosine) zero rows, other dimensions; names
      file, key and rows.
  """
  for side in (query, gallery):
    rows = features.Rows(side.features, side.name, similarity)
    for _ in rows.parts(_CHUNK):
      pass
    norm = np.linalg.norm(np.asarray(side.features[:_CHUNK], float), axis=1)
    if similarity == 'cosine' and np.abs(norm - 1).max() > 0.01:
      logging.warning(
        '%s: norms from %.3g to %.3g, ranked by cosine. The evaluators of the '
        'University-1652 family multiply features as they are: --similarity=dot',
        side.name,
        norm.min(),
        norm.max(),
      )
  if query.features.shape[1] != gallery.features.shape[1]:
    raise ValueError(
      f'{query.name} has dimension {query.features.shape[1]}, {gallery.name} '
      f'{gallery.features.shape[1]}; both must come from the same model'
    )


def answers(
  query: Input, gallery: Input, *, within_metres: float | None = None
) -> dict[str, np.ndarray] | None:
  """The ground truth in the form of `evaluation.rank`; None without labels.

  In this order: what lies within a radius, the column `positive` of the
  queries' list, equal labels. Semi-positives are added where they are listed.

  Raises:
    ValueError: coordinates, rows or labels that are missing or do not fit.
  """
  result = {}
  if within_metres is not None:
    kind, points = _coordinates(query, gallery)
    if points is None:
      raise ValueError(
        f'--within_metres needs the columns x_m and y_m (or latitude_deg and '
        f'longitude_deg) in the lists of both sides; {query.source} and '
        f'{gallery.source} do not both have them'
      )
    result['positives'] = metres.rows_within(
      *points, radius_m=within_metres, coordinates=kind
    )
  elif query.listing and query.listing.positives is not None:
    result['positives'] = _rows(query, gallery, 'positives')
  elif query.side.labels is None or gallery.side.labels is None:
    return None
  else:
    result['query_place'], result['gallery_place'] = listings.match_labels(
      query.side.labels,
      gallery.side.labels,
      names=(query.source, gallery.source),
    )
  if query.listing and query.listing.semi_positives is not None:
    result['semi_positives'] = _rows(query, gallery, 'semi_positives')
  return result


def errors_m(
  query: Input, gallery: Input, best: np.ndarray
) -> np.ndarray | None:
  """Metres [Q] from each query to its best gallery row [Q]; None if unknown."""
  kind, points = _coordinates(query, gallery)
  if points is None or not all(np.isfinite(side).all() for side in points):
    return None
  truth, found = points[0], points[1][best]
  if kind == 'degrees':
    return metres.great_circle_m(found, truth)
  return np.linalg.norm(found - truth, axis=1)


def _coordinates(
  query: Input, gallery: Input
) -> tuple[metres.Coordinates, tuple[np.ndarray, np.ndarray] | None]:
  for kind, column in (('metres', 'metres'), ('degrees', 'latlon_deg')):
    points = [getattr(x.listing, column, None) for x in (query, gallery)]
    if points[0] is not None and points[1] is not None:
      return kind, (points[0], points[1])
  return 'metres', None


def _rows(query: Input, gallery: Input, column: str) -> np.ndarray:
  return listings.gallery_rows(
    getattr(query.listing, column),
    len(gallery.side.features),
    paths=gallery.side.paths,
    where=f'{query.listing.name}, column {column}',
  )
