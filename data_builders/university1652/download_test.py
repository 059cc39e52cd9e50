"""What the check says about downloads as people have them."""

import shutil

import pytest

from data_builders import check
from data_builders.university1652 import download
from tests import fake_university


@pytest.fixture
def release_dir(tmp_path):
  return fake_university.write(tmp_path / 'University-Release')


def report(folder):
  """The findings by level, and whether the builder can use the folder."""
  found, _ = download.inspect(folder)
  return found


def test_a_subset_of_the_release_is_usable_with_warnings(release_dir):
  found = report(release_dir)
  assert found.usable
  text = found.text()
  assert 'train/drone: 9 pictures of 3 places (sample: 32x32 JPEG RGB)' in text
  warnings = '\n'.join(found.select('warning'))
  assert '9 pictures of 3 places; the release has 37854 of 701' in warnings
  assert 'no train/google/ (optional)' in found.select('note')


def test_numbers_foreign_to_the_release_make_another_data_set(tmp_path):
  views = {'train/drone': ((5001, 5002), 1), 'train/satellite': ((5001,), 1)}
  found = report(fake_university.write(tmp_path / 'mine', views))
  assert found.usable
  assert any('another data set' in text for text in found.select('note'))
  assert not any('the release has' in t for t in found.select('warning'))


def test_a_strange_place_in_the_release_is_a_warning(release_dir):
  source = release_dir / 'train/drone/0839'
  shutil.copytree(source, release_dir / 'train/drone/0840')
  warnings = report(release_dir).select('warning')
  strange = 'train/drone: 1 places that the release does not have there: 840'
  assert strange in warnings


def test_empty_place_folders_are_fine(release_dir):
  for number in (1057, 1100):
    (release_dir / f'train/google/{number}').mkdir(parents=True)
  (release_dir / 'train/google/0839').mkdir()
  name = release_dir / 'train/google/0839/web.jpg'
  name.write_bytes(fake_university.jpeg(1))
  found = report(release_dir)
  assert found.usable
  expected = 'train/google: 2 empty place folders, as in the release: 1057 1100'
  assert expected in found.select('note')


def test_one_and_two_levels_too_high_is_found(release_dir, tmp_path):
  found, folders = download.inspect(tmp_path)
  assert found.usable and folders.root == release_dir
  assert 'using University-Release/ in this folder' in found.select('note')
  nested = tmp_path / 'x' / 'University-1652'
  nested.mkdir(parents=True)
  release_dir.rename(nested / 'University-Release')
  found, folders = download.inspect(tmp_path / 'x')
  assert found.usable and folders.root == nested / 'University-Release'


def test_too_low_names_the_right_folder(release_dir):
  for folder in ('train', 'test', 'train/drone', 'test/gallery_satellite'):
    found = report(release_dir / folder)
    assert not found.usable
    assert f'--manual_dir={release_dir}' in '\n'.join(found.select('error'))


def test_two_downloads_side_by_side_must_be_chosen(release_dir, tmp_path):
  shutil.copytree(release_dir, tmp_path / 'Other')
  errors = report(tmp_path).select('error')
  assert errors[0].startswith('several downloads here: Other University')


def test_an_archive_is_to_be_unpacked(tmp_path):
  (tmp_path / 'University-Release.zip').write_bytes(b'PK')
  errors = report(tmp_path).select('error')
  assert errors == ['not unpacked yet: University-Release.zip']


def test_renamed_folders_are_recognised(release_dir):
  (release_dir / 'test/gallery_drone').rename(
    release_dir / 'test/gallery-Drones'
  )
  (release_dir / 'test/query_ground').mkdir()
  warnings = report(release_dir).select('warning')
  assert (
    'no test/gallery_drone/; rename test/gallery-Drones/ if it is that'
    in warnings
  )
  assert (
    'no test/query_street/; rename test/query_ground/ if it is that' in warnings
  )
  (release_dir / 'train').rename(release_dir / 'Train')
  warnings = report(release_dir).select('warning')
  assert 'no train/ (rename Train/?)' in warnings


def test_place_folders_that_are_no_numbers_are_an_error(release_dir):
  folder = release_dir / 'train/drone'
  (folder / '0839').rename(folder / 'building_0839')
  found = report(release_dir)
  assert not found.usable
  assert found.select('error') == [
    'train/drone: place folders must be numbers: building_0839'
  ]


def test_two_folders_of_one_number_are_an_error(release_dir):
  folder = release_dir / 'test/gallery_drone'
  shutil.copytree(folder / '0000', folder / '0')
  assert report(release_dir).select('error') == [
    'test/gallery_drone: 0/ and 0000/ are the same place'
  ]


def test_queries_without_gallery_and_shared_places_are_warned_of(tmp_path):
  views = {
    'train/drone': ((7001, 7002), 1),
    'test/query_drone': ((7002, 7003), 1),
    'test/gallery_satellite': ((7002,), 1),
  }
  found = report(fake_university.write(tmp_path / 'mine', views))
  warnings = '\n'.join(found.select('warning'))
  assert (
    '1 places of test/query_drone are not in test/gallery_satellite: 7003'
    in warnings
  )
  assert '1 places are in train and in test: 7002' in warnings


def test_loose_pictures_limited_views_and_strange_folders_are_named(
  release_dir,
):
  (release_dir / 'train/drone/loose.jpg').write_bytes(fake_university.jpeg(1))
  (release_dir / 'train/drone9/0839').mkdir(parents=True)
  (release_dir / 'train/thermal').mkdir()
  found = report(release_dir)
  assert (
    'train/drone: 1 pictures outside a place folder are left out'
    in found.select('warning')
  )
  notes = found.select('note')
  assert 'train/drone9/ left out: a selection of train/drone/' in notes
  assert 'train/thermal/ left out: no folder of this layout' in notes


def test_a_broken_header_is_seen_without_decoding(release_dir):
  (release_dir / 'train/street/0839/1.jpg').write_bytes(b'not a picture')
  assert (
    'train/street/0839/1.jpg: not a picture that Pillow can open'
    in report(release_dir).select('warning')
  )


def test_folders_without_any_picture_are_unusable(tmp_path):
  (tmp_path / 'mine/train/drone/0001').mkdir(parents=True)
  assert report(tmp_path / 'mine').select('error') == [
    'no picture in any of the folders'
  ]


def test_the_command_says_usable_or_not_by_its_exit_code(
  release_dir, tmp_path, capsys
):
  arguments = ['university1652', '--manual_dir']
  assert check.main([*arguments, str(release_dir)]) == 0
  assert 'usable, ' in capsys.readouterr().out
  assert check.main([*arguments, str(release_dir / 'train')]) == 1
  out = capsys.readouterr().out
  assert 'not usable' in out and 'test/4K_drone/<id>/*' in out
  with pytest.raises(SystemExit):
    check.main(['nope', '--manual_dir=x'])
  assert 'there are' in capsys.readouterr().err
