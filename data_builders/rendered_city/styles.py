"""What districts look like: palettes, kinds of buildings and of streets.

Places come in districts of a dozen that share a style, as the buildings of one
university campus do: most neighbours in a ranking have the same colours, and
only the layout tells them apart.
"""

import dataclasses

import numpy as np

PLACES_PER_DISTRICT = 12

# Linear-light albedo, shared by all districts.
ROOFS = np.array(
  [
    (0.36, 0.13, 0.08),  # red tile
    (0.26, 0.14, 0.09),  # brown tile
    (0.10, 0.11, 0.13),  # slate
    (0.31, 0.30, 0.29),  # grey membrane
    (0.58, 0.57, 0.55),  # white membrane
    (0.34, 0.28, 0.21),  # gravel
    (0.16, 0.26, 0.22),  # copper
    (0.15, 0.21, 0.31),  # blue metal
  ],
  np.float32,
)
RED, BROWN, SLATE, GREY, WHITE, GRAVEL, COPPER, BLUE = range(8)
WALLS = np.array(
  [
    (0.62, 0.60, 0.56),  # white plaster
    (0.56, 0.47, 0.33),  # cream
    (0.33, 0.14, 0.09),  # brick
    (0.43, 0.33, 0.24),  # tan
    (0.34, 0.34, 0.34),  # concrete
    (0.20, 0.27, 0.33),  # curtain wall
    (0.55, 0.38, 0.16),  # ochre
    (0.24, 0.17, 0.12),  # dark brick
  ],
  np.float32,
)
CAR_PAINTS = np.array(
  [
    (0.62, 0.62, 0.62),
    (0.30, 0.31, 0.33),
    (0.03, 0.03, 0.035),
    (0.12, 0.13, 0.14),
    (0.32, 0.03, 0.03),
    (0.04, 0.08, 0.25),
    (0.42, 0.38, 0.30),
    (0.05, 0.14, 0.09),
  ],
  np.float32,
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of district; ranges are (low, high), uniform.

  Attributes:
    lot_m: distance between neighbouring buildings along a street.
    front_m, depth_m: footprint along and across the street.
    setback_m: from the kerb to the facade.
    floors: storeys.
    gable: probability of a pitched roof.
    parts: probability that a footprint has two or three parts (L, T, U).
    infill: probability of keeping a building behind the first row.
    gap: probability that a lot is empty.
    trees: number of trees tried.
    street_m: spacing of the streets.
    roofs, walls: palette entries that occur.
    layouts: street layouts that occur.
    green: ground between the buildings is grass (else paved).
  """

  lot_m: tuple[float, float]
  front_m: tuple[float, float]
  depth_m: tuple[float, float]
  setback_m: tuple[float, float]
  floors: tuple[int, int]
  gable: float
  parts: float
  infill: float
  gap: float
  trees: int
  street_m: tuple[float, float]
  roofs: tuple[int, ...]
  walls: tuple[int, ...]
  layouts: tuple[str, ...]
  green: float


KINDS = {
  'houses': Kind(
    lot_m=(17, 26), front_m=(9, 15), depth_m=(8, 13), setback_m=(4, 8),
    floors=(1, 2), gable=0.9, parts=0.35, infill=0.25, gap=0.15, trees=260,
    street_m=(62, 105), roofs=(RED, BROWN, SLATE, GREY, COPPER),
    walls=(0, 1, 2, 3, 6), layouts=('grid', 'curved', 'radial'), green=0.95,
  ),
  'blocks': Kind(
    lot_m=(20, 38), front_m=(16, 34), depth_m=(11, 16), setback_m=(2, 6),
    floors=(3, 7), gable=0.4, parts=0.5, infill=0.35, gap=0.2, trees=170,
    street_m=(70, 120), roofs=(RED, BROWN, GREY, GRAVEL, WHITE, SLATE),
    walls=(0, 1, 3, 4, 6, 7), layouts=('grid', 'curved', 'radial'), green=0.7,
  ),
  'campus': Kind(
    lot_m=(40, 70), front_m=(26, 54), depth_m=(14, 24), setback_m=(6, 16),
    floors=(2, 6), gable=0.3, parts=0.75, infill=0.6, gap=0.25, trees=240,
    street_m=(110, 180), roofs=(RED, GREY, WHITE, GRAVEL, COPPER, SLATE),
    walls=(0, 1, 2, 4, 5, 7), layouts=('curved', 'grid', 'radial', 'sparse'),
    green=0.9,
  ),
  'centre': Kind(
    lot_m=(24, 44), front_m=(18, 38), depth_m=(16, 28), setback_m=(1, 4),
    floors=(4, 14), gable=0.1, parts=0.55, infill=0.7, gap=0.12, trees=90,
    street_m=(75, 115), roofs=(GREY, WHITE, GRAVEL, SLATE, COPPER, RED),
    walls=(0, 2, 3, 4, 5, 7), layouts=('grid', 'radial'), green=0.25,
  ),
  'works': Kind(
    lot_m=(44, 80), front_m=(28, 64), depth_m=(20, 42), setback_m=(6, 14),
    floors=(2, 3), gable=0.35, parts=0.4, infill=0.6, gap=0.25, trees=80,
    street_m=(120, 190), roofs=(GREY, WHITE, BLUE, GRAVEL, COPPER),
    walls=(0, 3, 4, 5), layouts=('grid', 'sparse'), green=0.45,
  ),
  'village': Kind(
    lot_m=(22, 44), front_m=(9, 20), depth_m=(8, 13), setback_m=(3, 10),
    floors=(1, 2), gable=0.97, parts=0.45, infill=0.15, gap=0.35, trees=230,
    street_m=(120, 200), roofs=(RED, BROWN, SLATE),
    walls=(0, 1, 2, 3, 6), layouts=('curved', 'sparse', 'radial'), green=1.0,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Style:
  """The style of one district.

  Attributes:
    kind: entry of KINDS.
    angle_rad: of the main streets, roughly shared by the district.
    roofs, walls: [3] palette entries used here, commonest first.
    relief_m: height of its hills.
  """

  kind: Kind
  angle_rad: float
  roofs: np.ndarray
  walls: np.ndarray
  relief_m: float


def district(seed: int, number: int) -> Style:
  """The style of district `number`, a pure function of the arguments."""
  rng = np.random.default_rng([seed, 101, number])
  name = list(KINDS)[int(rng.integers(len(KINDS)))]
  kind = KINDS[name]
  return Style(
    kind=kind,
    angle_rad=float(rng.uniform(0, np.pi)),
    roofs=rng.permutation(kind.roofs)[:3],
    walls=rng.permutation(kind.walls)[:3],
    relief_m=float(rng.choice([0.0, 1.5, 4.0, 8.0])),
  )
