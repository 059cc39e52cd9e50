"""Several pictures of one place as one feature.

Either side may be merged: all drone pictures of a place into one query, or into
one gallery entry. The number of queries or gallery entries changes, so the
results belong beside the plain ones, not in their place.

`mean_by_place` is the multi-query baseline of University-1652 and SUES-200,
`refine_by_place` the multi-view refinement of PFED (see `refinement`).

Source: layumi/LPN `test.py` (multi-query: the mean of a place's drone
features) and layumi/University1652-Baseline `test.py` (street features
averaged per building, commented out there).
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from cvgl_jax.retrieval import features as features_lib
from cvgl_jax.retrieval import refinement

# Values of the views that are refined at a time: 64 MiB.
_CHUNK_VALUES = 2**24


class PlaceFeatures(NamedTuple):
  """One feature for every place.

  Attributes:
    features: [K, D] float32.
    place: [K] the places, ascending.
  """

  features: np.ndarray
  place: np.ndarray


def mean_by_place(
  features: np.ndarray, place: np.ndarray, *, normalize: bool = False
) -> PlaceFeatures:
  """The mean feature of every place.

  Args:
    features: [N, D] float array.
    place: [N] integers.
    normalize: divide the means by their L2 norm. Cosine ranking does not
      change by it.

  Returns:
    `PlaceFeatures`, sums taken in float64.

  Raises:
    ValueError: lengths differ, nothing to average, or (normalize) a place
      whose features cancel out.
  """
  features, place = np.asarray(features), np.asarray(place)
  if features.ndim != 2 or place.shape != features.shape[:1] or not len(place):
    raise ValueError(
      f'features of shape {features.shape} with places of shape {place.shape}; '
      'expected [N, D] and [N], N > 0'
    )
  places, inverse, count = np.unique(
    place, return_inverse=True, return_counts=True
  )
  total = np.zeros((len(places), features.shape[1]), np.float64)
  np.add.at(total, inverse, features)
  mean = total / count[:, None]
  if normalize:
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    if not norm.all():
      raise ValueError(
        f'place {places[np.argmin(norm)]}: its features cancel out, so their '
        'mean has no direction'
      )
    mean /= norm
  return PlaceFeatures(mean.astype(np.float32), places)


def refine_by_place(
  features: np.ndarray,
  place: np.ndarray,
  *,
  settings: refinement.Refinement,
  altitude_m: np.ndarray | None = None,
  azimuth_deg: np.ndarray | None = None,
) -> PlaceFeatures:
  """`refinement.refine` of every place.

  Args:
    features: [N, D] float array.
    place: [N] integers.
    settings: see `refinement.Refinement`.
    altitude_m: [N], for the diversity 'pose'; see `spiral_pose`.
    azimuth_deg: [N], for the diversity 'pose'.

  Returns:
    `PlaceFeatures` of unit norm.

  Raises:
    ValueError: lengths differ, features that cannot be ranked, poses missing
      or not finite, or a place whose views cancel out.
  """
  features = features_lib.prepare(features, 'views', similarity='dot')
  place = np.asarray(place)
  if place.shape != features.shape[:1]:
    raise ValueError(
      f'{len(features)} views with places of shape {place.shape}; expected '
      f'[{len(features)}]'
    )
  zero = np.flatnonzero(~features.any(axis=1))
  if len(zero):
    raise ValueError(
      f'views: {len(zero)} feature rows are all zero (first: row {zero[0]})'
    )
  poses = []
  if settings.score != 'mean' and settings.diversity == 'pose':
    poses = [
      _pose(values, name, len(features))
      for name, values in (
        ('altitude_m', altitude_m),
        ('azimuth_deg', azimuth_deg),
      )
    ]
  places, rows = _rows_by_place(place)  # [K], [K, V]
  chunk = max(1, _CHUNK_VALUES // (rows.shape[1] * features.shape[1]))
  fused = np.empty((len(places), features.shape[1]), np.float32)
  for start in range(0, len(places), chunk):
    part = rows[start : start + chunk]
    arrays = (features[part], part >= 0, *(pose[part] for pose in poses))
    fused[start : start + chunk] = _refine_places(*arrays, settings=settings)
  lost = ~np.isfinite(fused).all(axis=1)
  if lost.any():
    raise ValueError(
      f'place {places[np.argmax(lost)]}: its views cancel out, so their fusion '
      'has no direction'
    )
  return PlaceFeatures(fused, places)


def spiral_pose(view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where the drone was at picture `image-<view>` of University-1652.

  It flies three rounds while it descends: the altitude is
  256 - (view - 1) * 134.5 / 53 metres, the azimuth 20 * ((view - 1) mod 18)
  degrees.

  Args:
    view: [N] integers, 1..54; 55 too, which one building has.

  Returns:
    altitude_m [N] and azimuth_deg [N], float32.

  Raises:
    ValueError: a view out of range.

  Source: pose prompts of the authors of MobileGeo.
  """
  view = np.asarray(view)
  outside = (view < 1) | (view > 55)
  if outside.any():
    raise ValueError(f'view {view[outside][0]}: expected 1 to 55')
  altitude_m = 256 - (view - 1) * (134.5 / 53)
  azimuth_deg = 20 * ((view - 1) % 18)
  return altitude_m.astype(np.float32), azimuth_deg.astype(np.float32)


@functools.partial(jax.jit, static_argnames='settings')
def _refine_places(views, valid, *poses, settings) -> jax.Array:
  """[K, V, D], [K, V] and the poses [K, V] -> [K, D]."""

  def one(views, valid, *pose):
    names = ('altitude_m', 'azimuth_deg')
    keywords = dict(zip(names, pose, strict=False))
    return refinement.refine(
      views, valid, settings=settings, **keywords
    ).feature

  return jax.vmap(one)(views, valid, *poses)


def _pose(values: np.ndarray | None, name: str, count: int) -> np.ndarray:
  if values is None:
    raise ValueError(f"diversity 'pose' needs {name} of every view")
  values = np.asarray(values, np.float32)
  if values.shape != (count,):
    raise ValueError(f'{name} of shape {values.shape}; expected [{count}]')
  unknown = np.flatnonzero(~np.isfinite(values))
  if len(unknown):
    raise ValueError(
      f'{name}: unknown for {len(unknown)} of {count} views (first: row '
      f"{unknown[0]}); use diversity 'feature'"
    )
  return values


def _rows_by_place(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The places, ascending, and [K, V] their rows in order, then -1."""
  places, inverse, count = np.unique(
    place, return_inverse=True, return_counts=True
  )
  order = np.argsort(inverse, kind='stable')
  position = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
  rows = np.full((len(places), count.max()), -1)
  rows[inverse[order], position] = order
  return places, rows
