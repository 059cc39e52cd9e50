"""Tiles in the format of VIGOR: panoramas in a grid of overlapping tiles.

An area is a world, covered by a square grid of north-up satellite tiles that
overlap by half. A panorama stands somewhere on a street. The tile in whose
middle quarter it stands is its positive; the others that show the spot too, up
to three, are its semi-positives. Tiles without a panorama are distractors, and
so are all tiles of some areas of the test.

A tile is 73 m wide, as VIGOR's 640 pixels of 0.114 m: offsets are given in
those pixels, whatever the size of the picture.

Place = number of the (positive) tile, counted over all areas.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_builders import records
from data_builders.rendered_city import cameras, conditions, studio
from data_builders.rendered_city import scene as sc

VIEWS = ('panorama', 'satellite')
HALF_PX = 320  # of a tile, as VIGOR counts
HALF_M = 0.114 * HALF_PX
SEMI_POSITIVES = 3
PROTOCOLS = ('cross', 'same')
_SPLITS = {
  'train': ('train_panorama', 'train_satellite'),
  'test': ('test_query_panorama', 'test_gallery_satellite'),
}
_EYE_M = 2.2
_STEP_M = 4.0  # between the points of a street where a panorama may be
_APART_M = 9.0  # between two panoramas of a tile
_MARGIN_M = 4.0  # how far panoramas reach beyond the middles of the outer tiles
_PANORAMAS = (0.15, 0.35, 0.5)  # how often a tile has 0, 1, 2 panoramas


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Sizes of a data set of tiles.

  Attributes:
    seed: of everything.
    train_areas, test_areas: worlds with panoramas.
    distractor_areas: worlds of the test without.
    grid: tiles along each side of an area; at most 5, the city ends there.
    size_px: height and width of tiles.
    panorama_hw: of panoramas; twice as wide as high shows the full sphere.
    oversample: rays per pixel along each side.
  """

  seed: int = 0
  train_areas: int
  test_areas: int
  distractor_areas: int
  grid: int
  size_px: int
  panorama_hw: tuple[int, int]
  oversample: int = 2

  def __post_init__(self):
    studio.check_train_places('train_areas', self.train_areas)
    if not 2 <= self.grid <= 5:
      raise ValueError(f'grid is {self.grid}, expected 2 to 5')

  def areas(self, part: str) -> list[int]:
    """Areas of 'train' or 'test', or of 'all'."""
    first = studio.FIRST_TEST_PLACE
    train = list(range(self.train_areas))
    total = self.test_areas + self.distractor_areas
    test = list(range(first, first + total))
    return {'train': train, 'test': test, 'all': train + test}[part]

  def has_panoramas(self, area: int) -> bool:
    """Whether an area is not there for its tiles alone."""
    return area < studio.FIRST_TEST_PLACE + self.test_areas


class Area(NamedTuple):
  """What there is in an area: T tiles, N panoramas.

  Attributes:
    centre: [T, 2] metres, of the tiles, rows from north to south.
    eye: [N, 2] metres, of the panoramas.
    tile: [N, 4] int64 the positive and the semi-positives, nearest first; -1
      fills.
    offset_px: [N, 4, 2] float64, as in `sources.Split`; NaN fills.
  """

  centre: np.ndarray
  eye: np.ndarray
  tile: np.ndarray
  offset_px: np.ndarray


@functools.lru_cache(maxsize=64)
def area(plan: Plan, number: int) -> Area:
  """An area, a pure function of the arguments."""
  steps = (np.arange(plan.grid) - (plan.grid - 1) / 2) * HALF_M
  x, y = np.meshgrid(steps, steps[::-1])
  centre = np.stack([x.ravel(), y.ravel()], -1)  # [T, 2]
  points = np.zeros((0, 2))
  if plan.has_panoramas(number):
    points = _stations(plan, number, centre)
  away = np.abs(points[:, None] - centre).max(-1)  # [N, T]
  shown = np.where(away < HALF_M, away, np.inf)
  order = np.argsort(shown, axis=1, kind='stable')[:, : 1 + SEMI_POSITIVES]
  known = np.isfinite(np.take_along_axis(shown, order, 1))
  # Of the tile's centre from the panorama: latitude (north), longitude (east).
  delta = (centre[order] - points[:, None])[..., ::-1] / HALF_M * HALF_PX
  return Area(
    centre=centre,
    eye=points,
    tile=np.where(known, order, -1),
    offset_px=np.where(known[..., None], delta, np.nan),
  )


def _stations(plan, number, centre) -> np.ndarray:
  """[N, 2] where panoramas are taken: 0 to 2 in the middle of each tile."""
  rng = np.random.default_rng([plan.seed, 606, number])
  streets = studio.scene(plan.seed, number).streets
  streets = streets[streets[:, 0] > sc.NOWHERE_M / 2].astype(np.float64)
  points = np.concatenate(
    [
      row[:2] + np.arange(1.0, row[4], _STEP_M)[:, None] * row[2:4]
      for row in streets
    ]
  )
  # Further out, most would have no semi-positive.
  points = points[np.abs(points).max(-1) < centre.max() + _MARGIN_M]
  points = points[rng.permutation(len(points))]
  away = np.abs(points[:, None] - centre).max(-1)  # [P, T]
  chosen = []
  for tile in range(len(centre)):
    inside = points[away[:, tile] < 0.48 * HALF_M]
    taken = inside[:1]
    for point in inside[1:]:
      if np.hypot(*(point - taken[0])) > _APART_M:
        taken = np.stack([taken[0], point])
        break
    chosen.append(taken[: int(rng.choice(3, p=_PANORAMAS))])
  return np.concatenate(chosen)


def tile_number(plan: Plan, number: int) -> int:
  """The place of the first tile of an area."""
  return number * plan.grid**2


def take(plan: Plan, number: int, view: str) -> Iterator[tuple]:
  """The pictures of an area from one view.

  Yields:
    (place, path, `studio.Shot`), in the order of `Area`.

  Raises:
    ValueError: unknown view.
  """
  if view not in VIEWS:
    raise ValueError(f'no view {view!r}; there are {VIEWS}')
  found = area(plan, number)
  first = tile_number(plan, number)
  key = [plan.seed, 607, number, VIEWS.index(view)]
  if view == 'satellite':
    # Tiles are cut from one flight: one day, one direction.
    rng = np.random.default_rng([*key, 1])
    weather, lean = conditions.draw(rng, view), rng.normal(0, 0.08, 2)
    then = studio.hour(plan.seed, number, weather, rng)
    for i, centre in enumerate(found.centre):
      camera = cameras.satellite(half_side_m=HALF_M, centre=centre, lean=lean)
      shot = _take(
        plan, then, camera, weather, np.random.default_rng([*key, 2, i]),
        size_hw=(plan.size_px, plan.size_px), number=number, point=centre,
      )  # fmt: skip
      name = 'satellite_{:.8f}_{:.8f}.jpg'.format(*shot.latlon_deg)
      yield first + i, f'area-{number:04d}/satellite/{name}', shot
    return
  bumps = studio.scene(plan.seed, number).bumps
  for i, eye in enumerate(found.eye):
    rng = np.random.default_rng([*key, 2, i])
    height = float(sc.terrain(eye, bumps))
    camera = cameras.panorama(
      (*eye, height + _EYE_M), ground_m=height, size_hw=plan.panorama_hw,
      tilt_deg=0.0,
    )  # fmt: skip
    weather = conditions.draw(rng, view)
    then = studio.hour(plan.seed, number, weather, rng, eye=eye)
    shot = _take(
      plan, then, camera, weather, rng, size_hw=plan.panorama_hw,
      number=number, point=eye,
    )  # fmt: skip
    name = 'panorama-{:03d},{:.8f},{:.8f},.jpg'.format(i, *shot.latlon_deg)
    place = first + int(found.tile[i, 0])
    yield place, f'area-{number:04d}/panorama/{name}', shot


def _take(plan, then, camera, weather, rng, *, size_hw, number, point):
  return studio.take(
    then, camera, weather, rng, size_hw=size_hw, oversample=plan.oversample,
    name='', latlon_deg=studio.latlon_deg(number, *point),
  )  # fmt: skip


def count(plan: Plan, number: int, view: str) -> int:
  """How many pictures an area has from a view."""
  found = area(plan, number)
  return len(found.eye if view == 'panorama' else found.centre)


def selections(plan: Plan) -> Iterator[records.Selection]:
  """The splits of both protocols, as rows of 'panorama' and 'satellite'.

  'cross' trains and tests in different areas. 'same' uses all areas for both,
  with all tiles as the gallery; every other tile is the positive of training
  panoramas, the rest of test panoramas.
  """
  everywhere = plan.areas('all')
  for part in _SPLITS:
    yield from _side(plan, 'cross', part, plan.areas(part))
    yield from _side(plan, 'same', part, everywhere)


def _side(plan, protocol, part, numbers: Sequence[int]):
  """Gallery and queries of one half of a protocol."""
  query_split, gallery_split = _SPLITS[part]
  columns = {'positive': [], 'semi_positives': [], 'offset_px': []}
  query_rows, gallery_rows = [], []
  panoramas = tiles = 0  # before this area, in the stored splits
  for number in plan.areas('all'):
    found = area(plan, number)
    if number in numbers:
      start = sum(map(len, gallery_rows))
      gallery_rows.append(tiles + np.arange(len(found.centre)))
      rows = np.arange(len(found.eye))
      if protocol == 'same':
        rows = rows[found.tile[:, 0] % 2 == (part == 'test')]
      query_rows.append(panoramas + rows)
      tile = np.where(found.tile >= 0, start + found.tile, -1)[rows]
      columns['positive'].append(tile[:, 0])
      columns['semi_positives'].append(tile[:, 1:])
      columns['offset_px'].append(found.offset_px[rows])
    panoramas += len(found.eye)
    tiles += len(found.centre)
  yield records.Selection(
    protocol=protocol, split=gallery_split, stored='satellite',
    rows=np.concatenate(gallery_rows), columns={},
  )  # fmt: skip
  yield records.Selection(
    protocol=protocol, split=query_split, stored='panorama',
    rows=np.concatenate(query_rows),
    columns={k: np.concatenate(v) for k, v in columns.items()},
    gallery=gallery_split,
  )  # fmt: skip
