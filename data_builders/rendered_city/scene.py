"""The world of one place as arrays of a fixed size, made by NumPy.

A pure function of (seed, place): the same on every platform. Metres, x east,
y north, z up, the place at the origin. Sizes are fixed so that the renderer is
compiled once; rows that are not used are far below the ground.
"""

import dataclasses

import numpy as np

from data_builders.rendered_city import layout, shapes, styles

MAX_BUILDING_BOXES = 260
MAX_CARS = 92
MAX_TREES = 320
NUM_BUMPS = 3
NOWHERE_M = -1e6

# Columns of `boxes`. A box is a rectangle with a roof of two slopes: its top
# is height + rise * (1 - |y| / half_y) in its own frame; rise 0 is a flat roof.
(
  CX, CY, Z0, COS, SIN, HALF_X, HALF_Y, HEIGHT, RISE, KIND,
  WALL_R, WALL_G, WALL_B, ROOF_R, ROOF_G, ROOF_B,
  FLOOR_M, BAY_M, WINDOW_W, WINDOW_H, GLASS, ROOF_KIND, SEED,
) = range(23)  # fmt: skip
BOX_COLUMNS = 23
BUILDING, PLAIN, CAR, CABIN = range(4)
FLAT_ROOF, TILE_ROOF, METAL_ROOF = range(3)

# Columns of `trees`: an ellipsoid on a trunk.
TREE_X, TREE_Y, TREE_Z, TREE_R, TREE_RZ, TREE_TONE, TREE_CONIFER, TREE_FOOT = (
  range(8)
)
TREE_COLUMNS = 8

# Columns of `streets` and `areas`.
STREET_COLUMNS = 8  # x, y, along x, along y, length, half width, lanes, -
AREA_COLUMNS = 9  # x, y, cos, sin, half x, half y, radius, wobble, kind

HEIGHT_MAP_PX = 448
HEIGHT_MAP_HALF_M = 160.0


@dataclasses.dataclass(frozen=True)
class Scene:
  """One place. All arrays float32.

  Attributes:
    boxes: [MAX_BUILDING_BOXES + 2 * MAX_CARS, BOX_COLUMNS]; the last rows
      are for cars (body and cabin), which come and go (`with_cars`).
    trees: [MAX_TREES, TREE_COLUMNS].
    streets: [layout.MAX_STREETS, STREET_COLUMNS].
    areas: [layout.MAX_AREAS, AREA_COLUMNS].
    bumps: [NUM_BUMPS, 4] x, y, 1/width^2, height: the relief.
    ground: [4] share of grass, offset x and y of the ground texture, unused.
    parking: [P, 3] x, y, angle: where a car may stand.
    eyes: [E, 2] points on streets, by distance from the place.
    clear: [E] how many buildings stand between the eye and the place.
  """

  boxes: np.ndarray
  trees: np.ndarray
  streets: np.ndarray
  areas: np.ndarray
  bumps: np.ndarray
  ground: np.ndarray
  parking: np.ndarray
  eyes: np.ndarray
  clear: np.ndarray


def terrain(points: np.ndarray, bumps: np.ndarray) -> np.ndarray:
  """Height of the ground; points [..., 2] -> [...]."""
  delta = points[..., None, :] - bumps[:, :2]
  return (bumps[:, 3] / (1 + (delta**2).sum(-1) * bumps[:, 2])).sum(-1)


def make(seed: int, place: int) -> Scene:
  """The world of one place."""
  style = styles.district(seed, place // styles.PLACES_PER_DISTRICT)
  rng = np.random.default_rng([seed, 202, place])
  roads = layout.streets(rng, style)
  areas = layout.areas(rng, style, roads)
  bumps = _bumps(rng, style)
  footprints = _footprints(rng, style, roads, areas)
  boxes = _buildings(rng, style, footprints, bumps)
  trees = _trees(rng, style, roads, areas, footprints, bumps)
  eyes, clear = _eyes(roads, footprints)
  return Scene(
    boxes=boxes.astype(np.float32),
    trees=trees.astype(np.float32),
    streets=_street_rows(roads),
    areas=_area_rows(areas),
    bumps=bumps.astype(np.float32),
    ground=np.array(
      [rng.uniform() < style.kind.green, *rng.uniform(0, 256, 2), 0],
      np.float32,
    ),
    parking=layout.stalls(rng, roads, areas, footprints).astype(np.float32),
    eyes=eyes.astype(np.float32),
    clear=clear.astype(np.float32),
  )


def _bumps(rng, style):
  """Hills; the place is near the height 0 so that cameras need no search."""
  angle = rng.uniform(0, 2 * np.pi, NUM_BUMPS)
  far = rng.uniform(60, 180, NUM_BUMPS)
  width = rng.uniform(70, 130, NUM_BUMPS)
  height = style.relief_m * rng.uniform(-0.6, 1.0, NUM_BUMPS)
  return np.column_stack(
    [far * np.cos(angle), far * np.sin(angle), width**-2.0, height]
  )


def _footprints(rng, style, roads, areas):
  lots = layout.lots(rng, style, roads)
  # The place has a building in any case, however small.
  for _ in range(8):
    own = lots.select(np.arange(1))
    if not shapes.overlaps(own, roads.rects(), margin_m=2.0).any():
      break
    lots.half[0] *= 0.85
  free = ~shapes.overlaps(lots, roads.rects(), margin_m=2.0).any(-1)
  blocking = np.isin(
    areas.kind, [layout.WATER, layout.PITCH, layout.ASPHALT, layout.POOL]
  )
  if blocking.any():
    blockers = areas.rects.select(blocking)
    hit = shapes.overlaps(lots, blockers, margin_m=2.0).any(-1)
    # Water and car parks give way to the place's own building, not others.
    free &= ~hit | (np.arange(len(lots)) == 0)
  free[0] = True
  lots = lots.select(np.flatnonzero(free))
  clash = shapes.overlaps(lots, lots, margin_m=2.5)
  return lots.select(shapes.greedy(clash)[:150])


# Parts of a footprint in its own frame, in units of its half sizes:
# centre x, centre y, half x, half y, turned (ridge across), relative height.
_SHAPES = (
  ((0, 0, 1, 1, 0, 1),),
  ((0, 0.45, 1, 0.55, 0, 1), (-0.6, -0.55, 0.4, 0.45, 1, 1)),  # L
  ((0, 0.45, 1, 0.55, 0, 1), (0, -0.55, 0.34, 0.45, 1, 1)),  # T
  (
    (0, 0.5, 1, 0.5, 0, 1),
    (-0.74, -0.5, 0.26, 0.5, 1, 1),
    (0.74, -0.5, 0.26, 0.5, 1, 0.8),
  ),  # U
  ((0, 0, 1, 1, 0, 0.5), (0.25, 0.1, 0.6, 0.7, 0, 1.25)),  # on a podium
  ((-0.4, 0, 0.6, 1, 0, 1), (0.6, -0.2, 0.4, 0.7, 0, 0.6)),  # stepped
)


def _buildings(rng, style, lots, bumps):
  """[MAX_BUILDING_BOXES + 2 * MAX_CARS, BOX_COLUMNS]; no cars yet."""
  kind = style.kind
  rows = []
  ground = terrain(lots.outline(), bumps).min(-1)
  c, s = shapes.rotation(lots.angle_rad)
  for i in range(len(lots)):
    row = np.zeros(BOX_COLUMNS)
    shape = _SHAPES[0]
    if rng.uniform() < (kind.parts if i else max(kind.parts, 0.8)):
      shape = _SHAPES[int(rng.integers(1, len(_SHAPES)))]
    mirror = rng.choice([-1.0, 1.0], 2)
    floor_m = rng.uniform(2.9, 3.6)
    floors = int(rng.integers(kind.floors[0], kind.floors[1] + 1))
    gable = rng.uniform() < kind.gable
    roof = _pick(rng, style.roofs, gable)
    row[Z0] = ground[i]
    row[WALL_R : WALL_B + 1] = styles.WALLS[_pick(rng, style.walls, True)]
    row[WALL_R : WALL_B + 1] *= rng.uniform(0.75, 1.15)
    row[ROOF_R : ROOF_B + 1] = styles.ROOFS[roof] * rng.uniform(0.7, 1.25)
    row[FLOOR_M], row[BAY_M] = floor_m, rng.uniform(2.0, 4.2)
    row[WINDOW_W] = rng.choice([0.35, 0.45, 0.6, 0.85])
    row[WINDOW_H] = rng.uniform(0.42, 0.6)
    row[GLASS] = rng.uniform(0.03, 0.1)
    row[ROOF_KIND] = FLAT_ROOF
    if gable:
      row[ROOF_KIND] = (
        METAL_ROOF if roof in (styles.BLUE, styles.COPPER) else TILE_ROOF
      )
    slope = rng.uniform(0.35, 0.85) if kind.floors[1] < 8 else 0.4
    slope = slope if kind.front_m[1] < 50 else 0.3
    for x, y, hx, hy, turned, relative in shape:
      part = row.copy()
      half = lots.half[i] * (hx, hy)
      x, y = (x, y) * mirror * lots.half[i]
      part[CX] = lots.centre[i, 0] + c[i] * x - s[i] * y
      part[CY] = lots.centre[i, 1] + s[i] * x + c[i] * y
      part[COS], part[SIN] = c[i], s[i]
      if turned != (half[1] > half[0] and len(shape) == 1):
        part[COS], part[SIN], half = -s[i], c[i], half[::-1]
      part[HALF_X], part[HALF_Y] = half
      part[HEIGHT] = max(1, round(floors * relative)) * floor_m + 0.5
      part[RISE] = min(slope * half[1], 7.0) if gable else 0.0
      part[SEED] = rng.uniform(0, 100)
      rows.append(part)
      if not gable and half.min() > 4 and relative >= 1:
        rows += _roof_units(rng, part)
    if len(rows) > MAX_BUILDING_BOXES:
      break
  table = np.zeros((MAX_BUILDING_BOXES + 2 * MAX_CARS, BOX_COLUMNS))
  table[:, Z0], table[:, COS] = NOWHERE_M, 1.0
  table[:, [HALF_X, HALF_Y, FLOOR_M, BAY_M]] = 1.0
  rows = np.array(rows[:MAX_BUILDING_BOXES])
  table[: len(rows)] = rows
  return table


def _pick(rng, entries, pitched):
  """One of three entries, the first most often."""
  index = int(rng.choice(3, p=[0.6, 0.25, 0.15]))
  if not pitched:  # tiles do not lie on flat roofs
    flat = [e for e in entries if e not in (styles.RED, styles.BROWN)]
    return int(rng.choice(flat)) if flat else styles.GREY
  return int(entries[index])


def _roof_units(rng, part):
  """Lift heads and ventilation on a flat roof."""
  rows = []
  for _ in range(int(rng.integers(0, 3))):
    unit = part.copy()
    x, y = rng.uniform(-0.6, 0.6, 2) * part[[HALF_X, HALF_Y]]
    unit[CX] = part[CX] + part[COS] * x - part[SIN] * y
    unit[CY] = part[CY] + part[SIN] * x + part[COS] * y
    unit[[HALF_X, HALF_Y]] = rng.uniform(0.8, 2.4, 2)
    unit[HEIGHT] = part[HEIGHT] + rng.uniform(0.8, 2.6)
    unit[KIND] = PLAIN
    unit[WALL_R : ROOF_B + 1] = rng.uniform(0.25, 0.6)
    rows.append(unit)
  return rows


def _trees(rng, style, roads, areas, lots, bumps):
  count = style.kind.trees * 3
  points = rng.uniform(-layout.HALF_M, layout.HALF_M, (count, 2))
  # A third stands along streets, a few rows in between, the rest in woods.
  third = count // 3
  i = rng.integers(len(roads.length), size=third)
  s = rng.uniform(0, 1, third) * roads.length[i]
  s = np.round(s / 9) * 9 if rng.uniform() < 0.6 else s
  normal = np.stack([-roads.along[i, 1], roads.along[i, 0]], -1)
  side = rng.choice([-1.0, 1.0], third) * (roads.half_width[i] + 2.2)
  points[:third] = roads.start[i] + s[:, None] * roads.along[i]
  points[:third] += side[:, None] * normal
  woods = np.flatnonzero(areas.kind == layout.FOREST)
  if len(woods):
    j = woods[rng.integers(len(woods), size=third)]
    local = rng.uniform(-1, 1, (third, 2)) * areas.rects.half[j]
    c, s = shapes.rotation(areas.rects.angle_rad[j])
    points[third : 2 * third] = areas.rects.centre[j] + np.stack(
      [c * local[:, 0] - s * local[:, 1], s * local[:, 0] + c * local[:, 1]],
      -1,
    )
  conifer = rng.uniform(size=count) < rng.choice([0.05, 0.3, 0.7])
  radius = rng.uniform(1.4, 4.2, count) * np.where(conifer, 0.7, 1.0)
  ok = (roads.distance(points) > 0.8).all(-1)
  ok &= (lots.distance(points) > (0.75 * radius)[:, None]).all(-1)
  bare = np.isin(
    areas.kind,
    [layout.WATER, layout.PITCH, layout.ASPHALT, layout.POOL, layout.FIELD],
  )
  if bare.any():
    inside = areas.rects.select(bare).distance(points)
    ok &= (inside > 0.5).all(-1)
  ok &= np.abs(points).max(-1) < layout.HALF_M
  # Near trees first: the far ones matter least when there are too many.
  rows = np.flatnonzero(ok)
  rows = rows[np.argsort((points[rows] ** 2).sum(-1), kind='stable')]
  rows = rows[: min(MAX_TREES, style.kind.trees)]
  tall = np.where(conifer, rng.uniform(1.9, 2.7, count), rng.uniform(0.9, 1.25))
  foot = terrain(points, bumps)
  trunk = np.where(conifer, 0.6, rng.uniform(1.4, 2.6, count))
  table = np.zeros((MAX_TREES, TREE_COLUMNS))
  table[:, [TREE_Z, TREE_FOOT]] = NOWHERE_M
  table[:, [TREE_R, TREE_RZ]] = 0.5
  height = radius * tall
  columns = np.column_stack(
    (
      points,
      foot + trunk + height,
      radius,
      height,
      rng.uniform(-1, 1, count),
      conifer,
      foot,
    )
  )
  table[: len(rows)] = columns[rows]
  return table


def _street_rows(roads):
  table = np.zeros((layout.MAX_STREETS, STREET_COLUMNS), np.float32)
  table[:, 0], table[:, 2], table[:, 4] = NOWHERE_M, 1.0, 1.0
  n = len(roads.length)
  table[:n, 0:2], table[:n, 2:4] = roads.start, roads.along
  table[:n, 4], table[:n, 5] = roads.length, roads.half_width
  table[:n, 6] = roads.lanes
  return table


def _area_rows(areas):
  table = np.zeros((layout.MAX_AREAS, AREA_COLUMNS), np.float32)
  table[:, 0], table[:, 2] = NOWHERE_M, 1.0
  table[:, 4:6] = 1.0
  n = len(areas.kind)
  table[:n, 0:2] = areas.rects.centre
  table[:n, 2] = np.cos(areas.rects.angle_rad)
  table[:n, 3] = np.sin(areas.rects.angle_rad)
  table[:n, 4:6] = areas.rects.half
  table[:n, 6], table[:n, 7] = areas.radius, areas.wobble
  table[:n, 8] = areas.kind
  return table


def _eyes(roads, lots):
  """Points on streets 12 to 75 m from the place, and what hides it there."""
  points = []
  for i in range(len(roads.length)):
    s = np.arange(1.0, roads.length[i], 4.0)
    points.append(roads.start[i] + s[:, None] * roads.along[i])
  points = np.concatenate(points)
  far = np.sqrt((points**2).sum(-1))
  order = np.argsort(far, kind='stable')
  points, far = points[order], far[order]
  lots = lots.select(np.arange(min(60, len(lots))))  # the nearest
  inside = (far > 10) & (far < 75)
  points = points[inside][:160] if inside.any() else points[:1]
  # A building hides the place when the line of sight crosses its footprint.
  samples = points[:, None] * np.linspace(0.15, 0.97, 24)[:, None]
  distance = lots.distance(samples.reshape(-1, 2))[:, 1:]
  hit = (distance < 0).reshape(len(points), 24, -1).any(1)
  return points, hit.sum(-1)
