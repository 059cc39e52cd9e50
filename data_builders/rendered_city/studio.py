"""One picture of a place: world, hour, camera in; encoded picture out.

What pictures are taken is said by shots.py (many views of a place), pairs.py
(a panorama and the satellite picture around it) and tiles.py (panoramas in a
grid of overlapping satellite tiles).
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from data_builders.rendered_city import (
  cameras,
  cars,
  conditions,
  heights,
  render,
)
from data_builders.rendered_city import scene as sc

FIRST_TEST_PLACE = 5000
# A frame of its own in the open Pacific, so that nobody takes it for a city.
_TRAIN_ORIGIN_DEG = (12.0, -150.0)
_TEST_ORIGIN_DEG = (14.0, -150.0)
_PLACE_SPACING_M = 500.0
_PLACES_PER_ROW = 32
_METRES_PER_DEG = 111_320.0


@dataclasses.dataclass(frozen=True)
class Shot:
  """One picture and what is known about it.

  Attributes:
    jpeg: the file.
    name: of the file.
    latlon_deg: what the picture is of: the point of the ground in its centre
      (satellite, drone, video), or where the camera stands (street,
      panorama).
    heading_deg: of the camera, clockwise from north.
    altitude_m: of the camera above the ground.
    frame: number in the flight or the video from 1, as in the name; else -1.
  """

  jpeg: bytes
  name: str
  latlon_deg: tuple[float, float]
  heading_deg: float
  altitude_m: float
  frame: int


# One place is asked for by every view in turn; its world is small, its height
# map is not.
scene = functools.lru_cache(maxsize=1024)(sc.make)


@functools.lru_cache(maxsize=2)
def height_maps(seed: int, place: int) -> heights.Heights:
  """Height maps of the world of a place."""
  return heights.make(scene(seed, place))


def latlon_deg(place: int, east_m: float, north_m: float) -> tuple:
  """Where a point near a place is, in degrees."""
  test = place >= FIRST_TEST_PLACE
  lat, lon = _TEST_ORIGIN_DEG if test else _TRAIN_ORIGIN_DEG
  index = place - FIRST_TEST_PLACE if test else place
  east = east_m + _PLACE_SPACING_M * (index % _PLACES_PER_ROW)
  north = north_m + _PLACE_SPACING_M * (index // _PLACES_PER_ROW)
  shrink = math.cos(math.radians(lat))
  return lat + north / _METRES_PER_DEG, lon + east / (_METRES_PER_DEG * shrink)


def check_train_places(name: str, count: int) -> None:
  """Raises ValueError where training places would reach into the test's."""
  if count > FIRST_TEST_PLACE:
    raise ValueError(
      f'{name} is {count}, at most {FIRST_TEST_PLACE}: test places are '
      'numbered from there'
    )


def hour(
  seed: int,
  place: int,
  weather: conditions.Conditions,
  rng: np.random.Generator,
  *,
  eye: np.ndarray | None = None,
) -> render.Hour:
  """A place at one hour: its cars, and where the sun is.

  Args:
    seed: of the city.
    place: of the city.
    weather: of the hour.
    rng: which cars stand where.
    eye: [2 or 3] metres; cars keep away from a camera on the ground.
  """
  busy = cars.with_cars(scene(seed, place), rng, eye=eye)
  return render.Hour(busy, height_maps(seed, place), weather.sun)


def take(
  then: render.Hour,
  camera: cameras.Camera,
  weather: conditions.Conditions,
  rng: np.random.Generator,
  *,
  size_hw: tuple[int, int],
  oversample: int,
  name: str,
  latlon_deg: tuple[float, float],
  frame: int = -1,
) -> Shot:
  """Renders and encodes one picture.

  Args:
    then: the place at an hour.
    camera: see cameras.py.
    weather: of the hour; exposure and noise are drawn anew.
    rng: of exposure, noise and compression.
    size_hw: of the picture.
    oversample: rays per pixel along each side.
    name, latlon_deg, frame: of `Shot`.
  """
  picture = render.picture(
    then, camera, conditions.another_frame(weather, rng), size_hw=size_hw,
    oversample=oversample,
  )  # fmt: skip
  return Shot(
    jpeg=_jpeg(np.asarray(picture), quality=int(rng.integers(86, 96))),
    name=name,
    latlon_deg=latlon_deg,
    heading_deg=camera.heading_deg,
    altitude_m=camera.altitude_m,
    frame=frame,
  )


def _jpeg(picture, *, quality):
  done, encoded = cv2.imencode(
    '.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
  )
  if not done:
    raise ValueError(f'cv2 cannot encode a picture of {picture.shape}')
  return encoded.tobytes()
