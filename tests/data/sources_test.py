"""Splits of built data sets: columns, bytes, several sets as one, errors."""

import concurrent.futures
import pickle

import numpy as np
import pytest

from cvgl_jax.data import sources
from data_builders import prepare
from tests import fake_university

OTHER = {'train/drone': ((5001, 5003), 2), 'train/satellite': ((5001, 5003), 1)}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """university1652 with the fake release, other/university1652 beside it."""
  root = tmp_path_factory.mktemp('data')
  for folder, views, seed in (('.', None, 0), ('other', OTHER, 500)):
    download = tmp_path_factory.mktemp('download')
    fake_university.write(download, views, first_seed=seed)
    prepare.prepare('university1652', root / folder, manual_dir=download)
  return root


def test_columns_have_one_row_a_picture(data_dir):
  split = sources.open_split(data_dir, 'university1652', 'train_drone')
  assert len(split) == 9 and split.view == 'drone'
  assert split.place.tolist() == [839] * 3 + [842] * 3 + [843] * 3
  assert split.place.dtype == np.int64 and split.frame.dtype == np.int64
  assert split.path[4] == 'train/drone/0842/image-02.jpeg'
  assert split.frame.tolist() == [1, 2, 3] * 3
  assert split.latlon_deg.shape == (9, 2) and np.isnan(split.latlon_deg).all()
  assert split.latlon_deg.dtype == np.float64
  for column in (split.heading_deg, split.altitude_m):
    assert column.dtype == np.float32 and np.isnan(column).all()


def test_bytes_belong_to_their_row(data_dir):
  split = sources.open_split(data_dir, 'university1652', 'train_drone')
  # Satellite comes first in the fake release: three seeds.
  for row in (0, 4, 8):
    assert split.image_bytes(row) == fake_university.jpeg(3 + row)


def test_rows_out_of_range_are_refused(data_dir):
  split = sources.open_split(data_dir, 'university1652', 'train_drone')
  for row in (-1, 9):
    with pytest.raises(IndexError, match=f'rows 0 to 8, not {row}'):
      split.image_bytes(row)
    with pytest.raises(IndexError, match='rows 0 to 8'):
      split.select([0, row])


def test_select_by_rows_or_mask_keeps_rows_and_bytes_together(data_dir):
  split = sources.open_split(data_dir, 'university1652', 'train_drone')
  part = split.select([7, 2, 2]).select([1, 0])
  assert part.name == 'train_drone' and part.place.tolist() == [839, 843]
  assert part.image_bytes(0) == split.image_bytes(2)
  assert part.image_bytes(1) == split.image_bytes(7)
  mask = split.select(split.frame == 2)
  assert mask.path.tolist() == split.path[[1, 4, 7]].tolist()
  assert len(split.select([])) == 0
  with pytest.raises(IndexError, match='mask'):
    split.select(np.ones(3, bool))


def test_several_data_sets_are_one_split(data_dir):
  names = ['university1652', 'other/university1652']
  split = sources.open_split(data_dir, names, 'train_drone')
  assert split.place.tolist()[-5:] == [843, 5001, 5001, 5003, 5003]
  other = sources.open_split(data_dir, names[1], 'train_drone')
  assert [split.image_bytes(9 + i) for i in range(4)] == [
    other.image_bytes(i) for i in range(4)
  ]
  assert split.select([12, 0]).image_bytes(0) == other.image_bytes(3)
  assert sources.split_names(data_dir, names) == [
    'train_satellite',
    'train_drone',
  ]


def test_data_sets_that_share_places_are_refused(data_dir):
  with pytest.raises(ValueError, match=r'share 3 place.*839, 842, 843'):
    sources.open_split(data_dir, ['university1652'] * 2, 'train_drone')


def test_threads_read_the_same_bytes(data_dir):
  names = ['university1652', 'other/university1652']
  split = sources.open_split(data_dir, names, 'train_drone')
  rows = list(range(len(split))) * 20
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    read = list(pool.map(split.image_bytes, rows))
  assert read == [split.image_bytes(row) for row in rows]


def test_a_split_can_be_pickled_before_and_after_reading(data_dir):
  split = sources.open_split(data_dir, 'university1652', 'train_drone')
  for _ in range(2):
    copy = pickle.loads(pickle.dumps(split.select([5, 6])))
    assert copy.image_bytes(1) == split.image_bytes(6)
    assert copy.path.tolist() == split.path[[5, 6]].tolist()


def test_class_labels_rank_the_places_of_all_views(data_dir):
  splits = [
    sources.open_split(data_dir, name, split)
    for name, split in (
      ('other/university1652', 'train_drone'),
      ('university1652', 'train_satellite'),
      ('university1652', 'train_drone'),
    )
  ]
  labels = sources.class_labels(splits)
  assert labels == {839: 0, 842: 1, 843: 2, 5001: 3, 5003: 4}


def test_a_missing_index_is_made_from_the_records(data_dir, tmp_path):
  folder = data_dir / 'university1652/1.0.0'
  index = folder / 'index-train_drone.npz'
  whole = sources.open_split(data_dir, 'university1652', 'train_drone')
  index.rename(tmp_path / index.name)
  try:
    split = sources.open_split(data_dir, 'university1652', 'train_drone')
  finally:
    (tmp_path / index.name).rename(index)
  for name in sources.COLUMNS:
    np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))
    assert getattr(split, name).dtype == getattr(whole, name).dtype


def test_a_damaged_or_foreign_index_is_refused(data_dir, tmp_path):
  folder = data_dir / 'university1652/1.0.0'
  index = folder / 'index-train_drone.npz'
  good = index.read_bytes()
  try:
    index.write_bytes(good[:100])
    with pytest.raises(ValueError, match='cannot be read'):
      sources.open_split(data_dir, 'university1652', 'train_drone')
    index.write_bytes((folder / 'index-train_street.npz').read_bytes())
    with pytest.raises(ValueError, match='6 rows, the split 9 records'):
      sources.open_split(data_dir, 'university1652', 'train_drone')
  finally:
    index.write_bytes(good)


def test_a_missing_split_lists_those_that_exist(data_dir):
  with pytest.raises(ValueError, match=r"no split 'train_drne'.*train_drone"):
    sources.open_split(data_dir, 'university1652', 'train_drne')


def test_a_missing_data_set_names_the_command_that_builds_it(data_dir):
  with pytest.raises(ValueError, match="no data set 'x/university1652'") as e:
    sources.open_split(data_dir, 'x/university1652', 'train_drone')
  assert "['other/university1652', 'university1652']" in str(e.value)
  command = f'data_builders/university1652 --data_dir={data_dir}/x --manual_dir'
  assert f'python -m data_builders {command}' in str(e.value)
  with pytest.raises(ValueError, match=r"use one of.*'other/university1652'"):
    sources.open_split(data_dir, 'other', 'train_drone')
  with pytest.raises(ValueError, match='python -m data_builders --help'):
    sources.open_split(data_dir, 'nope', 'train_drone')


def test_the_latest_complete_version_is_opened(data_dir, tmp_path):
  version = data_dir / 'other/university1652/1.0.0'
  folder = tmp_path / 'two'
  for name in ('1.9.0', '1.10.0', '2.0.0'):
    (folder / name).mkdir(parents=True)
    if name != '2.0.0':  # a folder without metadata is no version
      for path in version.iterdir():
        (folder / name / path.name).write_bytes(path.read_bytes())
  (folder / '1.9.0/index-train_drone.npz').write_bytes(b'')
  split = sources.open_split(tmp_path, 'two', 'train_drone')
  assert split.image_bytes(0) == fake_university.jpeg(500)
  with pytest.raises(ValueError, match=r'1\.9\.0'):
    sources.open_split(tmp_path, 'two/1.9.0', 'train_drone')
