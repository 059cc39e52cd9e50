"""What the check says about VIGOR as people have it, and about wrong labels."""

import pytest

from data_builders import check
from data_builders.vigor import download, labels
from tests import fake_downloads

LABELS = 'splits/Seattle/same_area_balanced_train.txt'


@pytest.fixture
def root(tmp_path):
  return fake_downloads.vigor(tmp_path / 'VIGOR')


def edit(path, change, *, lines=None):
  """Passes the fields of lines (counted from 1; None = all) to `change`."""
  text = path.read_text().splitlines()
  for i, line in enumerate(text, start=1):
    if lines is None or i in lines:
      text[i - 1] = ' '.join(change(line.split(' ')))
  path.write_text('\n'.join(text) + '\n')


def errors(folder):
  return '\n'.join(download.inspect(folder)[0].select('error'))


def warnings(folder):
  found, usable = download.inspect(folder)
  assert usable is not None, found.text()
  return '\n'.join(found.select('warning'))


def test_a_small_copy_is_usable_and_its_counts_are_compared(root, capsys):
  text = warnings(root)
  for line in (
    'same train panoramas: 48; the release has 52609',
    'same test satellite tiles: 64; the release has 90618',
    'cross train satellite tiles: 32; the release has 44055',
    'cross test panoramas: 48; the release has 53694',
  ):
    assert line in text
  assert check.main(['vigor', f'--manual_dir={root}']) == 0
  out = capsys.readouterr().out
  assert 'Chicago: 24 pictures of panorama (sample: 16x8 JPEG RGB)' in out
  assert 'same: 48 train panoramas with 64 tiles' in out


def test_the_root_is_found_below_and_named_from_a_part(root):
  assert download.inspect(root.parent)[1].root == root
  assert f'give --manual_dir={root}' in errors(root / 'splits')
  assert f'give --manual_dir={root}' in errors(root / 'NewYork')


def test_without_splits_the_expected_tree_is_shown(root, tmp_path):
  (root / 'splits').rename(tmp_path / 'away')
  found = download.inspect(root)[0]
  assert 'no splits/<City>/ here; there are: Chicago/' in found.text()
  assert '<City>/panorama/<id>,<lat>,<lon>,.jpg' in found.text()


def test_a_misspelt_city_folder_is_named(root):
  (root / 'SanFrancisco').rename(root / 'San_Francisco')
  text = errors(root)
  assert 'no folder SanFrancisco/panorama/' in text
  assert 'rename San_Francisco/ to SanFrancisco/?' in text


def test_exchanged_city_folders_are_named(root):
  (root / 'Seattle').rename(root / 'x')
  (root / 'Chicago').rename(root / 'Seattle')
  (root / 'x').rename(root / 'Chicago')
  text = errors(root)
  assert 'Seattle/panorama/ has none of the 24 pictures of Seattle' in text
  assert 'they are in Chicago/panorama/: the folders of the cities are' in text


def test_labels_of_another_city_are_refused(root):
  other = (root / 'splits/Chicago/same_area_balanced_train.txt').read_text()
  (root / LABELS).write_text(other)
  assert f'{LABELS}, line 1: satellite_41' in errors(root)
  assert 'is not in satellite_list.txt of this city (16 tiles)' in errors(root)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda f: f[:12], '12 fields, expected 13'),
    (lambda f: [*f, '0.0'], '14 fields, expected 13'),
    (lambda f: [f[0], '', *f[1:]], '14 fields, expected 13'),
    (lambda f: [f[1], f[0], *f[2:]], 'is not <prefix>,<lat>,<lon>,.jpg'),
    (lambda f: [*f[:2], 'x', *f[3:]], "could not convert string to float: 'x'"),
    (lambda f: [*f[:1], f[2], f[1], *f[3:]], 'is not satellite_<lat>_<lon>'),
    (lambda f: [*f[:2], 'nan', *f[3:]], 'an offset is not finite'),
    (lambda f: ['a,b,c,.jpg', *f[1:]], 'b, c are no coordinates'),
    (lambda f: ['a,-122.1,47.6,.jpg', *f[1:]], '-122.1 is no latitude'),
  ],
)
def test_a_wrong_label_line_is_named(root, change, message):
  edit(root / LABELS, change, lines=[3])
  text = errors(root)
  assert f'{LABELS}, line 3: ' in text and message in text


def test_swapped_offset_columns_are_named(root):
  def swap(fields):
    for i in range(1, 13, 3):
      fields[i + 1], fields[i + 2] = fields[i + 2], fields[i + 1]
    return fields

  edit(root / LABELS, swap)
  assert 'latitude and longitude offsets are swapped' in errors(root)


def test_a_label_file_that_is_off_by_one_is_refused(root):
  lines = [line.split(' ') for line in (root / LABELS).read_text().splitlines()]
  shifted = [
    ' '.join([lines[i - 1][0], *lines[i][1:]]) for i in range(len(lines))
  ]
  (root / LABELS).write_text('\n'.join(shifted))
  assert 'the columns are shifted against each other' in errors(root)


def test_a_wrong_tile_name_is_named(root):
  path = root / 'splits/Chicago/satellite_list.txt'
  path.write_text('index,name\n' + path.read_text())
  text = errors(root)
  assert "satellite_list.txt, line 1: 'index,name' is not satellite_" in text


def test_a_missing_list_of_tiles_is_named(root):
  (root / 'splits/Chicago/satellite_list.txt').unlink()
  assert 'splits/Chicago/satellite_list.txt: it makes the gallery' in errors(
    root
  )


def test_without_some_label_files_only_their_protocol_is_lost(root):
  (root / LABELS).unlink()
  assert 'there will be no protocol same' in warnings(root)
  assert list(download.inspect(root)[1].protocols) == ['cross']
  (root / 'splits/Chicago/pano_label_balanced.txt').unlink()
  assert 'no complete set of label files' in errors(root)


def test_missing_pictures_are_named(root):
  for view in ('panorama', 'satellite'):
    path = min((root / 'Seattle' / view).iterdir())
    path.unlink()
    text = warnings(root)
    assert f'Seattle/{view}/: 1 of ' in text and path.name in text


def test_swapped_picture_folders_are_an_error(root):
  (root / 'Seattle/panorama').rename(root / 'x')
  (root / 'Seattle/satellite').rename(root / 'Seattle/panorama')
  (root / 'x').rename(root / 'Seattle/satellite')
  text = errors(root)
  assert 'Seattle/panorama/ has none of the 24 pictures of Seattle' in text
  assert 'Seattle/panorama/ has 16 pictures, such as satellite_47' in text


def test_panoramas_of_another_aspect_are_refused(root):
  names = [path.name for path in (root / 'Chicago/panorama').iterdir()]
  fake_downloads.write(root / 'Chicago/panorama', names, (8, 8))
  assert 'width / height should be 2' in errors(root)


def test_panoramas_of_train_in_test_and_crowded_tiles_are_warned_about(root):
  path = root / LABELS
  test = path.with_name('same_area_balanced_test.txt')
  test.write_text(path.read_text())
  assert 'same: 12 panoramas are in train and in test' in warnings(root)
  path.write_text('\n'.join(path.read_text().splitlines()[:1] * 3))
  text = warnings(root)
  assert 'panoramas listed more than once' in text
  assert 'a tile is the positive of 3 panoramas, of at most 2' in text


def test_names_give_coordinates():
  name = 'UXxhPNsX4Q,-GSV,37.770184,-122.419594,.jpg'  # a comma in the id
  assert labels.panorama_deg(name) == (37.770184, -122.419594)
  name = 'satellite_37.7703281_-122.4195670.png'
  assert labels.satellite_deg(name) == (37.7703281, -122.4195670)
