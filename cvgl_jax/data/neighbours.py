"""Lists of neighbours for mined plans: what looks alike, what lies near.

Similarities are found by the retrieval engine, distances by a tree: neither
holds a matrix of all pairs.

Sources: zqwlearning/FRGeo-Code `dataset/global_sampler.py`, Skyy93/Sample4Geo
`calc_distance_*.py`, `evaluate/cvusa_and_cvact.py`, `evaluate/vigor.py`.
"""

from typing import Literal

import jax
import numpy as np
from scipy import spatial

from cvgl_jax import sharding
from cvgl_jax.retrieval import search

Coordinates = Literal['metres', 'degrees']
Haversine = Literal['correct', 'published']

# Points looked at beyond those asked for: the tree's distances are rounded
# otherwise than the ones that decide.
_SPARE = 8
_BLOCK = 4096  # points of one query of the tree


def most_similar(
  query: np.ndarray,
  reference: np.ndarray,
  *,
  k: int,
  own: np.ndarray | None = None,
  ties: search.Ties = 'lower',
) -> np.ndarray:
  """The references with the highest dot product, for every query.

  Args:
    query: [Q, D] float32 features of unit norm; rows of zeros (pictures that
      were not seen yet) are as similar to one reference as to another.
    reference: [G, D] likewise.
    k: how many.
    own: [Q] rows of `reference` to leave out, each for its query; None leaves
      none out.
    ties: which of two equal ones comes first, by its row.

  Returns:
    int32 [Q, k] rows of `reference`, the most similar first, -1 where there
    are no more.

  Raises:
    ValueError: features that cannot be ranked (NaN, infinite).
  """
  mesh = None
  if jax.default_backend() != 'cpu':
    # Every process has all features and its own devices.
    mesh = sharding.make_mesh(jax.local_devices())
  found = search.top_k(
    query,
    reference,
    k=k + (own is not None),
    similarity='dot',
    ties=ties,
    mesh=mesh,
  ).rows
  if own is not None:
    found = _without(found, np.asarray(own)[:, None])
  return _padded(found, k)


def nearest_places(
  points: np.ndarray,
  *,
  k: int,
  coordinates: Coordinates,
  haversine: Haversine = 'correct',
) -> np.ndarray:
  """The nearest other points of every point; of equally near ones the lower.

  Degrees become points of the unit sphere, whose straight distances order as
  the great circles do, so that a tree finds the neighbours:

    |p - q|^2 / 4 = sin^2((a - a') / 2) + cos a cos a' sin^2((b - b') / 2)

  with latitudes a and longitudes b. The published code gives degrees to that
  formula for radians, which is a place on the sphere too, only another one.

  Args:
    points: [N, 2] float64: easting and northing, or latitude and longitude.
    k: how many.
    coordinates: which of the two.
    haversine: 'published' takes degrees for radians (reference-bug): points
      360 degrees / 57.3 apart look near, and the two axes get wrong weights.

  Returns:
    int32 [N, k] rows of `points`, the nearest first, -1 where there are fewer
    others.

  Raises:
    ValueError: a coordinate is not known, or options that do not exist.

  Source: Skyy93/Sample4Geo `calc_distance_{cvusa,cvact,vigor}.py`.
  Differs: no matrix of all distances; radians by default.
  """
  points = np.asarray(points, np.float64)
  if points.ndim != 2 or points.shape[1] != 2 or not len(points):
    raise ValueError(f'points of shape {points.shape}: expected [N, 2]')
  unknown = np.flatnonzero(~np.isfinite(points).all(axis=1))
  if len(unknown):
    raise ValueError(
      f'{len(unknown)} of {len(points)} places have no coordinates (first: '
      f'{unknown[0]}), so that nobody knows what lies near them'
    )
  if coordinates == 'metres':
    space, squared = points, _squared_m
  elif coordinates == 'degrees':
    if haversine not in ('correct', 'published'):
      raise ValueError(
        f"haversine {haversine!r}: expected 'correct' or 'published'"
      )
    points = np.radians(points) if haversine == 'correct' else points
    space, squared = _on_sphere(points), _haversine
  else:
    raise ValueError(
      f"coordinates {coordinates!r}: expected 'metres' or 'degrees'"
    )
  tree = spatial.cKDTree(space)
  count = min(k + 1 + _SPARE, len(points))
  rows = np.arange(len(points))
  nearest = []
  for start in range(0, len(points), _BLOCK):
    block = slice(start, start + _BLOCK)
    _, found = tree.query(space[block], k=count)
    found = np.reshape(found, (-1, count))
    distance = squared(points[block, None], points[found])
    order = np.lexsort((found, distance), axis=-1)
    found = np.take_along_axis(found, order, axis=1)
    nearest.append(_padded(_without(found, rows[block, None]), k))
  return np.concatenate(nearest)


def _without(found: np.ndarray, own: np.ndarray) -> np.ndarray:
  """`found` [Q, n] with what equals `own` [Q, 1] as -1 at the end."""
  is_own = found == own
  order = np.argsort(is_own, axis=1, kind='stable')
  return np.take_along_axis(np.where(is_own, -1, found), order, axis=1)


def _padded(found: np.ndarray, k: int) -> np.ndarray:
  """The first k columns, int32; -1 where there are none."""
  found = found[:, :k].astype(np.int32)
  missing = k - found.shape[1]
  return np.pad(found, [(0, 0), (0, missing)], constant_values=-1)


def _on_sphere(angles: np.ndarray) -> np.ndarray:
  """[N, 3] points of the unit sphere, of latitude and longitude in radians."""
  latitude, longitude = angles.T
  flat = np.cos(latitude)
  return np.stack(
    [flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)],
    axis=1,
  )


def _squared_m(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.square(a - b).sum(axis=-1)


def _haversine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The squared sine of half the angle between points in radians."""
  lat, lng = np.moveaxis(np.square(np.sin((a - b) / 2)), -1, 0)
  return lat + np.cos(a[..., 0]) * np.cos(b[..., 0]) * lng
