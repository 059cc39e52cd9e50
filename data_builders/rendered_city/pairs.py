"""Pairs in the format of CVUSA: a panorama, and the satellite picture around it.

Every place is another world with one pair: a panorama from a street, north in
its centre column, and a north-up satellite picture of the same spot, taken on
another day. Query i belongs to gallery row i. Panoramas have the shape of
CVUSA's (5.5 : 1), so that its recipes take them as they are. All is a pure
function of (plan, place, view).
"""

import dataclasses

import numpy as np

from data_builders.rendered_city import cameras, conditions, studio
from data_builders.rendered_city import scene as sc

VIEWS = ('panorama', 'satellite')
SPLITS = {
  'train': {'panorama': 'train_panorama', 'satellite': 'train_satellite'},
  'test': {
    'panorama': 'test_query_panorama',
    'satellite': 'test_gallery_satellite',
  },
}
SATELLITE_HALF_M = 64.0
_STATIONS = 12  # points of the street nearest to the place, of which one is it
_EYE_M = 2.2
_GPS_ERROR_M = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Sizes of a data set of pairs.

  Attributes:
    seed: of everything.
    train_places: pairs of the train splits.
    test_places: pairs of the test splits, of other districts.
    size_px: height and width of satellite pictures.
    panorama_hw: of panoramas; rows and columns have the same angle per pixel.
    oversample: rays per pixel along each side.
  """

  seed: int = 0
  train_places: int
  test_places: int
  size_px: int
  panorama_hw: tuple[int, int]
  oversample: int = 2

  def __post_init__(self):
    studio.check_train_places('train_places', self.train_places)

  def places(self, part: str) -> range:
    """Places of 'train' or 'test'."""
    if part == 'train':
      return range(self.train_places)
    first = studio.FIRST_TEST_PLACE
    return range(first, first + self.test_places)


def station(plan: Plan, place: int) -> np.ndarray:
  """Where the panorama of a place is taken: [2] metres from its middle."""
  world = studio.scene(plan.seed, place)
  rng = np.random.default_rng([plan.seed, 404, place])
  near = world.eyes[:_STATIONS]
  return near[int(rng.integers(len(near)))] + rng.uniform(-1, 1, 2)


def take(plan: Plan, place: int, view: str) -> studio.Shot:
  """The panorama or the satellite picture of a place.

  Raises:
    ValueError: unknown view.
  """
  if view not in VIEWS:
    raise ValueError(f'no view {view!r}; there are {VIEWS}')
  rng = np.random.default_rng([plan.seed, 405, place, VIEWS.index(view)])
  weather = conditions.draw(rng, view)
  here = station(plan, place)
  if view == 'panorama':
    world = studio.scene(plan.seed, place)
    height = float(sc.terrain(here, world.bumps))
    size_hw = plan.panorama_hw
    camera = cameras.panorama(
      (*here, height + _EYE_M), ground_m=height, size_hw=size_hw
    )
  else:
    here = here + rng.normal(0, _GPS_ERROR_M, 2)
    size_hw = (plan.size_px, plan.size_px)
    camera = cameras.satellite(
      half_side_m=SATELLITE_HALF_M, centre=here, lean=rng.normal(0, 0.08, 2)
    )
  eye = camera.eye if view == 'panorama' else None
  return studio.take(
    studio.hour(plan.seed, place, weather, rng, eye=eye), camera, weather, rng,
    size_hw=size_hw, oversample=plan.oversample, name=f'{place:07d}',
    latlon_deg=studio.latlon_deg(place, *here),
  )  # fmt: skip
