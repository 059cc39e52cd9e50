"""Pairs in, records out: CVACT."""

import json

import numpy as np
import pytest

from data_builders import prepare
from data_builders.cvact import lists
from tests import fake_downloads

MISSING = ('iuGg9UbjeiylrCQzc5pFTn', 'E2mK6RKnfFLVMv8L4Y8O5A')


def build(root, data_dir, **kwargs):
  """Builds; returns the version directory."""
  return prepare.prepare('cvact', data_dir, manual_dir=root, **kwargs)


def split(tmp_path, name):
  return fake_downloads.open_split(tmp_path / 'data', 'cvact', name)


def test_rows_are_the_pairs_in_the_order_of_the_mat(tmp_path):
  root = fake_downloads.cvact(tmp_path / 'CVACT')
  content = lists.read(root / 'ACT_data.mat')
  build(root, tmp_path / 'data')
  for part, names, folder in (
    ('train', ('train_panorama', 'train_satellite'), 'ANU_data_small'),
    ('val', ('val_query_panorama', 'val_gallery_satellite'), 'ANU_data_small'),
    (
      'test',
      ('test_query_panorama', 'test_gallery_satellite'),
      'ANU_data_test',
    ),
  ):
    panorama, satellite = (split(tmp_path, name) for name in names)
    ids = content.ids(part)
    assert panorama.path.tolist() == [
      f'{folder}/streetview/{i}_grdView.jpg' for i in ids
    ]
    assert satellite.path.tolist() == [
      f'{folder}/satview_polish/{i}_satView_polish.jpg' for i in ids
    ]
    np.testing.assert_array_equal(panorama.place, content.splits[part])
    np.testing.assert_array_equal(satellite.place, panorama.place)
    for side in (panorama, satellite):
      assert side.utm_m.dtype == np.float64
      np.testing.assert_array_equal(
        side.utm_m, content.utm_m[content.splits[part]]
      )
    assert panorama.image_bytes(3) == (root / panorama.path[3]).read_bytes()


def test_val_and_test_number_a_place_alike(tmp_path):
  build(fake_downloads.cvact(tmp_path / 'CVACT'), tmp_path / 'data')
  val, test = (
    split(tmp_path, f'{name}_query_panorama') for name in ('val', 'test')
  )
  assert set(val.place) < set(test.place)
  assert not set(split(tmp_path, 'train_panorama').place) & set(test.place)


def test_pairs_with_a_missing_file_are_left_out_of_both_views(tmp_path):
  root = fake_downloads.cvact(tmp_path / 'CVACT', missing=MISSING)
  folder = build(root, tmp_path / 'data')
  for name, count in (
    ('train_panorama', 19),
    ('train_satellite', 19),
    ('val_query_panorama', 6),
    ('test_gallery_satellite', 14),
  ):
    assert len(split(tmp_path, name)) == count
    assert not any(MISSING[0] in path for path in split(tmp_path, name).path)
  report = json.loads((folder / 'build_report.json').read_text())
  assert len(report['missing']) == 6  # both views; val and test share one
  assert any(MISSING[1] in entry['path'] for entry in report['missing'])


def test_one_of_the_two_folders_is_enough(tmp_path):
  root = fake_downloads.cvact(tmp_path / 'CVACT')
  (root / 'ANU_data_test').rename(tmp_path / 'away')
  (root / 'ACT_data.mat').rename(root / 'ANU_data_small/ACT_data.mat')
  build(root, tmp_path / 'data')
  assert fake_downloads.split_names(tmp_path / 'data', 'cvact') == [
    'train_panorama',
    'train_satellite',
    'val_query_panorama',
    'val_gallery_satellite',
  ]


def test_a_missing_index_is_remade_with_the_coordinates(tmp_path):
  folder = build(fake_downloads.cvact(tmp_path / 'CVACT'), tmp_path / 'data')
  before = split(tmp_path, 'train_panorama').utm_m
  (folder / 'index-train_panorama.npz').unlink()
  after = split(tmp_path, 'train_panorama').utm_m
  np.testing.assert_array_equal(after, before)
  assert after.dtype == np.float64


def test_a_cut_panorama_is_refused(tmp_path):
  root = fake_downloads.cvact(tmp_path / 'CVACT')
  name = next((root / 'ANU_data_test/streetview').iterdir())
  name.write_bytes(fake_downloads.picture('x.jpg', (44, 8)))
  with pytest.raises(
    ValueError, match=r'44x8 pixels; width / height must be 2'
  ):
    build(root, tmp_path / 'data')
