"""Folders in, records out: University-1652 and sets in its layout."""

import json
import pathlib
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders import __main__ as command
from data_builders import prepare
from data_builders.university1652 import download, release
from tests import fake_university

REPOSITORY = pathlib.Path(__file__).parents[2]


def build(manual_dir, data_dir, **kwargs):
  """Builds; returns the version directory."""
  return prepare.prepare(
    'university1652', data_dir, manual_dir=manual_dir, **kwargs
  )


def read(folder, split):
  """All records of a built split."""
  source = tfds.builder_from_directory(str(folder)).as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  return [source[i] for i in range(len(source))]


@pytest.fixture
def release_dir(tmp_path):
  return fake_university.write(tmp_path / 'University-Release')


def test_every_view_becomes_a_split_with_the_files_as_they_are(
  release_dir, tmp_path
):
  (release_dir / 'train/google/0839').mkdir(parents=True)
  google = release_dir / 'train/google/0839/a.png'
  google.write_bytes(b'')
  google.unlink()  # an empty place folder in an empty view
  extra = release_dir / 'test/4K_drone/0000'
  extra.mkdir(parents=True)
  (extra / 'image-01.JPG').write_bytes(fake_university.jpeg(99))

  folder = build(release_dir, tmp_path / 'data')

  splits = tfds.builder_from_directory(str(folder)).info.splits
  assert {name: info.num_examples for name, info in splits.items()} == {
    'train_satellite': 3,
    'train_drone': 9,
    'train_street': 6,
    'test_query_satellite': 2,
    'test_gallery_satellite': 3,
    'test_query_drone': 4,
    'test_gallery_drone': 6,
    'test_4k_drone': 1,
  }
  rows = read(folder, 'train_drone')
  assert [row['path'].decode() for row in rows[:4]] == [
    'train/drone/0839/image-01.jpeg',
    'train/drone/0839/image-02.jpeg',
    'train/drone/0839/image-03.jpeg',
    'train/drone/0842/image-01.jpeg',
  ]
  assert [row['place'] for row in rows] == [839] * 3 + [842] * 3 + [843] * 3
  assert [row['frame'] for row in rows] == [1, 2, 3] * 3
  for row in rows:
    assert row['image'] == (release_dir / row['path'].decode()).read_bytes()
  assert {row['frame'] for row in read(folder, 'train_street')} == {-1}


def test_files_come_in_the_published_order(tmp_path):
  place = tmp_path / 'in/train/drone/0007'
  (place / 'a-nested').mkdir(parents=True)
  (tmp_path / 'in/train/drone/0003').mkdir()
  for name in ('b.JPG', 'a.jpeg', 'Z.Png', 'a-nested/0.webp', '.hidden.jpg'):
    (place / name).write_bytes(fake_university.jpeg(1))
  (place / 'notes.txt').write_text('no picture')
  (tmp_path / 'in/train/drone/0010').mkdir()
  (tmp_path / 'in/train/drone/0010/x.jpg').write_bytes(fake_university.jpeg(2))

  rows = read(build(tmp_path / 'in', tmp_path / 'data'), 'train_drone')

  assert [row['path'].decode() for row in rows] == [
    'train/drone/0007/Z.Png',
    'train/drone/0007/a.jpeg',
    'train/drone/0007/b.JPG',
    'train/drone/0007/a-nested/0.webp',
    'train/drone/0010/x.jpg',
  ]
  assert [row['place'] for row in rows] == [7, 7, 7, 7, 10]


def test_damaged_pictures_are_all_named_and_nothing_is_built(
  release_dir, tmp_path
):
  whole = fake_university.jpeg(5, size_px=64)
  bad = {
    'train/drone/0839/image-02.jpeg': whole[: len(whole) // 2],
    'test/gallery_drone/0002/image-01.jpeg': b'',
    'train/street/0842/1.jpg': b'<html>404</html>',
  }
  for path, data in bad.items():
    (release_dir / path).write_bytes(data)
  with pytest.raises(ValueError, match='3 pictures cannot be read') as caught:
    build(release_dir, tmp_path / 'data')
  for path in bad:
    assert path in str(caught.value)
  assert '--skip-damaged' in str(caught.value)
  assert not list((tmp_path / 'data').glob('**/*.array_record*'))

  folder = build(release_dir, tmp_path / 'data', skip_damaged=True)

  paths = [row['path'].decode() for row in read(folder, 'train_drone')]
  assert len(paths) == 8 and 'train/drone/0839/image-02.jpeg' not in paths
  report = json.loads((folder / 'build_report.json').read_text())
  assert {entry['path'] for entry in report['damaged']} == set(bad)


def test_two_processes_build_the_same_as_one(release_dir, tmp_path):
  one = build(release_dir, tmp_path / 'one')
  two = build(release_dir, tmp_path / 'two', num_processes=2)
  for split in tfds.builder_from_directory(str(one)).info.splits:
    pairs = zip(read(one, split), read(two, split), strict=True)
    for row, other in pairs:
      assert row['image'] == other['image'] and row['path'] == other['path']
    with (
      np.load(one / f'index-{split}.npz') as index,
      np.load(two / f'index-{split}.npz') as index_of_two,
    ):
      for name in index:
        np.testing.assert_array_equal(index[name], index_of_two[name])


def test_a_wrong_folder_is_refused_with_the_report_and_the_layout(
  release_dir, tmp_path
):
  with pytest.raises(ValueError, match='train folder itself') as caught:
    build(release_dir / 'train', tmp_path / 'data')
  assert f'--manual_dir={release_dir}' in str(caught.value)
  assert 'test/gallery_satellite/<id>/*' in str(caught.value)
  with pytest.raises(ValueError, match='give --manual_dir') as caught:
    build(None, tmp_path / 'data')
  assert 'Request.md' in str(caught.value)
  with pytest.raises(ValueError, match='is not a folder'):
    build(tmp_path / 'nowhere', tmp_path / 'data')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='is empty'):
    build(tmp_path / 'empty', tmp_path / 'data')


def test_a_complete_data_set_is_kept(release_dir, tmp_path):
  folder = build(release_dir, tmp_path / 'data')
  times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  assert build(release_dir, tmp_path / 'data') == folder
  assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
  'lost', ['*train_drone.array*', 'index-*', 'dataset_*']
)
def test_an_incomplete_data_set_is_built_anew(release_dir, tmp_path, lost):
  folder = build(release_dir, tmp_path / 'data')
  next(folder.glob(lost)).unlink()
  assert prepare.missing_files(folder)
  build(release_dir, tmp_path / 'data')
  assert not prepare.missing_files(folder)
  assert [path.name for path in folder.parent.iterdir()] == ['1.0.0']


def test_overwrite_replaces_and_a_failing_one_keeps_the_old(
  release_dir, tmp_path
):
  folder = build(release_dir, tmp_path / 'data')
  new = release_dir / 'train/drone/0839/image-04.jpeg'
  new.write_bytes(b'broken')
  with pytest.raises(ValueError, match='cannot be read'):
    build(release_dir, tmp_path / 'data', overwrite=True)
  assert len(read(folder, 'train_drone')) == 9
  new.write_bytes(fake_university.jpeg(77))
  build(release_dir, tmp_path / 'data', overwrite=True)
  assert len(read(folder, 'train_drone')) == 10


def test_leftovers_of_a_dead_build_go_and_those_of_a_living_one_stay(
  release_dir, tmp_path
):
  parent = tmp_path / 'data/university1652'
  for name, pid in (('incomplete.AAAAAA_1.0.0', 2**30), ('other', 1)):
    (parent / name).mkdir(parents=True)
    owner = {'host': socket.gethostname(), 'pid': pid}
    (parent / name / 'building.json').write_text(json.dumps(owner))
  build(release_dir, tmp_path / 'data')
  assert sorted(p.name for p in parent.iterdir()) == ['1.0.0', 'other']

  (parent / '1.0.0').rename(tmp_path / 'away')
  (parent / 'other').rename(parent / 'incomplete.BBBBBB_1.0.0')
  with pytest.raises(ValueError, match='process 1 is building'):
    build(release_dir, tmp_path / 'data')
  assert (parent / 'incomplete.BBBBBB_1.0.0').is_dir()


def test_the_command_accepts_folder_and_name_and_says_what_is_wrong(
  release_dir, tmp_path, capsys
):
  arguments = [f'--data_dir={tmp_path}/d', f'--manual-dir={release_dir}']
  assert command.main(['data_builders/university1652', *arguments]) == 0
  assert capsys.readouterr().out == f'{tmp_path}/d/university1652/1.0.0\n'
  assert command.main(['university1652', *arguments, '--config=x']) == 1
  assert "no config 'x'" in capsys.readouterr().err
  assert command.main(['university1562', *arguments]) == 1
  assert 'university1652' in capsys.readouterr().err
  assert command.main(['university1652', *arguments, '--num-processes=0']) == 1
  assert 'expected 1 or more' in capsys.readouterr().err


def test_official_numbers_are_as_many_as_published():
  # That they are the right ones: tests/golden_checks/university1652/splits.py.
  assert len(release.TRAIN) == len(release.QUERY) == 701
  assert len(release.GALLERY) == 951


def test_split_names_are_lower_case():
  assert download.split_name('test/4K_drone') == 'test_4k_drone'


def test_help_names_the_data_sets_and_the_check(capsys):
  with pytest.raises(SystemExit) as caught:
    command.main(['--help'])
  assert caught.value.code == 0
  text = capsys.readouterr().out
  assert 'university1652' in text and 'data_builders.check' in text
  with pytest.raises(SystemExit) as caught:
    command.main(['university1652'])
  assert caught.value.code == 2
  assert '--data_dir' in capsys.readouterr().err
