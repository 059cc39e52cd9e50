"""Places, determinism and the data set of the rendered city."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders.rendered_city import (
  conditions,
  layout,
  rendered_city_dataset_builder,
  shots,
  studio,
  styles,
)
from data_builders.rendered_city import scene as sc

TINY = shots.Plan(**rendered_city_dataset_builder._TINY)


# ------------------------------------------------------------- the same place


def test_scene_is_a_function_of_seed_and_place():
  first, again = sc.make(3, 17), sc.make(3, 17)
  for field in dataclasses.fields(first):
    np.testing.assert_array_equal(
      getattr(first, field.name), getattr(again, field.name)
    )
  for other in (sc.make(3, 18), sc.make(4, 17)):
    assert not np.array_equal(first.boxes, other.boxes)
    assert not np.array_equal(first.streets, other.streets)


def test_scene_of_place_0_is_the_same_on_every_platform():
  world = sc.make(0, 0)
  np.testing.assert_allclose(
    [world.boxes[0, sc.HALF_X], world.streets[0, 0], world.areas[0, 0]],
    EXPECTED_PLACE_0,
    rtol=1e-5,
  )


EXPECTED_PLACE_0 = (9.79697, -38.76257, 43.680706)


@pytest.mark.parametrize('place', [0, 13, 26, 39, 5000])
def test_buildings_keep_off_streets_and_the_place_has_one(place):
  world = sc.make(0, place)
  used = world.streets[:, 0] > sc.NOWHERE_M / 2
  roads = layout.Streets(
    start=world.streets[used, 0:2], along=world.streets[used, 2:4],
    length=world.streets[used, 4], half_width=world.streets[used, 5],
    lanes=world.streets[used, 6],
  )  # fmt: skip
  boxes = world.boxes[world.boxes[:, sc.Z0] > sc.NOWHERE_M / 2]
  c, s = boxes[:, sc.COS, None], boxes[:, sc.SIN, None]
  u, v = np.meshgrid(np.linspace(-1, 1, 31), np.linspace(-1, 1, 31))
  x = boxes[:, sc.HALF_X, None] * u.ravel()
  y = boxes[:, sc.HALF_Y, None] * v.ravel()
  points = np.stack(
    [boxes[:, sc.CX, None] + c * x - s * y, boxes[:, sc.CY, None] + s * x + c * y],
    -1,
  )  # fmt: skip
  assert roads.distance(points.reshape(-1, 2)).min() > 1.0
  assert np.sqrt((points**2).sum(-1)).min() < 10  # the place has a building
  assert roads.distance(world.eyes).min(-1).max() < 0.1  # eyes are on streets


def test_views_of_a_place_do_not_share_their_sun():
  suns = [
    conditions.draw(
      np.random.default_rng([0, 303, 5, view, 1, hour]), 'drone'
    ).sun
    for view in range(2)
    for hour in range(3)
  ]
  gaps = [a @ b for i, a in enumerate(suns) for b in suns[:i]]
  assert max(gaps) < 0.999


def test_neighbouring_places_share_their_style():
  assert styles.PLACES_PER_DISTRICT == 12
  a, b = styles.district(0, 7), styles.district(0, 7)
  assert a.kind is b.kind
  np.testing.assert_array_equal(a.roofs, b.roofs)


@pytest.mark.parametrize('view', ['satellite', 'panorama'])
def test_same_seed_gives_the_same_bytes(view):
  first = list(shots.take(TINY, 3, view, 1))
  studio.scene.cache_clear()
  studio.height_maps.cache_clear()
  assert list(shots.take(TINY, 3, view, 1)) == first
  other = dataclasses.replace(TINY, seed=1)
  assert next(shots.take(other, 3, view, 1)).jpeg != first[0].jpeg


def test_unknown_view_is_named():
  with pytest.raises(ValueError, match="no view 'submarine'"):
    next(shots.take(TINY, 0, 'submarine', 1))


# -------------------------------------------------------------- the data set


def test_train_and_test_places_are_disjoint_and_distractors_are_extra():
  for config in rendered_city_dataset_builder.Builder.BUILDER_CONFIGS:
    if config.form != 'shots':
      continue
    plan = shots.Plan(**config.plan)
    train, query, gallery = (
      set(plan.places(split))
      for split in ('train', 'test_query', 'test_gallery')
    )
    assert not train & gallery
    assert query < gallery
    assert len(train) == plan.train_places
    assert len(query) == plan.query_places
    assert len(gallery - query) == plan.distractor_places
    districts = {place // styles.PLACES_PER_DISTRICT for place in train}
    others = {place // styles.PLACES_PER_DISTRICT for place in gallery}
    assert not districts & others


def test_full_has_the_sizes_of_university1652():
  plan = shots.Plan(**rendered_city_dataset_builder._FULL)
  assert len(plan.places('train')) == len(plan.places('test_query')) == 701
  assert len(plan.places('test_gallery')) == 951
  assert plan.count('train', 'drone') == 54


def test_too_many_train_places_are_refused():
  with pytest.raises(ValueError, match='train_places is 6000'):
    dataclasses.replace(TINY, train_places=6000)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  builder = rendered_city_dataset_builder.Builder(
    data_dir=folder, config='tiny'
  )
  builder.download_and_prepare()
  return tfds.builder_from_directory(builder.data_dir)


def rows(built, split):
  decoders = {'image': tfds.decode.SkipDecoding()}
  return list(built.as_data_source(split, decoders=decoders))


def test_splits_have_the_planned_sizes(built):
  sizes = {name: info.num_examples for name, info in built.info.splits.items()}
  assert sizes == {
    'train_satellite': 16, 'test_query_satellite': 6,
    'test_gallery_satellite': 8, 'train_drone': 48, 'test_query_drone': 12,
    'test_gallery_drone': 16, 'train_street': 16, 'test_query_street': 6,
    'test_gallery_street': 8, 'train_panorama': 16, 'test_query_panorama': 6,
    'test_gallery_panorama': 8, 'train_video30': 32, 'test_query_video30': 12,
    'test_gallery_video30': 16, 'train_video45': 32, 'test_query_video45': 12,
    'test_gallery_video45': 16,
  }  # fmt: skip


def test_rows_are_ordered_by_place_then_frame(built):
  for split in ('train_drone', 'test_gallery_video30'):
    order = [(row['place'], row['frame']) for row in rows(built, split)]
    assert order == sorted(order)
  frames = [row['frame'] for row in rows(built, 'train_video45')]
  assert frames == [1, 2] * 16


def test_paths_name_split_view_and_place(built):
  first = rows(built, 'test_query_drone')[0]
  assert first['path'].decode() == 'test/query_drone/5000/image-01.jpg'
  assert rows(built, 'train_satellite')[3]['path'] == (
    b'train/satellite/0003/satellite.jpg'
  )


def test_gallery_holds_the_very_pictures_of_the_queries(built):
  gallery = {
    (r['place'], r['frame']): r for r in rows(built, 'test_gallery_drone')
  }
  for row in rows(built, 'test_query_drone'):
    twin = gallery[row['place'], row['frame']]
    assert twin['image'] == row['image']
    np.testing.assert_array_equal(twin['latlon_deg'], row['latlon_deg'])


def test_pictures_decode_to_the_planned_sizes(built):
  for split, shape in (
    ('train_drone', (64, 64, 3)),
    ('train_panorama', (64, 256, 3)),
  ):
    for row in rows(built, split):
      picture = cv2.imdecode(np.frombuffer(row['image'], np.uint8), 1)
      assert picture.shape == shape
      assert picture.std() > 8  # something is to be seen


def metres_apart(a, b):
  north = (a[0] - b[0]) * 111_320
  east = (a[1] - b[1]) * 111_320 * math.cos(math.radians(a[0]))
  return math.hypot(north, east)


def test_gps_of_all_views_of_a_place_agrees(built):
  satellite = {
    r['place']: r['latlon_deg'] for r in rows(built, 'train_satellite')
  }
  for split, limit_m in (
    ('train_drone', 15), ('train_video30', 15), ('train_street', 90),
    ('train_panorama', 90),
  ):  # fmt: skip
    for row in rows(built, split):
      assert metres_apart(row['latlon_deg'], satellite[row['place']]) < limit_m
  gap_m = metres_apart(satellite[0], satellite[1])
  assert abs(gap_m - 500) < 20


def test_poses_are_those_of_the_flight(built):
  drone = rows(built, 'train_drone')
  assert all(0 <= row['heading_deg'] < 360 for row in drone)
  falling = [row['altitude_m'] for row in drone[:3]]
  assert 130 < falling[2] < falling[1] < falling[0] < 280
  for row in rows(built, 'train_panorama'):
    assert row['heading_deg'] == 0
    assert 1.5 < row['altitude_m'] < 3
