"""Plans of one place: streets, lots, areas. NumPy only, in metres.

x grows to the east, y to the north, the place is the origin.
"""

import dataclasses

import numpy as np

from data_builders.rendered_city import shapes, styles

HALF_M = 200.0  # the built-up square reaches this far from the place
MAX_STREETS = 28
MAX_AREAS = 16
STALL_M = 2.7  # width of a parking place


# ---------------------------------------------------------------- streets


@dataclasses.dataclass(frozen=True)
class Streets:
  """Straight pieces of street.

  Attributes:
    start: [S, 2] one end.
    along: [S, 2] unit vector to the other end.
    length: [S] metres.
    half_width: [S] metres, kerb to centre line.
    lanes: [S] 2 = lane markings, 1 = plain asphalt, 0 = gravel.
  """

  start: np.ndarray
  along: np.ndarray
  length: np.ndarray
  half_width: np.ndarray
  lanes: np.ndarray

  def moved(self, offset: np.ndarray) -> 'Streets':
    return dataclasses.replace(self, start=self.start + offset)

  def rects(self) -> shapes.Rects:
    """The carriageways."""
    return shapes.Rects(
      self.start + 0.5 * self.length[:, None] * self.along,
      np.arctan2(self.along[:, 1], self.along[:, 0]),
      np.stack([0.5 * self.length + self.half_width, self.half_width], -1),
    )

  def distance(self, points: np.ndarray) -> np.ndarray:
    """points [..., 2] -> [..., S] metres from the kerb, negative on it."""
    delta = points[..., None, :] - self.start
    s = np.clip((delta * self.along).sum(-1), 0.0, self.length)
    delta = delta - s[..., None] * self.along
    return np.sqrt((delta**2).sum(-1)) - self.half_width


def _from_lines(lines: list[tuple]) -> Streets:
  """lines: (x0, y0, x1, y1, half_width, lanes), at most MAX_STREETS kept."""
  array = np.array(lines[:MAX_STREETS], np.float64)
  delta = array[:, 2:4] - array[:, 0:2]
  length = np.maximum(np.sqrt((delta**2).sum(-1)), 1e-3)
  return Streets(
    start=array[:, 0:2],
    along=delta / length[:, None],
    length=length,
    half_width=array[:, 4],
    lanes=array[:, 5],
  )


def _grid(rng, style, reach):
  """Two families of parallel streets; some pieces are missing."""
  c, s = shapes.rotation(style.angle_rad + rng.normal(0, 0.06))
  skew = rng.uniform(-0.25, 0.25) if rng.uniform() < 0.3 else 0.0
  ticks = []
  for _ in range(2):
    at = [-reach + rng.uniform(0, 60)]
    while at[-1] < reach:
      at.append(at[-1] + rng.uniform(*style.kind.street_m))
    ticks.append(at[:8])
  lines = []
  for family in (0, 1):
    across = ticks[1 - family]
    for at in ticks[family]:
      half, lanes = (4.6, 2) if rng.uniform() < 0.6 else (3.2, 1)
      if rng.uniform() < 0.15:
        half = 7.0
      a, b = -reach, reach
      if rng.uniform() < 0.35 and len(across) > 3:  # ends at a crossing
        cut = across[int(rng.integers(1, len(across) - 1))]
        a, b = (cut, b) if rng.uniform() < 0.5 else (a, cut)
      ends = [(a, at), (b, at)] if family == 0 else [(at, a), (at, b)]
      (u0, v0), (u1, v1) = [(u + skew * v, v) for u, v in ends]
      lines.append(
        (
          c * u0 - s * v0,
          s * u0 + c * v0,
          c * u1 - s * v1,
          s * u1 + c * v1,
          half,
          lanes,
        )
      )
  return lines


def _polyline(rng, start, heading, *, step, turn, count, half, lanes):
  x, y = start
  lines, bend = [], 0.0
  for _ in range(count):
    bend = 0.6 * bend + rng.normal(0, turn)
    heading = heading + np.clip(bend, -0.5, 0.5)
    x1, y1 = x + step * np.cos(heading), y + step * np.sin(heading)
    lines.append((x, y, x1, y1, half, lanes))
    x, y = x1, y1
  return lines


def _curved(rng, style, reach):
  """A winding road and branches that leave it at right angles."""
  angle = style.angle_rad + rng.normal(0, 0.2)
  side = rng.uniform(-60, 60)
  start = (
    -reach * np.cos(angle) - side * np.sin(angle),
    -reach * np.sin(angle) + side * np.cos(angle),
  )
  lines = _polyline(
    rng, start, angle, step=reach / 4, turn=0.18, count=9, half=4.8, lanes=2
  )
  for i in rng.permutation(8)[: int(rng.integers(3, 6))]:
    x0, y0, x1, y1 = lines[i][:4]
    heading = np.arctan2(y1 - y0, x1 - x0)
    heading += np.pi / 2 * (1 if rng.uniform() < 0.5 else -1)
    lines += _polyline(
      rng, (x1, y1), heading, step=42, turn=0.2, count=4, half=3.2, lanes=1
    )
  return lines


def _radial(rng, style, reach):
  """Roads that meet at a junction; often a ring road."""
  x, y = rng.uniform(-50, 50, 2)
  arms = int(rng.integers(3, 7))
  angles = style.angle_rad + 2 * np.pi * np.arange(arms) / arms
  angles = angles + rng.normal(0, 0.5 / arms, arms)
  lines = [
    (x, y, x + 2 * reach * np.cos(a), y + 2 * reach * np.sin(a))
    + ((4.6, 2) if rng.uniform() < 0.6 else (3.4, 1))
    for a in angles
  ]
  for radius in (rng.uniform(55, 80), rng.uniform(115, 150)):
    if rng.uniform() < 0.7:
      ring = np.linspace(0, 2 * np.pi, 11)
      xs, ys = x + radius * np.cos(ring), y + radius * np.sin(ring)
      lines += [(xs[i], ys[i], xs[i + 1], ys[i + 1], 3.2, 1) for i in range(10)]
  return lines


def _sparse(rng, style, reach):
  """One road through, and one or two lanes."""
  angle = style.angle_rad + rng.normal(0, 0.3)
  c, s = shapes.rotation(angle)
  bend = rng.normal(0, 0.12)
  lines = _polyline(
    rng, (-reach * c, -reach * s), angle + bend, step=reach / 3,
    turn=0.08, count=7, half=4.4, lanes=2,
  )  # fmt: skip
  for i in rng.permutation(5)[: int(rng.integers(1, 4))]:
    x0, y0, x1, y1 = lines[i][:4]
    heading = np.arctan2(y1 - y0, x1 - x0) + rng.choice([-1.0, 1.0]) * (
      np.pi / 2 + rng.normal(0, 0.25)
    )
    lines += _polyline(
      rng, (x1, y1), heading, step=60, turn=0.12, count=4, half=2.6,
      lanes=int(rng.integers(2)),
    )  # fmt: skip
  return lines


_LAYOUTS = {
  'grid': _grid,
  'curved': _curved,
  'radial': _radial,
  'sparse': _sparse,
}


def streets(rng: np.random.Generator, style: styles.Style) -> Streets:
  """Streets around a place that lies beside one of them, not on any."""
  layout = _LAYOUTS[str(rng.choice(style.kind.layouts))]
  made = _from_lines(layout(rng, style, HALF_M * 1.35))
  points = rng.uniform(-90, 90, (256, 2))
  edge = made.distance(points).min(-1)
  wanted = 0.5 * style.kind.depth_m[1] + style.kind.setback_m[0] + 4
  best = int(np.argmin(np.abs(edge - wanted)))
  return made.moved(-points[best])


# ------------------------------------------------------------------- lots


def lots(
  rng: np.random.Generator, style: styles.Style, roads: Streets
) -> shapes.Rects:
  """Candidate footprints: the place itself first, then by distance from it."""
  kind = style.kind
  nearest = int(np.argmin(roads.distance(np.zeros(2))))
  heading = np.arctan2(*roads.along[nearest][::-1])
  scale = rng.uniform(1.0, 1.25)
  own = (
    0.0, 0.0, heading,
    scale * rng.uniform(*kind.front_m) / 2,
    scale * rng.uniform(*kind.depth_m) / 2,
  )  # fmt: skip
  found = [np.array([own])]
  for row in (0, 1):  # the first row along the street, and the one behind it
    for i in range(len(roads.length)):
      if roads.lanes[i] == 0 and row == 1:
        continue
      for side in (-1.0, 1.0):
        s = np.cumsum(rng.uniform(*kind.lot_m, size=40))
        s = s[s < roads.length[i]] - kind.lot_m[0] / 2
        if not len(s):
          continue
        front = rng.uniform(*kind.front_m, size=len(s))
        depth = rng.uniform(*kind.depth_m, size=len(s))
        back = (
          roads.half_width[i] + 2.5 + rng.uniform(*kind.setback_m, size=len(s))
        )
        back = back + depth / 2
        if row == 1:
          back = back + kind.depth_m[1] + 2 * kind.setback_m[1]
          back = back + rng.uniform(2, 10, len(s))
        along = roads.along[i]
        normal = side * np.array([-along[1], along[0]])
        centre = roads.start[i] + s[:, None] * along + back[:, None] * normal
        keep = rng.uniform(size=len(s)) < (
          1 - kind.gap if row == 0 else kind.infill
        )
        heading = np.arctan2(along[1], along[0])
        heading = heading + np.pi / 2 * (rng.uniform(size=len(s)) < 0.2)
        rows = np.column_stack([centre, heading, front / 2, depth / 2])
        found.append(rows[keep])
  table = np.concatenate(found)
  table = table[np.abs(table[:, :2]).max(-1) < HALF_M]
  order = np.argsort((table[:, :2] ** 2).sum(-1), kind='stable')[:420]
  table = table[order]
  return shapes.Rects(table[:, :2], table[:, 2], table[:, 3:5])


# ------------------------------------------------------------------ areas

GRASS, ASPHALT, PAVING, WATER, FIELD, PITCH, GRAVEL, POOL, FOREST = range(9)


@dataclasses.dataclass(frozen=True)
class Areas:
  """Pieces of ground, painted in order.

  Attributes:
    rects: [A] their frames.
    radius: [A] of the corners, metres.
    wobble: [A] amplitude of an irregular outline, metres.
    kind: [A] GRASS ... FOREST.
  """

  rects: shapes.Rects
  radius: np.ndarray
  wobble: np.ndarray
  kind: np.ndarray


def areas(
  rng: np.random.Generator, style: styles.Style, roads: Streets
) -> Areas:
  """Water, fields, parking, squares, pitches, woods near the place."""
  rows = []

  def add(kind, half, *, centre=None, angle=None, radius=0.0, wobble=0.0):
    if centre is None:
      # Large things (a pitch, a pond) leave room for the place itself.
      nearest = max(28.0, 12.0 + float(np.hypot(*half)))
      distance = rng.uniform(nearest, max(125.0, nearest + 10.0))
      bearing = rng.uniform(0, 2 * np.pi)
      centre = (distance * np.cos(bearing), distance * np.sin(bearing))
    if angle is None:
      angle = style.angle_rad + rng.choice([0, np.pi / 2])
    rows.append((*centre, angle, *half, radius, wobble, kind))

  green = style.kind.green
  for _ in range(int(rng.integers(1, 4))):
    add(
      GRASS if rng.uniform() > green else PAVING if green < 0.8 else GRASS,
      rng.uniform(14, 45, 2), radius=3,
    )  # fmt: skip
  for _ in range(int(rng.integers(0, 4)) if green > 0.85 else 0):
    add(FIELD, rng.uniform(30, 80, 2), angle=rng.uniform(0, np.pi))
  if rng.uniform() < 0.5:
    add(
      FOREST, rng.uniform(18, 48, 2), angle=rng.uniform(0, 3), radius=12,
      wobble=4,
    )  # fmt: skip
  if rng.uniform() < 0.22:  # a river
    angle, side = rng.uniform(0, 2 * np.pi), rng.uniform(35, 110)
    add(
      WATER, (320.0, rng.uniform(7, 20)), angle=angle + np.pi / 2,
      centre=(side * np.cos(angle), side * np.sin(angle)),
      wobble=rng.uniform(3, 9),
    )  # fmt: skip
  for _ in range(int(rng.choice([0, 0, 1, 1, 2]))):  # ponds
    half = rng.uniform(8, 26, 2)
    add(WATER, half, angle=rng.uniform(0, 3), radius=half.min(), wobble=2.5)
  for _ in range(int(rng.choice([0, 0, 1]))):
    add(PITCH, rng.choice([(48.0, 31.0), (26.0, 15.0)]))
  for _ in range(int(rng.integers(1, 4))):
    _parking(rng, roads, add)
  for _ in range(int(rng.choice([0, 1, 2]))):
    add(int(rng.choice([GRAVEL, PAVING])), rng.uniform(7, 22, 2), radius=2)
  if style.kind.floors[1] <= 2:
    for _ in range(int(rng.integers(0, 4))):
      add(POOL, rng.uniform(2.0, 5.0, 2), radius=1.5)
  table = np.array(rows[:MAX_AREAS], np.float64)
  return Areas(
    rects=shapes.Rects(table[:, :2], table[:, 2], table[:, 3:5]),
    radius=table[:, 5],
    wobble=table[:, 6],
    kind=table[:, 7].astype(np.int64),
  )


def _parking(rng, roads, add):
  """A car park beside a street, its long side along it."""
  near = np.argsort(roads.distance(np.zeros(2)))[:5]
  i = int(rng.choice(near))
  half = np.array([rng.uniform(12, 34), rng.choice([8.0, 16.0])])
  s = rng.uniform(0, roads.length[i])
  # Towards the place, where long streets are concerned.
  foot = np.clip(-(roads.start[i] @ roads.along[i]), 0, roads.length[i])
  s = np.clip(foot + 0.4 * (s - foot), 0, roads.length[i])
  along = roads.along[i]
  normal = np.array([-along[1], along[0]]) * rng.choice([-1.0, 1.0])
  centre = roads.start[i] + s * along
  centre = centre + normal * (roads.half_width[i] + 4 + half[1])
  add(ASPHALT, half, centre=centre, angle=np.arctan2(along[1], along[0]))


def stalls(
  rng: np.random.Generator, roads: Streets, areas: Areas, lots: shapes.Rects
) -> np.ndarray:
  """Stalls of the car parks, kerbs, lanes: [P, 3] x, y, angle."""
  rows = []
  for j in np.flatnonzero(areas.kind == ASPHALT):
    hx, hy = areas.rects.half[j]
    c, s = shapes.rotation(areas.rects.angle_rad[j])
    x = (np.arange(int(2 * hx / STALL_M)) + 0.5) * STALL_M - hx
    for k in range(int(2 * hy / 8)):  # rows of 5 m and the lanes between
      y = np.full_like(x, -hy + 8 * k + 2.6)
      xy = areas.rects.centre[j] + np.stack([c * x - s * y, s * x + c * y], -1)
      angle = np.full_like(x, areas.rects.angle_rad[j] + np.pi / 2)
      rows.append(np.column_stack([xy, angle]))
  for i in np.flatnonzero(roads.lanes > 0):
    for side in (-1.0, 1.0):
      s = np.arange(8.0, roads.length[i] - 8, 7.0)
      s = s[rng.uniform(size=len(s)) < 0.4]
      offset = roads.half_width[i] * rng.uniform(0.4, 0.75, len(s)) * side
      normal = np.array([-roads.along[i, 1], roads.along[i, 0]])
      xy = roads.start[i] + s[:, None] * roads.along[i]
      xy = xy + offset[:, None] * normal
      heading = np.arctan2(roads.along[i, 1], roads.along[i, 0])
      rows.append(np.column_stack([xy, np.full(len(s), heading)]))
  table = np.concatenate(rows) if rows else np.zeros((0, 3))
  table = table[np.abs(table[:, :2]).max(-1) < 110]
  if len(table):
    table = table[(lots.distance(table[:, :2]) > 1.2).all(-1)]
  return table
