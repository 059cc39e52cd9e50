"""Cameras: position, direction, and the ray of every pixel.

Metres, x east, y north, z up. Headings are in degrees clockwise from north.
"""

import dataclasses
import math

import numpy as np

SPIRAL_VIEWS = 54
SPIRAL_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera. Pixel (i, j) of an [h, w] picture has px, py in (-1, 1), px to
  the right, py up; its ray starts at eye + reach * (px * right + py * up) and
  goes along forward + spread * (px * w / h * right + py * up).

  Attributes:
    eye, right, up, forward: [3] float64.
    reach_m: half side of the ground seen by a parallel projection, else 0.
    spread: tangent of half the vertical field of view; 0 = parallel.
    panorama: all 360 degrees; px = 0 is `forward`, columns are angles. Then
      `spread` is the elevation, in radians, of the upper edge above `tilt`.
    tilt_rad: elevation of the panorama's middle row.
    heading_deg: of `forward`, clockwise from north.
    altitude_m: of the eye above the ground.
  """

  eye: np.ndarray
  right: np.ndarray
  up: np.ndarray
  forward: np.ndarray
  reach_m: float
  spread: float
  panorama: bool
  tilt_rad: float
  heading_deg: float
  altitude_m: float

  def arrays(self) -> dict[str, np.ndarray]:
    """The fields as float32 arrays, by name."""
    arrays = {
      name: np.asarray(value, np.float32)
      for name, value in dataclasses.asdict(self).items()
    }
    return arrays | {'panorama': np.asarray(self.panorama)}

  def project(self, point: np.ndarray) -> np.ndarray:
    """World point [3] -> (px * w / h, py) of a perspective picture."""
    delta = point - self.eye
    depth = delta @ self.forward * self.spread
    return np.array([delta @ self.right, delta @ self.up]) / depth


def _unit(vector):
  vector = np.asarray(vector, np.float64)
  return vector / np.linalg.norm(vector)


def satellite(*, half_side_m: float, centre=(0.0, 0.0), lean=(0.0, 0.0)):
  """North up, parallel; the ground is in place, high things lean.

  Args:
    half_side_m: of the square of ground.
    centre: [2] metres, the middle of the picture.
    lean: [2] metres to the east and north that a point moves per metre of
      height (the satellite was not exactly overhead).
  """
  height_m = 500.0
  forward = np.array([lean[0], lean[1], -1.0])
  eye = np.array([*centre, 0.0]) - height_m * forward
  return Camera(
    eye=eye,
    right=np.array([1.0, 0.0, 0.0]),
    up=np.array([0.0, 1.0, 0.0]),
    forward=_unit(forward),
    reach_m=half_side_m,
    spread=0.0,
    panorama=False,
    tilt_rad=0.0,
    heading_deg=0.0,
    altitude_m=height_m,
  )


def look_at(eye, target, *, fov_deg: float, ground_m: float = 0.0) -> Camera:
  """Perspective, no roll.

  Args:
    eye, target: [3] metres.
    fov_deg: vertical field of view.
    ground_m: height of the terrain below the eye.
  """
  eye, target = np.asarray(eye, np.float64), np.asarray(target, np.float64)
  forward = _unit(target - eye)
  right = _unit(np.cross(forward, (0.0, 0.0, 1.0)))
  return Camera(
    eye=eye,
    right=right,
    up=np.cross(right, forward),
    forward=forward,
    reach_m=0.0,
    spread=math.tan(math.radians(fov_deg) / 2),
    panorama=False,
    tilt_rad=0.0,
    heading_deg=heading_deg(forward),
    altitude_m=float(eye[2] - ground_m),
  )


def panorama(
  eye, *, ground_m: float, size_hw: tuple[int, int], tilt_deg: float = 6.0
) -> Camera:
  """360 degrees, north at the centre column, east to its right; rows and
  columns have the same angle per pixel.

  Args:
    eye: [3] metres.
    ground_m: height of the terrain below the eye.
    size_hw: of the picture; a width of twice the height shows the full sphere.
    tilt_deg: elevation of the middle row; 0 puts the horizon there.
  """
  h, w = size_hw
  return Camera(
    eye=np.asarray(eye, np.float64),
    right=np.array([1.0, 0.0, 0.0]),
    up=np.array([0.0, 0.0, 1.0]),
    forward=np.array([0.0, 1.0, 0.0]),
    reach_m=0.0,
    spread=math.pi * h / w,
    panorama=True,
    tilt_rad=math.radians(tilt_deg),
    heading_deg=0.0,
    altitude_m=float(eye[2] - ground_m),
  )


def heading_deg(direction: np.ndarray) -> float:
  """Clockwise from north, 0 <= heading < 360."""
  return math.degrees(math.atan2(direction[0], direction[1])) % 360.0


def spiral(view: int, *, start_deg: float = 0.0) -> tuple[np.ndarray, float]:
  """Eye of a University-1652 flight, and its field of view.

  Three rounds around the place while altitude falls from 256 m to 121.5 m and
  the radius from 148 m to 110 m.

  Args:
    view: 0 <= view < 54, in flight order.
    start_deg: bearing of the first view, seen from the place.

  Returns:
    eye [3] relative to the place, vertical field of view in degrees.
  """
  done = view / (SPIRAL_VIEWS - 1)
  bearing = math.radians(start_deg + 360.0 * SPIRAL_ROUNDS * done)
  altitude_m = 256.0 + (121.5 - 256.0) * done
  elevation = math.radians(60.0 + (48.0 - 60.0) * done)
  radius_m = altitude_m / math.tan(elevation)
  eye = np.array(
    [radius_m * math.sin(bearing), radius_m * math.cos(bearing), altitude_m]
  )
  return eye, 34.0


def orbit(
  frame: int, *, frames: int, elevation_deg: float, start_deg: float = 0.0
) -> tuple[np.ndarray, float]:
  """Eye of a video frame: one round at a constant angle above the ground.

  Args:
    frame: 0 <= frame < frames.
    frames: in the video.
    elevation_deg: angle between the ground and the line of sight (UniV).
    start_deg: bearing of the first frame, seen from the place.

  Returns:
    eye [3] relative to the place, vertical field of view in degrees.
  """
  slant_m = 185.0
  bearing = math.radians(start_deg + 360.0 * frame / frames)
  elevation = math.radians(elevation_deg)
  radius_m = slant_m * math.cos(elevation)
  eye = np.array(
    [
      radius_m * math.sin(bearing),
      radius_m * math.cos(bearing),
      slant_m * math.sin(elevation),
    ]
  )
  return eye, 36.0
