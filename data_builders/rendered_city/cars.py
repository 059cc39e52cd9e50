"""Cars come and go: they are put on a scene for one hour. NumPy only."""

import dataclasses

import numpy as np

from data_builders.rendered_city import scene as sc
from data_builders.rendered_city import styles


def with_cars(
  scene: sc.Scene,
  rng: np.random.Generator,
  *,
  eye: np.ndarray | None = None,
) -> sc.Scene:
  """The place at another hour: other cars on the same stalls and streets.

  Args:
    scene: without cars.
    rng: the only source of randomness.
    eye: [2] no car stands within 7 m of a camera on the ground.
  """
  n = len(scene.parking)
  share = rng.uniform(0.25, 0.7)
  rows = np.flatnonzero(rng.uniform(size=n) < share)
  rows = rng.permutation(rows)[: sc.MAX_CARS]
  if eye is not None:
    away = ((scene.parking[rows, :2] - eye[:2]) ** 2).sum(-1)
    rows = rows[away > 7.0**2]
  if not len(rows):
    return scene
  x, y, angle = scene.parking[rows].astype(np.float64).T
  angle = angle + rng.normal(0, 0.03, len(rows))
  angle = angle + np.pi * (rng.uniform(size=len(rows)) < 0.5)
  along = rng.uniform(-0.6, 0.6, len(rows))
  c, s = np.cos(angle), np.sin(angle)
  van = rng.uniform(size=len(rows)) < 0.12
  body = np.zeros((len(rows), sc.BOX_COLUMNS))
  body[:, sc.CX], body[:, sc.CY] = x + along * c, y + along * s
  body[:, sc.Z0] = sc.terrain(body[:, [sc.CX, sc.CY]], scene.bumps)
  body[:, sc.COS], body[:, sc.SIN] = c, s
  body[:, sc.HALF_X] = np.where(van, 2.6, rng.uniform(1.9, 2.35, len(rows)))
  body[:, sc.HALF_Y] = np.where(van, 0.98, 0.88)
  body[:, sc.HEIGHT] = np.where(van, 1.25, 0.85)
  body[:, sc.KIND] = sc.CAR
  paint = styles.CAR_PAINTS[rng.integers(len(styles.CAR_PAINTS), size=len(x))]
  body[:, sc.WALL_R : sc.WALL_B + 1] = paint
  body[:, sc.ROOF_R : sc.ROOF_B + 1] = paint
  body[:, [sc.FLOOR_M, sc.BAY_M]] = 1.0
  cabin = body.copy()
  back = np.where(van, 0.3, 0.25)
  cabin[:, sc.CX], cabin[:, sc.CY] = (
    cabin[:, sc.CX] - back * c,
    cabin[:, sc.CY] - back * s,
  )
  cabin[:, sc.HALF_X] *= np.where(van, 0.86, 0.55)
  cabin[:, sc.HALF_Y] -= 0.1
  cabin[:, sc.HEIGHT] = np.where(van, 2.2, rng.uniform(1.4, 1.65, len(rows)))
  cabin[:, sc.KIND] = sc.CABIN
  boxes = scene.boxes.copy()
  cars = np.concatenate([body, cabin])
  boxes[sc.MAX_BUILDING_BOXES : sc.MAX_BUILDING_BOXES + len(cars)] = cars
  return dataclasses.replace(scene, boxes=boxes)
