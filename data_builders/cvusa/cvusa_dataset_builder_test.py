"""Pairs in, records out: CVUSA."""

import json

import numpy as np
import pytest

from data_builders import prepare
from tests import fake_downloads


def build(root, data_dir, **kwargs):
  """Builds; returns the version directory."""
  return prepare.prepare('cvusa', data_dir, manual_dir=root, **kwargs)


@pytest.fixture
def root(tmp_path):
  return fake_downloads.cvusa(tmp_path / 'CVUSA')


def test_rows_are_the_pairs_of_the_lists_with_the_files_as_they_are(
  root, tmp_path
):
  build(root, tmp_path / 'data')
  for names, count, first in (
    (('train_panorama', 'train_satellite'), 24, 12),
    (('test_query_panorama', 'test_gallery_satellite'), 9, 28),
  ):
    panorama, satellite = (
      fake_downloads.open_split(tmp_path / 'data', 'cvusa', name)
      for name in names
    )
    assert len(panorama) == len(satellite) == count
    assert panorama.place[0] == first and panorama.view == 'panorama'
    np.testing.assert_array_equal(panorama.place, satellite.place)
    assert satellite.path[0] == f'bingmap/19/{first:07d}.jpg'
    assert panorama.path[0] == f'streetview/panos/{first:07d}.jpg'
    for split in (panorama, satellite):
      for row in range(count):
        stored = (root / split.path[row]).read_bytes()
        assert split.image_bytes(row) == stored
    assert (panorama.heading_deg == 0).all()
    assert panorama.positive is None and panorama.utm_m is None


def test_coordinates_are_of_the_image_number_and_the_view(root, tmp_path):
  table = np.loadtxt(root / 'split_locations/all.csv', delimiter=',')
  build(root, tmp_path / 'data')
  for name, columns in (('panorama', [2, 3]), ('satellite', [0, 1])):
    split = fake_downloads.open_split(
      tmp_path / 'data', 'cvusa', f'train_{name}'
    )
    np.testing.assert_array_equal(
      split.latlon_deg, table[split.place - 1][:, columns]
    )


def test_without_locations_coordinates_are_unknown(root, tmp_path):
  (root / 'split_locations/all.csv').unlink()
  build(root, tmp_path / 'data')
  split = fake_downloads.open_split(
    tmp_path / 'data', 'cvusa', 'train_panorama'
  )
  assert np.isnan(split.latlon_deg).all()


def test_a_pair_of_which_a_picture_is_missing_is_left_out_and_reported(
  root, tmp_path
):
  lost = 'streetview/panos/0000015.jpg'
  (root / lost).unlink()
  folder = build(root, tmp_path / 'data')
  for name in ('train_panorama', 'train_satellite'):
    split = fake_downloads.open_split(tmp_path / 'data', 'cvusa', name)
    assert len(split) == 23 and 15 not in split.place
  report = json.loads((folder / 'build_report.json').read_text())
  assert [entry['path'] for entry in report['missing']] == [lost]


def test_pairs_stay_aligned_when_damaged_pictures_are_skipped(root, tmp_path):
  lost = 'bingmap/19/0000015.jpg'
  (root / lost).write_bytes(b'')
  wide = 'streetview/panos/0000025.jpg'
  (root / wide).write_bytes(fake_downloads.picture('x.jpg', (16, 8)))
  with pytest.raises(ValueError, match='2 pictures cannot be read') as caught:
    build(root, tmp_path / 'data')
  assert f'{lost}: empty file' in str(caught.value)
  assert f'{wide}: 16x8 pixels; width / height must be 5.5' in str(caught.value)

  folder = build(root, tmp_path / 'data', skip_damaged=True, num_processes=2)

  splits = [
    fake_downloads.open_split(tmp_path / 'data', 'cvusa', name)
    for name in ('train_panorama', 'train_satellite')
  ]
  assert len(splits[0]) == 22 and not {15, 25} & set(splits[0].place)
  np.testing.assert_array_equal(splits[0].place, splits[1].place)
  report = json.loads((folder / 'build_report.json').read_text())
  assert {e['path'] for e in report['damaged']} == {lost, wide}
  assert {e['path'] for e in report['missing']} == {
    'streetview/panos/0000015.jpg',
    'bingmap/19/0000025.jpg',
  }


def test_class_folders_of_the_university_baseline_are_built_too(root, tmp_path):
  copy = tmp_path / 'copy'
  for part, view, numbers in (
    ('train', 'satellite', (12, 3)),
    ('train', 'street', (12, 3)),
    ('val', 'satellite', (28,)),
    ('val', 'street', (28,)),
  ):
    source = {'satellite': 'bingmap/19', 'street': 'streetview/panos'}[view]
    for number in numbers:
      name = f'{number:07d}'
      target = copy / part / view / name / f'{name}.jpg'
      target.parent.mkdir(parents=True)
      target.write_bytes((root / source / f'{name}.jpg').read_bytes())
  build(copy, tmp_path / 'data')
  train = fake_downloads.open_split(
    tmp_path / 'data', 'cvusa', 'train_panorama'
  )
  assert train.place.tolist() == [3, 12]
  assert train.path[0] == 'streetview/panos/0000003.jpg'
  assert train.image_bytes(1) == (root / train.path[1]).read_bytes()
  test = fake_downloads.open_split(
    tmp_path / 'data', 'cvusa', 'test_gallery_satellite'
  )
  assert test.place.tolist() == [28]


def test_two_processes_build_the_same_as_one(root, tmp_path):
  for processes in (1, 2):
    build(root, tmp_path / str(processes), num_processes=processes)
  one, two = (
    fake_downloads.open_split(tmp_path / name, 'cvusa', 'train_satellite')
    for name in '12'
  )
  np.testing.assert_array_equal(one.path, two.path)
  np.testing.assert_array_equal(one.latlon_deg, two.latlon_deg)
