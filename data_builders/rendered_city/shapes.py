"""Oriented rectangles on the ground: distances and overlaps. NumPy only."""

import dataclasses

import numpy as np


def rotation(angle_rad: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
  return np.cos(angle_rad), np.sin(angle_rad)


@dataclasses.dataclass(frozen=True)
class Rects:
  """Oriented rectangles: centre [N, 2], angle [N], half sizes [N, 2]."""

  centre: np.ndarray
  angle_rad: np.ndarray
  half: np.ndarray

  def __len__(self) -> int:
    return len(self.angle_rad)

  def select(self, rows: np.ndarray) -> 'Rects':
    return Rects(self.centre[rows], self.angle_rad[rows], self.half[rows])

  def outline(self) -> np.ndarray:
    """[N, 9, 2] centre, corners and edge midpoints."""
    grid = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    local = self.half[:, None] * grid
    c, s = rotation(self.angle_rad)
    x = c[:, None] * local[..., 0] - s[:, None] * local[..., 1]
    y = s[:, None] * local[..., 0] + c[:, None] * local[..., 1]
    return self.centre[:, None] + np.stack([x, y], -1)

  def distance(self, points: np.ndarray) -> np.ndarray:
    """points [P, 2] -> [P, N] signed distance."""
    delta = points[:, None] - self.centre
    c, s = rotation(self.angle_rad)
    q = np.stack(
      [
        np.abs(c * delta[..., 0] + s * delta[..., 1]),
        np.abs(-s * delta[..., 0] + c * delta[..., 1]),
      ],
      -1,
    )
    q = q - self.half
    outside = np.sqrt((np.maximum(q, 0) ** 2).sum(-1))
    return outside + np.minimum(q.max(-1), 0)


def overlaps(a: Rects, b: Rects, *, margin_m: float) -> np.ndarray:
  """[Na, Nb] whether rectangles come closer than a margin (separating axes)."""
  separate = np.zeros((len(a), len(b)), bool)
  delta = b.centre[None] - a.centre[:, None]
  turn = b.angle_rad[None] - a.angle_rad[:, None]
  ct, st = np.abs(np.cos(turn)), np.abs(np.sin(turn))
  ha, hb = a.half[:, None], b.half[None]
  for angle, mine, other in (
    (a.angle_rad[:, None], ha, hb),
    (b.angle_rad[None], hb, ha),
  ):
    c, s = rotation(angle)
    for axis, along in enumerate(
      (
        np.abs(c * delta[..., 0] + s * delta[..., 1]),
        np.abs(-s * delta[..., 0] + c * delta[..., 1]),
      )
    ):
      o = 1 - axis
      reach = mine[..., axis] + ct * other[..., axis] + st * other[..., o]
      separate |= along > reach + margin_m
  return ~separate


def greedy(clash: np.ndarray) -> np.ndarray:
  """Rows kept when each is taken unless it clashes with a kept one."""
  blocked = np.zeros(len(clash), bool)
  kept = []
  for i in range(len(clash)):
    if not blocked[i]:
      kept.append(i)
      blocked |= clash[i]
  return np.array(kept, np.int64)
