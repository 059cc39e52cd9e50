"""What the check says about CVUSA as people have it, and about wrong lists."""

import itertools

import pytest

from data_builders import check
from data_builders.cvusa import download, lists
from tests import fake_downloads

TRAIN = 'splits/train-19zl.csv'


@pytest.fixture
def root(tmp_path):
  return fake_downloads.cvusa(tmp_path / 'CVUSA')


def edit(path, line, text):
  """Replaces a line (counted from 1) of a file."""
  lines = path.read_text().splitlines()
  lines[line - 1] = text
  path.write_text('\n'.join(lines) + '\n')


def errors(folder):
  return '\n'.join(download.inspect(folder)[0].select('error'))


def warnings(folder):
  found, usable = download.inspect(folder)
  assert usable is not None, found.text()
  return '\n'.join(found.select('warning'))


def test_a_small_copy_is_usable_and_its_counts_are_compared(root, capsys):
  text = warnings(root)
  assert 'train pairs: 24; the release has 35532' in text
  assert 'test pairs: 9; the release has 8884' in text
  assert check.main(['cvusa', f'--manual_dir={root}']) == 0
  out = capsys.readouterr().out
  assert 'train: 24 pictures of panorama (sample: 44x8 JPEG RGB)' in out


def test_the_root_is_found_below_and_named_from_a_part(root):
  found, there = download.inspect(root.parent)
  assert there.root == root and 'using CVUSA/' in found.text()
  assert f'give --manual_dir={root}' in errors(root / 'streetview')
  assert f'give --manual_dir={root}' in errors(root / 'bingmap/19')


def test_without_the_lists_the_download_is_unusable(root):
  for name in ('train-19zl.csv', 'val-19zl.csv'):
    (root / 'splits' / name).unlink()
  text = download.inspect(root)[0].text()
  assert 'no splits/train-19zl.csv or splits/val-19zl.csv here' in text
  assert 'streetview/panos/0000001.jpg' in text  # the expected tree


def test_one_list_is_enough(root):
  (root / TRAIN).unlink()
  assert 'there will be no train splits' in warnings(root)
  assert list(download.inspect(root)[1].pairs) == ['test']


def test_swapped_columns_are_named(root):
  text = (root / TRAIN).read_text().splitlines()
  swapped = [','.join(line.split(',')[1::-1]) for line in text]
  (root / TRAIN).write_text('\n'.join(swapped))
  assert 'train-19zl.csv, line 1: the columns are swapped' in errors(root)


def test_a_list_that_is_off_by_one_is_refused(root):
  rows = [line.split(',') for line in (root / TRAIN).read_text().splitlines()]
  shifted = [f'{row[0]},{other[1]}' for row, other in itertools.pairwise(rows)]
  (root / TRAIN).write_text('\n'.join(shifted))
  assert 'line 1: bingmap/19/0000012.jpg and' in errors(root)
  assert 'shifted against each other' in errors(root)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('satellite,panorama', "'satellite' is no path of a picture"),
    ('bingmap/19/0000012.jpg', 'has one column'),
    ('/bingmap/19/01.jpg,streetview/panos/01.jpg', 'is not below the root'),
    ('../19/01.jpg,streetview/panos/01.jpg', 'is not below the root'),
    ('bingmap/19/a.jpg,streetview/panos/a.jpg', 'must be image numbers'),
    (
      'bingmap/19/0000015.jpg,streetview/panos/0000015.jpg',
      'line 2: image 15 is in line 1 too',
    ),
  ],
)
def test_a_wrong_line_is_named(root, line, message):
  edit(root / TRAIN, 1, line)
  assert message in errors(root)


def test_lists_may_have_two_columns_windows_ends_and_blank_lines(root):
  before = lists.read_pairs(root / TRAIN)
  text = (root / TRAIN).read_text().splitlines()
  pairs = [','.join(line.split(',')[:2]) for line in text]
  (root / TRAIN).write_bytes('\r\n'.join([*pairs, '', '']).encode('utf-8-sig'))
  assert lists.read_pairs(root / TRAIN) == before


def test_an_empty_list_and_a_binary_one_are_refused(root):
  for data, message in ((b'\n', 'is empty'), (b'\xff\xd8', 'read as text')):
    (root / TRAIN).write_bytes(data)
    assert message in errors(root)


def test_missing_pictures_are_named(root):
  lost = ('bingmap/19/0000015.jpg', 'streetview/panos/0000025.jpg')
  for name in lost:
    (root / name).unlink()
  text = warnings(root)
  assert '2 pairs are left out' in text
  assert all(name in text for name in lost)


def test_a_folder_without_any_listed_picture_is_an_error(root):
  for path in (root / 'streetview/panos').iterdir():
    path.rename(path.with_name(f'{int(path.stem)}.jpg'))
  assert 'none of the 24 pairs is there' in errors(root)
  assert 'has 33 pictures, such as 1.jpg' in errors(root)


def test_panoramas_of_another_aspect_are_refused(root):
  names = [path.name for path in (root / 'streetview/panos').iterdir()]
  fake_downloads.write(root / 'streetview/panos', names, (16, 8))
  assert 'width / height should be 5.5' in errors(root)


def test_one_panorama_of_another_aspect_is_a_warning(root):
  name = 'streetview/panos/0000012.jpg'
  fake_downloads.write(root, [name], (16, 8))
  assert f'{name} (16x8)' in warnings(root)


def test_train_pairs_in_test_are_warned_about(root):
  first = (root / TRAIN).read_text().splitlines()[0]
  edit(root / 'splits/val-19zl.csv', 1, first)
  assert '1 images are in train and in test: 12' in warnings(root)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('-122.2,34.0,-122.2,34.0,1', 'latitudes beyond 90 degrees in lines 2'),
    ('34.0,-122.2,34.0', '3 columns'),
    ('lat,lon,lat,lon', 'line 2:'),
  ],
)
def test_wrong_locations_are_refused(root, line, message):
  edit(root / 'split_locations/all.csv', 2, line)
  assert message in errors(root)


def test_locations_that_end_early_are_a_warning(root):
  path = root / 'split_locations/all.csv'
  path.write_text('\n'.join(path.read_text().splitlines()[:10]))
  assert 'ends at image 10' in warnings(root)


def test_class_folders_must_pair_up(tmp_path):
  for view in ('satellite', 'street'):
    for number in ('0000001', '0000002'):
      wh = (8, 8) if view == 'satellite' else (44, 8)
      fake_downloads.write(
        tmp_path / 'c', [f'train/{view}/{number}/{number}.jpg'], wh
      )
  (tmp_path / 'c/train/street/0000002').rename(
    tmp_path / 'c/train/street/0000003'
  )
  assert '2 images are not in both' in warnings(tmp_path / 'c')
  fake_downloads.write(
    tmp_path / 'c', ['train/street/0000001/second.jpg'], (44, 8)
  )
  assert 'has 2 pictures, expected one' in errors(tmp_path / 'c')
