"""Geometry and light of the rendered city."""

import dataclasses
import math

import numpy as np
import pytest

from data_builders.rendered_city import (
  cameras,
  conditions,
  heights,
  layout,
  light,
  render,
  shots,
  trace,
)
from data_builders.rendered_city import scene as sc

SIZE_HW = (64, 64)


def open_field(*rows: dict) -> sc.Scene:
  """Flat grass with the given boxes: columns of scene.py by name."""
  boxes = np.zeros(
    (sc.MAX_BUILDING_BOXES + 2 * sc.MAX_CARS, sc.BOX_COLUMNS), np.float32
  )
  boxes[:, sc.Z0], boxes[:, sc.COS] = sc.NOWHERE_M, 1
  boxes[:, [sc.HALF_X, sc.HALF_Y, sc.FLOOR_M, sc.BAY_M]] = 1
  for i, row in enumerate(rows):
    boxes[i, sc.Z0], boxes[i, sc.KIND] = 0, sc.PLAIN
    for name, value in row.items():
      boxes[i, getattr(sc, name)] = value
  trees = np.zeros((sc.MAX_TREES, sc.TREE_COLUMNS), np.float32)
  trees[:, [sc.TREE_Z, sc.TREE_FOOT]] = sc.NOWHERE_M
  trees[:, [sc.TREE_R, sc.TREE_RZ]] = 0.5
  streets = np.zeros((layout.MAX_STREETS, sc.STREET_COLUMNS), np.float32)
  areas = np.zeros((layout.MAX_AREAS, sc.AREA_COLUMNS), np.float32)
  streets[:, 0] = areas[:, 0] = sc.NOWHERE_M
  return sc.Scene(
    boxes=boxes,
    trees=trees,
    streets=streets,
    areas=areas,
    bumps=np.zeros((sc.NUM_BUMPS, 4), np.float32),
    ground=np.array([1, 0, 0, 0], np.float32),
    parking=np.zeros((0, 3), np.float32),
    eyes=np.zeros((1, 2), np.float32),
    clear=np.zeros(1, np.float32),
  )


RED = {f'{part}_{c}': v for part in ('WALL', 'ROOF')
       for c, v in zip('RGB', (0.9, 0.02, 0.02), strict=True)}  # fmt: skip


def red_box(east_m, north_m, *, half_m=4.0, height_m=10.0):
  return {
    'CX': east_m, 'CY': north_m, 'HALF_X': half_m, 'HALF_Y': half_m,
    'HEIGHT': height_m, **RED,
  }  # fmt: skip


def clear_day(*, sun=(0.0, 0.0, 1.0)):
  drawn = conditions.draw(np.random.default_rng(0), 'drone')
  return dataclasses.replace(
    drawn, sun=np.array(sun) / np.linalg.norm(sun), noise=0.0, saturation=1.0,
    sun_colour=np.full(3, 2.0), sky_colour=np.full(3, 0.4), gain=np.ones(3),
    haze_per_m=0.0, dryness=0.0,
  )  # fmt: skip


def photograph(world, camera, weather, *, size_hw=SIZE_HW):
  hour = render.Hour(world, heights.make(world), weather.sun)
  return np.asarray(render.picture(hour, camera, weather, size_hw=size_hw))


def middle_of_red(picture):
  """Row and column of the middle of what is red, 0 to 1."""
  r, g, b = picture.astype(np.int32).transpose(2, 0, 1)
  rows, columns = np.nonzero((r > 2 * g) & (r > 2 * b))
  assert len(rows) > 3, 'nothing red in the picture'
  h, w = picture.shape[:2]
  return (rows.mean() + 0.5) / h, (columns.mean() + 0.5) / w


# ------------------------------------------------------------------- cameras


def test_satellite_picture_is_north_up():
  camera = cameras.satellite(half_side_m=64)
  north = photograph(open_field(red_box(0, 32)), camera, clear_day())
  east = photograph(open_field(red_box(32, 0)), camera, clear_day())
  np.testing.assert_allclose(middle_of_red(north), (0.25, 0.5), atol=0.02)
  np.testing.assert_allclose(middle_of_red(east), (0.5, 0.75), atol=0.02)


def test_leaning_satellite_keeps_the_ground_in_place():
  camera = cameras.satellite(half_side_m=64, lean=(0.5, 0.0))
  low = red_box(-20, 16, height_m=0.05)
  high = red_box(-20, 16, height_m=20.0)
  row, column = middle_of_red(photograph(open_field(low), camera, clear_day()))
  np.testing.assert_allclose((row, column), (0.375, 0.34375), atol=0.02)
  leant = middle_of_red(photograph(open_field(high), camera, clear_day()))
  assert leant[1] > column + 0.02  # the roof has moved east


def test_panorama_has_north_in_the_middle_and_east_to_its_right():
  camera = cameras.panorama((0, 0, 2), ground_m=0, size_hw=(64, 256))
  for east_m, north_m, column in ((0, 30, 0.5), (30, 0, 0.75), (-30, 0, 0.25)):
    world = open_field(red_box(east_m, north_m))
    picture = photograph(world, camera, clear_day(), size_hw=(64, 256))
    np.testing.assert_allclose(middle_of_red(picture)[1], column, atol=0.01)


@pytest.mark.parametrize('view', [0, 20, 53])
def test_drone_looks_at_the_place(view):
  eye, fov_deg = cameras.spiral(view, start_deg=77.0)
  camera = cameras.look_at(eye, (0, 0, 0), fov_deg=fov_deg)
  np.testing.assert_allclose(camera.project(np.zeros(3)), 0, atol=1e-12)
  world = open_field(red_box(0, 0, height_m=0.5, half_m=6))
  middle = middle_of_red(photograph(world, camera, clear_day()))
  np.testing.assert_allclose(middle, 0.5, atol=0.02)


def test_projection_agrees_with_the_picture():
  eye, fov_deg = cameras.spiral(40, start_deg=200.0)
  camera = cameras.look_at(eye, (0, 0, 0), fov_deg=fov_deg)
  world = open_field(red_box(18, -11, height_m=0.5, half_m=5))
  x, y = camera.project(np.array([18.0, -11.0, 0.5]))
  row, column = middle_of_red(photograph(world, camera, clear_day()))
  np.testing.assert_allclose(((1 - y) / 2, (1 + x) / 2), (row, column),
                             atol=0.02)  # fmt: skip


def test_spiral_falls_in_three_rounds_around_the_place():
  eyes = np.array([cameras.spiral(i)[0] for i in range(54)])
  assert (np.diff(eyes[:, 2]) < 0).all()
  np.testing.assert_allclose(eyes[[0, -1], 2], (256, 121.5))
  radius = np.hypot(eyes[:, 0], eyes[:, 1])
  assert (np.diff(radius) < 0).all()
  turned = np.unwrap(np.arctan2(eyes[:, 0], eyes[:, 1]))
  np.testing.assert_allclose(turned[-1] - turned[0], 3 * 2 * np.pi)


@pytest.mark.parametrize('count', [1, 4, 9, 27, 54])
def test_chosen_views_of_the_spiral_are_distinct_and_in_order(count):
  views = [shots.spiral_view(i, count) for i in range(count)]
  assert sorted(set(views)) == views
  assert views[-1] < cameras.SPIRAL_VIEWS


@pytest.mark.parametrize('elevation_deg', [30.0, 45.0])
def test_video_keeps_its_elevation(elevation_deg):
  for frame in range(5):
    eye, _ = cameras.orbit(frame, frames=5, elevation_deg=elevation_deg)
    up = math.degrees(math.atan2(eye[2], math.hypot(eye[0], eye[1])))
    np.testing.assert_allclose(up, elevation_deg)


def test_heading_is_clockwise_from_north():
  for target, expected in (((0, 9, 0), 0), ((9, 0, 0), 90), ((0, -9, 0), 180)):
    camera = cameras.look_at((0, 0, 5), target, fov_deg=40)
    np.testing.assert_allclose(camera.heading_deg, expected)


def test_size_that_is_no_multiple_of_the_tile_is_refused():
  with pytest.raises(ValueError, match=r'\(50, 64\) is not a multiple of 16'):
    trace.tile_pixels((50, 64))


def test_tiles_come_back_in_their_place():
  px, py = trace.tile_pixels((32, 48))
  np.testing.assert_allclose(
    trace.untile(px, (32, 48))[5], (2 * np.arange(48) + 1) / 48 - 1, atol=1e-6
  )
  np.testing.assert_allclose(
    trace.untile(py, (32, 48))[:, 7], 1 - (2 * np.arange(32) + 1) / 32,
    atol=1e-6,
  )  # fmt: skip


def test_rays_meet_the_nearest_box_where_a_slow_search_does():
  rng = np.random.default_rng(3)
  rows = [
    {
      'CX': rng.uniform(-40, 40), 'CY': rng.uniform(-40, 40),
      'COS': math.cos(a), 'SIN': math.sin(a), 'HALF_X': rng.uniform(3, 9),
      'HALF_Y': rng.uniform(3, 9), 'HEIGHT': rng.uniform(3, 25),
      'RISE': rng.choice([0.0, 4.0]),
    }
    for a in rng.uniform(0, 6, 24)
  ]  # fmt: skip
  world = open_field(*rows)
  eye, fov_deg = cameras.spiral(45)
  camera = cameras.look_at(eye, (0, 0, 0), fov_deg=fov_deg)
  arrays = camera.arrays() | {'height_px': np.float32(64), 'aspect': 1.0}
  rays = trace.make_rays(*trace.tile_pixels((64, 64)), arrays)
  hit = trace.trace(rays, world.boxes, world.trees, world.bumps)
  tiles, pixels = rng.integers(16, size=60), rng.integers(256, size=60)
  found = 0
  for i, j in zip(tiles, pixels, strict=True):
    o = np.array([float(x[i, j]) for x in rays[:3]])
    d = np.array([float(x[i, j]) for x in rays[3:6]])
    t = np.arange(60.0, 330.0, 0.02)
    points = o + t[:, None] * d
    inside = np.zeros((len(t), len(rows)), bool)
    for k, row in enumerate(rows):
      dx, dy = points[:, 0] - row['CX'], points[:, 1] - row['CY']
      lx = row['COS'] * dx + row['SIN'] * dy
      ly = row['COS'] * dy - row['SIN'] * dx
      top = row['HEIGHT'] + row['RISE'] * (1 - np.abs(ly) / row['HALF_Y'])
      inside[:, k] = (
        (np.abs(lx) < row['HALF_X']) & (np.abs(ly) < row['HALF_Y'])
        & (points[:, 2] < top) & (points[:, 2] > 0)
      )  # fmt: skip
    first = int(np.argmax(inside.any(1)))
    if not inside.any():
      expected_row, expected_t = -1, -o[2] / d[2]
    else:
      found += 1
      expected_row, expected_t = int(np.argmax(inside[first])), t[first]
    assert abs(float(hit.t[i, j]) - expected_t) < 0.05
    assert int(hit.box[i, j]) == expected_row
  assert 10 < found < 60


# --------------------------------------------------------------------- light


def test_shadow_lies_opposite_to_the_sun():
  camera = cameras.satellite(half_side_m=32)
  world = open_field(red_box(0, 0, height_m=12))

  def brightness(sun):
    picture = photograph(world, camera, clear_day(sun=sun)).astype(np.float64)
    return picture[32, 18:24].mean(), picture[32, 40:46].mean()  # west, east

  west, east = brightness((1, 0, 1))
  assert west < 0.75 * east
  west, east = brightness((-1, 0, 1))
  assert east < 0.75 * west


def test_shadow_is_as_long_as_the_sun_says():
  top = np.zeros((sc.HEIGHT_MAP_PX, sc.HEIGHT_MAP_PX), np.float32)
  cell_m = 2 * sc.HEIGHT_MAP_HALF_M / sc.HEIGHT_MAP_PX
  at = sc.HEIGHT_MAP_PX // 2
  top[at, at] = 20.0
  for elevation_deg in (30.0, 60.0):
    e = math.radians(elevation_deg)
    shadow = np.asarray(
      light.shadow_map(top, np.array([math.cos(e), 0, math.sin(e)]))
    )
    dark = np.flatnonzero(shadow[at] > 0)
    assert dark.max() < at  # to the west, when the sun is in the east
    length_m = (at - dark.min()) * cell_m
    assert abs(length_m - 20 / math.tan(e)) < 1.5 * cell_m
