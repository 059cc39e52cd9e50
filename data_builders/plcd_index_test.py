"""The index files of PLCD: from paths, and from a built data set."""

import pytest

from data_builders import plcd_index, prepare
from tests import fake_university

PATHS = {
  'drone': [
    'train/drone/0842/image-02.jpeg',
    'train/drone/0842/image-01.jpeg',
    'train/drone/0839/image-01.jpeg',
  ],
  'satellite': [
    'train/satellite/0842/0842.jpg',
    'train/satellite/0839/0839.jpg',
  ],
  'street': [f'train/street/0839/{n}.jpg' for n in (1, 2, 10)]
  + ['train/street/0842/1.jpg'],
}


def test_files_are_sorted_by_folder_and_by_name_as_text():
  assert plcd_index.index_files(PATHS) == {
    'drone_id.txt': '0\n1\n1\n',
    'drone_path.txt': '/drone/0839/image-01.jpeg\n/drone/0842/image-01.jpeg\n'
    '/drone/0842/image-02.jpeg\n',
    'drone_view_id.txt': '01\n01\n02\n',
    'satellite_id.txt': '0\n1\n',
    'satellite_path.txt': '/satellite/0839/0839.jpg\n/satellite/0842/0842.jpg\n',
    'street_path.txt': '/street/0839/1.jpg\n/street/0839/10.jpg\n'
    '/street/0839/2.jpg\n/street/0842/1.jpg\n',
  }


@pytest.mark.parametrize(
  ('view', 'paths', 'message'),
  [
    ('street', ['train/street/0839/1.jpg'], r"not both.*\['0842'\]"),
    ('street', ['test/street/0839/1.jpg'], 'expected train/street/<place>'),
    ('street', ['train/street/1.jpg'], 'expected train/street/<place>'),
    (
      'drone',
      ['train/drone/0839/a.jpg', 'train/drone/0842/a.jpg'],
      'two digits',
    ),
  ],
)
def test_paths_that_do_not_fit_are_errors(view, paths, message):
  with pytest.raises(ValueError, match=message):
    plcd_index.index_files(PATHS | {view: paths})


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  download = fake_university.write(tmp_path_factory.mktemp('download'))
  prepare.prepare('university1652', root, manual_dir=download)
  drone_only = tmp_path_factory.mktemp('drone_only')
  fake_university.write(drone_only, {'train/drone': ((839,), 3)})
  prepare.prepare('university1652', root / 'drone_only', manual_dir=drone_only)
  return root


def test_a_built_data_set_gives_the_files_of_its_folders(
  data_dir, tmp_path, capsys
):
  out = tmp_path / 'new' / 'train'
  assert plcd_index.main([f'--data_dir={data_dir}', f'--out={out}']) == 0
  assert (
    out / 'drone_id.txt'
  ).read_bytes() == b'0\n' * 3 + b'1\n' * 3 + b'2\n' * 3
  assert (out / 'drone_view_id.txt').read_bytes() == b'01\n02\n03\n' * 3
  assert (out / 'street_path.txt').read_text().splitlines()[2:4] == [
    '/street/0842/1.jpg',
    '/street/0842/2.jpg',
  ]
  written = capsys.readouterr()
  assert f'{out / "drone_id.txt"}: 9 lines' in written.out
  assert '3 of 3 places, such as 0839, do not have 54' in written.err


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nope', 'no data set in'),
    ('drone_only/university1652', 'no pictures train_satellite'),
  ],
)
def test_a_data_set_that_cannot_be_used_is_named(
  data_dir, tmp_path, capsys, name, message
):
  arguments = [f'--data_dir={data_dir}', f'--name={name}', f'--out={tmp_path}']
  assert plcd_index.main(arguments) == 1
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_damaged_index_is_named(data_dir, tmp_path, capsys):
  index = data_dir / 'university1652/1.0.0/index-train_drone.npz'
  good = index.read_bytes()
  index.write_bytes(good[:100])
  try:
    arguments = [f'--data_dir={data_dir}', f'--out={tmp_path}']
    assert plcd_index.main(arguments) == 1
  finally:
    index.write_bytes(good)
  assert f'{index} cannot be read' in capsys.readouterr().err


def test_the_latest_version_is_read(data_dir, tmp_path):
  version = data_dir / 'university1652/1.0.0'
  for name in ('1.9.0', '1.10.0', '2.0.0'):
    (tmp_path / 'two' / name).mkdir(parents=True)
    if name == '1.10.0':
      for path in version.iterdir():
        (tmp_path / 'two' / name / path.name).write_bytes(path.read_bytes())
    elif name == '1.9.0':
      (tmp_path / 'two' / name / 'dataset_info.json').write_text('{}')
  assert len(plcd_index.paths_of(tmp_path, 'two')['drone']) == 9
