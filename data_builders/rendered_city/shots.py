"""Which pictures are taken of a place, and taking them.

All is a pure function of (plan, place, view): jobs run in any process and in
any order, and one place never depends on another.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from data_builders.rendered_city import cameras, conditions, studio
from data_builders.rendered_city import scene as sc

VIEWS = (
  'satellite', 'drone', 'street', 'panorama', 'video30', 'video45',
)  # fmt: skip
SATELLITE_HALF_M = 64.0
FIRST_TEST_PLACE = studio.FIRST_TEST_PLACE
_EYE_M = 1.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Sizes of a data set.

  Attributes:
    seed: of everything.
    train_places: in the train splits.
    query_places: in the query and in the gallery splits of the test.
    distractor_places: in the gallery only.
    train_drone, test_drone: views of the spiral of 54 taken of a place.
    street: photos of a place taken from streets around it.
    panorama: panoramas of a place (0 or 1).
    video_frames: of each of the two videos; 0 = no videos.
    size_px: height and width of pictures.
    panorama_hw: of panoramas.
    oversample: rays per pixel along each side.
  """

  seed: int = 0
  train_places: int
  query_places: int
  distractor_places: int
  train_drone: int
  test_drone: int
  street: int
  panorama: int
  video_frames: int
  size_px: int
  panorama_hw: tuple[int, int]
  oversample: int = 2

  def __post_init__(self):
    studio.check_train_places('train_places', self.train_places)
    for name in ('train_drone', 'test_drone'):
      if not 0 <= getattr(self, name) <= cameras.SPIRAL_VIEWS:
        raise ValueError(
          f'{name} is {getattr(self, name)}, expected 0 to '
          f'{cameras.SPIRAL_VIEWS}'
        )

  def places(self, split: str) -> list[int]:
    """Places of 'train', 'test_query' or 'test_gallery', ascending."""
    if split == 'train':
      return list(range(self.train_places))
    # Distractors lie between the query places, in the same districts.
    total = self.query_places + self.distractor_places
    extra = [
      (j + 1) * self.distractor_places // total
      > j * self.distractor_places // total
      for j in range(total)
    ]
    return [
      FIRST_TEST_PLACE + j
      for j in range(total)
      if split == 'test_gallery' or not extra[j]
    ]

  def count(self, split: str, view: str) -> int:
    """How many pictures a place has."""
    return {
      'satellite': 1,
      'drone': self.train_drone if split == 'train' else self.test_drone,
      'street': self.street,
      'panorama': self.panorama,
      'video30': self.video_frames,
      'video45': self.video_frames,
    }[view]


def take(
  plan: Plan, place: int, view: str, count: int
) -> Iterator[studio.Shot]:
  """Pictures of one place from one view, in order.

  Raises:
    ValueError: unknown view.
  """
  if view not in VIEWS:
    raise ValueError(f'no view {view!r}; there are {VIEWS}')
  world = studio.scene(plan.seed, place)
  camera_of = {
    'satellite': _satellite,
    'drone': _drone,
    'street': _street,
    'panorama': _panorama,
    'video30': functools.partial(_video, 30.0),
    'video45': functools.partial(_video, 45.0),
  }[view]
  size_hw = (plan.size_px, plan.size_px)
  if view == 'panorama':
    size_hw = plan.panorama_hw
  before = None
  for i in range(count):
    # Streams: of the whole view, of one flight or hour, of one picture.
    key = [plan.seed, 303, place, VIEWS.index(view)]
    rng = np.random.default_rng([*key, 2, i])
    camera, name, frame, hour, centre = camera_of(
      world, i, count=count, size_hw=size_hw, rng=rng,
      fixed=np.random.default_rng([*key, 0]),
    )  # fmt: skip
    if hour != before:
      before = hour
      hour_rng = np.random.default_rng([*key, 1, hour])
      weather = conditions.draw(hour_rng, view)
      ground = camera.altitude_m < 20
      then = studio.hour(
        plan.seed, place, weather, hour_rng, eye=camera.eye if ground else None
      )
    yield studio.take(
      then, camera, weather, rng, size_hw=size_hw, oversample=plan.oversample,
      name=name, latlon_deg=studio.latlon_deg(place, *centre), frame=frame,
    )  # fmt: skip


# Each returns camera, file name, frame, hour (pictures of one hour share sun,
# season and cars) and the point [2] that the picture is of.


def _satellite(world, i, *, count, size_hw, rng, fixed):
  centre = rng.normal(0, 1.5, 2)
  camera = cameras.satellite(
    half_side_m=SATELLITE_HALF_M, centre=centre, lean=rng.normal(0, 0.08, 2)
  )
  return camera, 'satellite', -1, i, centre


def _aim(world, rng, eye, fov_deg):
  """A drone's camera that looks at the place, nearly."""
  centre = rng.normal(0, 1.5, 2)
  height = float(sc.terrain(centre, world.bumps))
  eye = eye + rng.normal(0, 1.5, 3) + (0, 0, height)
  camera = cameras.look_at(
    eye,
    (*centre, height),
    fov_deg=fov_deg,
    ground_m=float(sc.terrain(eye[:2], world.bumps)),
  )
  return camera, centre


def spiral_view(i: int, count: int) -> int:
  """Which of the 54 views the i-th of `count` is: ascending, spread over all
  heights and, by the golden ratio, over all bearings."""
  golden = (i * 0.618034) % 1.0
  return int((i + golden) * cameras.SPIRAL_VIEWS / count)


def _drone(world, i, *, count, size_hw, rng, fixed):
  view = spiral_view(i, count)
  eye, fov_deg = cameras.spiral(view, start_deg=fixed.uniform(0, 360))
  camera, centre = _aim(world, rng, eye, fov_deg)
  per_round = cameras.SPIRAL_VIEWS // cameras.SPIRAL_ROUNDS
  return camera, f'image-{view + 1:02d}', view + 1, view // per_round, centre


def _video(elevation_deg, world, i, *, count, size_hw, rng, fixed):
  eye, fov_deg = cameras.orbit(
    i, frames=count, elevation_deg=elevation_deg,
    start_deg=fixed.uniform(0, 360),
  )  # fmt: skip
  camera, centre = _aim(world, rng, eye, fov_deg)
  return camera, f'frame-{i + 1:03d}', i + 1, 0, centre


def _street(world, i, *, count, size_hw, rng, fixed):
  eye = _street_eyes(world, count)[i] + rng.uniform(-1, 1, 2)
  height = float(sc.terrain(eye, world.bumps))
  side = rng.normal(0, 3.0, 2)
  camera = cameras.look_at(
    (*eye, height + _EYE_M),
    (*side, float(sc.terrain(side, world.bumps)) + rng.uniform(3, 6)),
    fov_deg=rng.uniform(58, 74),
    ground_m=height,
  )
  return camera, f'street-{i + 1:02d}', -1, i, eye


def _street_eyes(world, count):
  """[count, 2] points that see the place, from different sides."""
  far = np.sqrt((world.eyes**2).sum(-1))
  cost = 12.0 * world.clear + np.abs(far - 32.0) / 8
  direction = world.eyes / np.maximum(far, 1e-3)[:, None]
  chosen = []
  for _ in range(count):
    best = int(np.argmin(cost))
    chosen.append(best)
    cost = cost + 6 * np.maximum(direction @ direction[best], 0) ** 2
  return world.eyes[chosen].astype(np.float64)


def _panorama(world, i, *, count, size_hw, rng, fixed):
  near = np.flatnonzero(world.clear == world.clear.min())[:6]
  eye = world.eyes[int(rng.choice(near))] + rng.uniform(-1, 1, 2)
  height = float(sc.terrain(eye, world.bumps))
  camera = cameras.panorama(
    (*eye, height + 2.2), ground_m=height, size_hw=size_hw
  )
  return camera, 'panorama', -1, i, eye
