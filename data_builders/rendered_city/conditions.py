"""When and with which sensor a picture was taken.

Sun, season, haze and camera are drawn per flight and per picture, so that
nothing but the place itself is common to its satellite, drone and ground
pictures.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Conditions:
  """Everything about a picture but the place and the camera.

  Attributes:
    sun: [3] unit vector towards the sun.
    sun_colour, sky_colour: [3] light of the sun and of the sky.
    haze_colour: [3] what far things fade to.
    haze_per_m: how fast.
    dryness: 0 green to 1 straw.
    autumn: 0 summer leaves to 1 yellow and red ones.
    gain: [3] exposure and white balance.
    gamma: of the tone curve.
    contrast: of the tone curve, 0 = none added.
    saturation: 1 = as it is.
    blur_px: standard deviation of the lens blur.
    noise: standard deviation of the sensor noise, of a range of 1.
    seed: of the sensor noise and the clouds, below 2^24 (exact in float32).
  """

  sun: np.ndarray
  sun_colour: np.ndarray
  sky_colour: np.ndarray
  haze_colour: np.ndarray
  haze_per_m: float
  dryness: float
  autumn: float
  gain: np.ndarray
  gamma: float
  contrast: float
  saturation: float
  blur_px: float
  noise: float
  seed: int

  def arrays(self) -> dict[str, np.ndarray]:
    """The fields as float32 arrays, by name."""
    return {
      name: np.asarray(value, np.float32)
      for name, value in dataclasses.asdict(self).items()
    }


def draw(rng: np.random.Generator, view: str) -> Conditions:
  """A day, an hour and a camera for one picture or one flight.

  Args:
    rng: the only source of randomness.
    view: 'satellite' passes over at noon through more air; 'drone' and ground
      cameras see any hour of the day.
  """
  noon = view == 'satellite'
  elevation = math.radians(rng.uniform(38, 68) if noon else rng.uniform(22, 66))
  azimuth = rng.uniform(0, 2 * np.pi)
  low = 1 - math.sin(elevation)  # warm light from a low sun
  cloud = rng.uniform(0, 1) ** 2 if view != 'satellite' else rng.uniform(0, 0.3)
  sun_colour = np.array([1.0, 0.97 - 0.12 * low, 0.92 - 0.35 * low])
  sun_colour = sun_colour * 2.6 * (1 - 0.75 * cloud)
  sky_colour = np.array([0.52, 0.64, 0.86]) * (1 - cloud)
  sky_colour = sky_colour + np.array([0.95, 0.97, 1.0]) * cloud
  sky_colour = sky_colour * rng.uniform(0.75, 1.1)
  warmth = rng.normal(0, 0.06)
  tint = rng.normal(0, 0.02)
  exposure = math.exp(rng.normal(0, 0.16))
  return Conditions(
    sun=np.array(
      [
        math.cos(elevation) * math.sin(azimuth),
        math.cos(elevation) * math.cos(azimuth),
        math.sin(elevation),
      ]
    ),
    sun_colour=sun_colour,
    sky_colour=sky_colour,
    haze_colour=np.array([0.62, 0.71, 0.82]) * rng.uniform(0.9, 1.15),
    haze_per_m=1 / rng.uniform(1500, 6000),
    dryness=rng.uniform(0, 1) ** 1.5,
    autumn=max(0.0, rng.uniform(-0.8, 1.0)),
    gain=exposure * np.array([1 + warmth, 1 + tint, 1 - warmth]),
    gamma=rng.uniform(0.9, 1.15),
    contrast=rng.uniform(0.5, 1.4),
    saturation=rng.uniform(0.55, 0.95) if noon else rng.uniform(0.8, 1.2),
    blur_px=rng.uniform(0.35, 0.65),
    noise=rng.uniform(0.004, 0.022),
    seed=int(rng.integers(1 << 24)),
  )


def another_frame(
  conditions: Conditions, rng: np.random.Generator
) -> Conditions:
  """The next picture of the same flight: other exposure and other noise."""
  gain = conditions.gain * math.exp(rng.normal(0, 0.05))
  return dataclasses.replace(
    conditions,
    gain=gain * (1 + rng.normal(0, 0.012, 3)),
    blur_px=rng.uniform(0.35, 0.65),
    seed=int(rng.integers(1 << 24)),
  )
