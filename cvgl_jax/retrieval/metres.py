"""Metres on the ground: distances, right answers by distance, metre accuracy.

Coordinates stay float64: a float32 degree of longitude is good to a metre only.

Sources: Jeff-Zilence/VIGOR (metre-level accuracy); Liumouliu/OriCNN
`RecallGeo.m` (CVACT_test: an answer within 5 m of the query is right).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

EARTH_RADIUS_M = 6_371_004.0
# The VIGOR repository's thresholds: 1.1^(i/5) metres, i = 1, ..., 499.
THRESHOLDS_M = tuple(1.1 ** (i / 5) for i in range(1, 500))
# Distances of the shares that are printed, and their names.
WITHIN_M = {f'within {m} m %': float(m) for m in (5, 10, 25, 50)}

Coordinates = Literal['metres', 'degrees']


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetreResult:
  """How far the best answers are from the truth.

  Attributes:
    thresholds_m: [T] distances in metres.
    accuracy: [T] float64, share of queries whose error is below each.
    error_m: [Q] float64, distance of each query's prediction from the truth.
  """

  thresholds_m: np.ndarray
  accuracy: np.ndarray
  error_m: np.ndarray

  def report(self) -> dict[str, float]:
    """Mean and median error in metres, and shares of queries in percent.

    'within 5 m %', ..., 'within 50 m %' count errors of up to so many metres,
    as `rows_within` does; `accuracy`, the published curve, those below.
    """
    return {
      'mean error m': float(self.error_m.mean()),
      'median error m': float(np.median(self.error_m)),
    } | {
      name: 100 * float(np.mean(self.error_m <= most))
      for name, most in WITHIN_M.items()
    }


def great_circle_m(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
  """Distance on the sphere in metres, R = 6,371,004 m.

  The spherical law of cosines, cos(d / R) = sin p sin p' + cos p cos p' cos(l),
  with latitudes p, p' and difference of longitudes l, in the half-angle form

    sin^2(d / 2R) = sin^2((p - p') / 2) + cos p cos p' sin^2(l / 2)

  which is the same number, but exact to less than a micrometre for near points.

  Args:
    a_deg: [..., 2] latitude and longitude in degrees, taken as float64.
    b_deg: [..., 2]; the leading axes broadcast.

  Returns:
    [...] float64.

  Source: Jeff-Zilence/VIGOR (gps2distance).
  Differs: its arccos of float64 cosines is off by up to 0.1 m for near points,
  and NaN where rounding lifts a cosine above 1.
  """
  a, b = (np.radians(np.asarray(x, np.float64)) for x in (a_deg, b_deg))
  lat, lng = np.moveaxis(np.sin((a - b) / 2) ** 2, -1, 0)
  half = lat + np.cos(a[..., 0]) * np.cos(b[..., 0]) * lng
  return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def shift_deg(
  centre_deg: np.ndarray,
  offset_px: np.ndarray,
  *,
  metres_per_px: float = 0.114,
  half_size_px: int = 320,
) -> np.ndarray:
  """The place at a pixel offset from the centre of a north-up tile.

    centre - step(centre) * offset / 320

  step: the latitude and longitude in degrees that 320 px make at the centre,
  (d / R, 2 arcsin(sin(d / 2R) / cos latitude)) with d = 320 * 0.114 m.

  Args:
    centre_deg: [..., 2] latitude and longitude of the tile's centre.
    offset_px: [..., 2] offsets (latitude, longitude) of the centre from the
      place, as VIGOR's label files list them.
    metres_per_px: ground resolution; VIGOR's nominal one.
    half_size_px: half the side of a tile, the unit of the formula.

  Returns:
    [..., 2] float64, degrees.
  """
  centre = np.asarray(centre_deg, np.float64)
  angle = half_size_px * metres_per_px / EARTH_RADIUS_M
  latitude = np.radians(centre[..., 0])
  step = np.stack(
    [
      np.full(latitude.shape, angle),
      2 * np.arcsin(np.sin(angle / 2) / np.cos(latitude)),
    ],
    axis=-1,
  )
  offset = np.asarray(offset_px, np.float64)
  return centre - np.degrees(step) * offset / half_size_px


def metre_accuracy(
  error_m: np.ndarray, *, thresholds_m: Sequence[float] = THRESHOLDS_M
) -> MetreResult:
  """Metre-level accuracy: share of queries with an error below each threshold.

  Args:
    error_m: [Q] distances in metres, from `great_circle_m`.
    thresholds_m: [T]; VIGOR's 1.1^(i/5), i = 1..499, by default.

  Returns:
    `MetreResult`.

  Raises:
    ValueError: no distances, or some that are negative or not finite.
  """
  error_m = np.asarray(error_m, np.float64)
  thresholds = np.asarray(thresholds_m, np.float64)
  if error_m.ndim != 1 or not len(error_m):
    raise ValueError(f'error_m: shape {error_m.shape}, expected [Q], Q > 0')
  bad = np.flatnonzero(~(np.isfinite(error_m) & (error_m >= 0)))
  if len(bad):
    raise ValueError(
      f'error_m: {len(bad)} of {len(error_m)} distances are negative or not '
      f'finite (first: query {bad[0]}, {error_m[bad[0]]})'
    )
  below = np.searchsorted(np.sort(error_m), thresholds, side='left')
  return MetreResult(
    thresholds_m=thresholds, accuracy=below / len(error_m), error_m=error_m
  )


def rows_within(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  radius_m: float = 5.0,
  coordinates: Coordinates = 'metres',
) -> np.ndarray:
  """Gallery rows that lie within a radius of each query: its right answers.

    distance(query, row) <= radius

  CVACT_test is measured so, with the UTM coordinates of its list and 5 m.

  Args:
    query: [Q, 2] coordinates.
    gallery: [G, 2] coordinates.
    radius_m: of the disc, in metres.
    coordinates: 'metres' of one plane (UTM of one zone): Euclidean distance;
      'degrees' of latitude and longitude: `great_circle_m`.

  Returns:
    [Q, P] int32, ascending, -1 fills, P at least 1: what `evaluate_ranking`
    takes as positives.

  Raises:
    ValueError: coordinates of the wrong shape, not finite, or beyond the poles;
      a negative radius; an unknown kind of coordinates.
  """
  if coordinates not in ('metres', 'degrees'):
    raise ValueError(
      f"coordinates {coordinates!r}: expected 'metres' or 'degrees'"
    )
  if not (np.isfinite(radius_m) and radius_m >= 0):
    raise ValueError(f'radius_m {radius_m}: expected a length from 0')
  degrees = coordinates == 'degrees'
  check = check_degrees if degrees else _check_points
  query, gallery = check(query, 'query'), check(gallery, 'gallery')
  # No point is nearer than its difference in the first coordinate.
  reach = np.degrees(radius_m / EARTH_RADIUS_M) if degrees else radius_m
  reach = reach * (1 + 1e-9) + 1e-12
  order = np.argsort(gallery[:, 0], kind='stable')
  first = gallery[order, 0]
  start = np.searchsorted(first, query[:, 0] - reach, side='left')
  stop = np.searchsorted(first, query[:, 0] + reach, side='right')
  lists = []
  for point, a, b in zip(query, start, stop, strict=True):
    near = order[a:b]
    if degrees:
      distance = great_circle_m(point, gallery[near])
    else:
      distance = np.hypot(*(gallery[near] - point[None]).T)
    lists.append(np.sort(near[distance <= radius_m]))
  rows = np.full((len(query), max(1, *map(len, lists))), -1, np.int32)
  for row, found in zip(rows, lists, strict=True):
    row[: len(found)] = found
  return rows


def check_degrees(points: np.ndarray, name: str) -> np.ndarray:
  """Latitudes and longitudes [N, 2] as float64, or an error."""
  points = _check_points(points, name)
  beyond = np.flatnonzero(np.abs(points[:, 0]) > 90)
  if len(beyond):
    raise ValueError(
      f'{name}: {len(beyond)} of {len(points)} latitudes are beyond the poles '
      f'(first: row {beyond[0]}, {points[beyond[0]].tolist()}); expected '
      '(latitude, longitude) in degrees, in this order'
    )
  return points


def _check_points(points: np.ndarray, name: str) -> np.ndarray:
  points = np.asarray(points)
  if points.ndim != 2 or points.shape[1] != 2 or not len(points):
    raise ValueError(
      f'{name}: coordinates of shape {points.shape}, expected [rows, 2]'
    )
  points = points.astype(np.float64)
  bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
  if len(bad):
    raise ValueError(
      f'{name}: {len(bad)} of {len(points)} coordinates are not finite (first: '
      f'row {bad[0]}); the place of every row must be known'
    )
  return points
