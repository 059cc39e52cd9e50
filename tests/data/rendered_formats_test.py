"""The rendered city in the formats of CVUSA and VIGOR."""

import dataclasses

import cv2
import numpy as np
import pytest

from cvgl_jax.data import sources
from cvgl_jax.retrieval import metres
from data_builders import prepare
from data_builders.rendered_city import (
  pairs,
  rendered_city_dataset_builder,
  studio,
  tiles,
)

PAIRS = pairs.Plan(**rendered_city_dataset_builder._PAIRS_TINY)
TILES = tiles.Plan(**rendered_city_dataset_builder._TILES_TINY)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  for config in ('pairs_tiny', 'tiles_tiny'):
    prepare.prepare('rendered_city', folder, config=config)
  return folder


def open_pair(data_dir, name, part):
  """Panoramas and satellite pictures of 'train' or 'test'."""
  splits = {
    'train': ('train_panorama', 'train_satellite'),
    'test': ('test_query_panorama', 'test_gallery_satellite'),
  }[part]
  return [sources.open_split(data_dir, name, split) for split in splits]


def picture(split, row):
  encoded = np.frombuffer(split.image_bytes(row), np.uint8)
  return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]


def north_east_m(a_deg, b_deg):
  """Metres from b to a: north, east."""
  delta = (np.asarray(a_deg) - b_deg) * 111_320.0
  shrink = np.cos(np.radians(np.asarray(b_deg)[:, 0]))
  return delta * np.stack(np.broadcast_arrays(1.0, shrink), -1)


# -------------------------------------------------------------------- pairs


@pytest.mark.parametrize(('part', 'count'), [('train', 16), ('test', 8)])
def test_row_i_of_both_views_is_the_same_place(data_dir, part, count):
  panorama, satellite = open_pair(data_dir, 'rendered_city/pairs_tiny', part)
  assert len(panorama) == count
  np.testing.assert_array_equal(panorama.place, satellite.place)
  assert len(np.unique(panorama.place)) == count
  apart = metres.great_circle_m(panorama.latlon_deg, satellite.latlon_deg)
  assert 0.1 < apart.max() < 8
  assert picture(panorama, 0).shape == (64, 352, 3)
  assert picture(satellite, 0).shape == (64, 64, 3)
  assert (panorama.heading_deg == 0).all()


def test_places_of_pairs_are_of_training_or_of_the_test(data_dir):
  train, test = (
    open_pair(data_dir, 'rendered_city/pairs_tiny', part)[0]
    for part in ('train', 'test')
  )
  assert not set(train.place) & set(test.place)


def vividness(pixels):
  """How far from grey: streets are grey, most of what is beside them is not."""
  pixels = pixels.astype(float)
  return pixels.max(-1) - pixels.min(-1)


def test_the_ground_around_a_panorama_is_that_of_its_satellite_picture(
  data_dir,
):
  """Only with north in the middle of one and up in the other."""
  found = []
  for part in ('train', 'test'):
    panorama, satellite = open_pair(data_dir, 'rendered_city/pairs_tiny', part)
    for row in range(len(panorama)):
      # Rows about 13 degrees below the horizon look at 9 m of distance.
      strip = vividness(picture(panorama, row))[48:53].mean(0)
      azimuth = (np.arange(352) - 175.5) / 352 * 2 * np.pi
      ring = []
      for radius_m in (8.0, 10.0):
        x = 32 + radius_m / 2 * np.sin(azimuth)  # 2 m a pixel
        y = 32 - radius_m / 2 * np.cos(azimuth)
        near = vividness(picture(satellite, row))[y.astype(int), x.astype(int)]
        ring.append(near)
      ring = np.mean(ring, 0)
      for values in (strip, ring):
        values -= values.mean()
      agreement = [strip @ np.roll(ring, 44 * k) for k in range(8)]
      mirrored = strip @ ring[::-1]
      norm = np.linalg.norm(strip) * np.linalg.norm(ring) + 1e-6
      found.append(np.array([*agreement, mirrored]) / norm)
  mean = np.mean(found, 0)
  assert mean[0] > 0.3
  assert mean[0] > mean[1:].max() + 0.1


# -------------------------------------------------------------------- tiles


@pytest.mark.parametrize('protocol', ['cross', 'same'])
@pytest.mark.parametrize('part', ['train', 'test'])
def test_a_panorama_lists_all_tiles_that_show_it(data_dir, protocol, part):
  name = f'rendered_city/tiles_tiny/{protocol}'
  panorama, satellite = open_pair(data_dir, name, part)
  assert panorama.gallery == satellite.name
  assert len(panorama) > 4
  for row in range(len(panorama)):
    here = panorama.latlon_deg[row]
    # Of the tiles' centres from the panorama, in pixels of 0.114 m.
    offset_px = north_east_m(satellite.latlon_deg, here[None]) / 0.114
    covering = np.flatnonzero(np.abs(offset_px).max(1) < 320)
    listed = [panorama.positive[row], *panorama.semi_positives[row]]
    assert sorted(x for x in listed if x >= 0) == covering.tolist()
    assert np.abs(offset_px[listed[0]]).max() < 160
    for k, tile in enumerate(listed):
      if tile >= 0:
        np.testing.assert_allclose(
          panorama.offset_px[row, k], offset_px[tile], atol=0.5
        )
      else:
        assert np.isnan(panorama.offset_px[row, k]).all()
  np.testing.assert_array_equal(
    satellite.place[panorama.positive], panorama.place
  )


def test_most_panoramas_have_three_semi_positives():
  plan = tiles.Plan(**rendered_city_dataset_builder._TILES_DEMO)
  known = np.concatenate(
    [(tiles.area(plan, number).tile >= 0).sum(1) for number in range(6)]
  )
  assert known.min() >= 1 and known.max() == 4
  assert (known == 4).mean() > 0.6


@pytest.mark.parametrize('protocol', ['cross', 'same'])
def test_galleries_have_distractors_and_tests_have_places_of_their_own(
  data_dir, protocol
):
  name = f'rendered_city/tiles_tiny/{protocol}'
  train, test = (open_pair(data_dir, name, part) for part in ('train', 'test'))
  assert not set(train[0].place) & set(test[0].place)
  assert len(np.unique(test[0].positive)) < len(test[1])
  shared = set(train[1].place) & set(test[1].place)
  assert len(shared) == (0 if protocol == 'cross' else 63)


def test_a_panorama_is_the_place_that_its_offset_says(data_dir):
  panorama, satellite = open_pair(
    data_dir, 'rendered_city/tiles_tiny/cross', 'test'
  )
  predicted = metres.shift_deg(
    satellite.latlon_deg[panorama.positive], panorama.offset_px[:, 0]
  )
  error_m = metres.great_circle_m(predicted, panorama.latlon_deg)
  assert error_m.max() < 0.1


# ------------------------------------------------------------- determinism


@pytest.mark.parametrize('view', ['panorama', 'satellite'])
def test_same_plan_gives_the_same_bytes(view):
  first = pairs.take(PAIRS, 3, view)
  some = list(tiles.take(TILES, 1, view))
  studio.scene.cache_clear()
  studio.height_maps.cache_clear()
  tiles.area.cache_clear()
  assert pairs.take(PAIRS, 3, view) == first
  assert list(tiles.take(TILES, 1, view)) == some
  other = dataclasses.replace(PAIRS, seed=1)
  assert pairs.take(other, 3, view).jpeg != first.jpeg


def test_faults_of_a_plan_are_named():
  with pytest.raises(ValueError, match='train_places is 6000'):
    dataclasses.replace(PAIRS, train_places=6000)
  with pytest.raises(ValueError, match='grid is 9, expected 2 to 5'):
    dataclasses.replace(TILES, grid=9)
  for module, plan in ((pairs, PAIRS), (tiles, TILES)):
    with pytest.raises(ValueError, match="no view 'drone'"):
      next(iter(module.take(plan, 0, 'drone')))
