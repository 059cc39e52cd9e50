"""Pictures in, records and protocols out: VIGOR."""

import json
import pathlib
import re

import numpy as np
import pytest

from data_builders import __main__ as command
from data_builders import prepare
from data_builders.vigor import labels
from tests import fake_downloads

SPLITS = [
  'test_gallery_satellite',
  'test_query_panorama',
  'train_panorama',
  'train_satellite',
]
TILE = 'NewYork/satellite/satellite_40.7106561_-73.9800000.png'  # row 1


def build(root, data_dir, **kwargs):
  """Builds; returns the version directory."""
  return prepare.prepare('vigor', data_dir, manual_dir=root, **kwargs)


@pytest.fixture
def root(tmp_path):
  return fake_downloads.vigor(tmp_path / 'VIGOR')


@pytest.fixture
def opened(tmp_path):
  """(protocol, split) -> what was built."""
  return lambda protocol, name: fake_downloads.open_split(
    tmp_path / 'data', f'vigor/{protocol}', name
  )


def correct(root, *, move_px=10.0):
  """Labels of another folder, offsets moved; returns the folder."""
  folder = root / 'splits__corrected'
  for path in (root / 'splits').glob('*/*.txt'):
    target = folder / path.parent.name / f'{path.stem}__corrected.txt'
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.name == 'satellite_list.txt':
      target.with_name(path.name).write_text(path.read_text())
      continue
    lines = []
    for line in path.read_text().splitlines():
      fields = line.split(' ')
      fields[2] = f'{float(fields[2]) + move_px:.6f}'
      lines.append(' '.join(fields))
    target.write_text('\n'.join(lines))
  return folder


def test_pictures_are_stored_once_and_protocols_share_them(
  root, tmp_path, opened
):
  folder = build(root, tmp_path / 'data')
  data = tmp_path / 'data'
  assert fake_downloads.split_names(data, 'vigor') == ['panorama', 'satellite']
  assert fake_downloads.split_names(data, 'vigor/same') == SPLITS
  assert fake_downloads.split_names(data, 'vigor/cross') == SPLITS
  records = list(folder.glob('**/*.array_record*'))
  assert len(records) == 2
  for protocol in ('same', 'cross'):
    for name in SPLITS:
      split = opened(protocol, name)
      for row in (0, 5, len(split) - 1):
        stored = (root / split.path[row]).read_bytes()
        assert split.image_bytes(row) == stored
  sizes = {
    (protocol, name): len(opened(protocol, name))
    for protocol in ('same', 'cross')
    for name in SPLITS
  }
  assert sizes == {
    ('same', 'train_panorama'): 48,
    ('same', 'test_query_panorama'): 48,
    ('same', 'train_satellite'): 64,
    ('same', 'test_gallery_satellite'): 64,
    ('cross', 'train_panorama'): 48,
    ('cross', 'test_query_panorama'): 48,
    ('cross', 'train_satellite'): 32,
    ('cross', 'test_gallery_satellite'): 32,
  }


def test_positives_are_rows_of_the_gallery_and_offsets_fit_coordinates(
  root, tmp_path, opened
):
  build(root, tmp_path / 'data')
  for protocol in ('same', 'cross'):
    for query, gallery in (
      ('train_panorama', 'train_satellite'),
      ('test_query_panorama', 'test_gallery_satellite'),
    ):
      panorama, satellite = opened(protocol, query), opened(protocol, gallery)
      assert panorama.gallery == gallery and satellite.gallery == ''
      np.testing.assert_array_equal(
        satellite.place[panorama.positive], panorama.place
      )
      rows = np.concatenate(
        [panorama.positive[:, None], panorama.semi_positives], axis=1
      )  # [N, 4]
      difference = satellite.latlon_deg[rows] - panorama.latlon_deg[:, None]
      np.testing.assert_allclose(
        panorama.offset_px,
        difference / labels.UNIT_DEG * 320,
        atol=1.0,  # names are rounded
      )
      assert len(np.unique(satellite.place)) == len(satellite)
  assert panorama.latlon_deg.dtype == panorama.offset_px.dtype == np.float64


def test_a_place_has_one_number_in_all_protocols(root, tmp_path, opened):
  build(root, tmp_path / 'data')
  number = dict(
    zip(
      (same := opened('same', 'train_satellite')).path.tolist(),
      same.place.tolist(),
      strict=True,
    )
  )
  assert list(number.values()) == list(range(64))
  for name in ('train_satellite', 'test_gallery_satellite'):
    cross = opened('cross', name)
    assert [number[path] for path in cross.path] == cross.place.tolist()
  assert opened('cross', 'test_gallery_satellite').place[0] == 32


def test_corrected_labels_are_protocols_of_the_same_pictures(
  root, tmp_path, opened
):
  correct(root)
  folder = build(root, tmp_path / 'data')
  one, two = (
    opened(name, 'test_query_panorama') for name in ('same', 'same_corrected')
  )
  np.testing.assert_allclose(
    two.offset_px[:, 0] - one.offset_px[:, 0], [[10, 0]] * 48, atol=1e-9
  )
  np.testing.assert_array_equal(one.positive, two.positive)
  np.testing.assert_array_equal(one.path, two.path)
  assert len(list(folder.glob('**/*.array_record*'))) == 2
  report = json.loads((folder / 'build_report.json').read_text())
  assert list(report['protocols']) == [
    'same',
    'cross',
    'same_corrected',
    'cross_corrected',
  ]


def test_corrected_labels_are_enough(root, tmp_path, opened):
  correct(root).joinpath('NewYork/satellite_list.txt').unlink()
  (root / 'splits/NewYork/pano_label_balanced.txt').unlink()
  build(root, tmp_path / 'data')
  assert len(opened('same', 'train_panorama')) == 48
  assert len(opened('cross_corrected', 'train_panorama')) == 48
  with pytest.raises(ValueError, match=r"no protocol 'cross'.*same_corrected"):
    opened('cross', 'train_panorama')


@pytest.mark.parametrize(
  'layout',
  [
    {'panorama': 'ground/{city}', 'satellite': 'satellite/{city}'},
    {'panorama': '{city}/ground'},
  ],
)
def test_other_layouts_give_the_same_rows(root, tmp_path, opened, layout):
  build(root, tmp_path / 'data')
  other = fake_downloads.vigor(tmp_path / 'other', **layout)
  build(other, tmp_path / 'second')
  for name in SPLITS:
    one = opened('cross', name)
    two = fake_downloads.open_split(tmp_path / 'second', 'vigor/cross', name)
    assert one.path.tolist() == two.path.tolist()
    assert one.image_bytes(7) == two.image_bytes(7)


def test_a_missing_tile_leaves_its_panoramas_out_and_renumbers(
  root, tmp_path, opened
):
  build(root, tmp_path / 'whole')
  whole = {
    name: fake_downloads.open_split(tmp_path / 'whole', 'vigor/same', name)
    for name in SPLITS
  }
  (root / TILE).unlink()
  folder = build(root, tmp_path / 'data')
  gallery = opened('same', 'train_satellite')
  assert len(gallery) == 63 and TILE not in gallery.path
  panorama, before = opened('same', 'train_panorama'), whole['train_panorama']
  kept = before.positive != 1
  assert not kept.all()
  assert panorama.path.tolist() == before.path[kept].tolist()
  for new, old in (
    (panorama.positive, before.positive),
    (panorama.semi_positives, before.semi_positives),
  ):
    old = old[kept]
    assert (new[old == 1] == -1).all()
    old_path = whole['train_satellite'].path[old[old != 1]]
    np.testing.assert_array_equal(gallery.path[new[old != 1]], old_path)
  assert (panorama.semi_positives == -1).any()
  report = json.loads((folder / 'build_report.json').read_text())
  paths = [entry['path'] for entry in report['missing']]
  assert TILE in paths
  assert set(before.path[~kept]) < set(paths)


def test_a_damaged_picture_is_refused_or_left_out(root, tmp_path, opened):
  build(root, tmp_path / 'whole')
  whole = fake_downloads.open_split(
    tmp_path / 'whole', 'vigor/cross', 'test_query_panorama'
  )
  bad = {
    whole.path[3]: b'broken',
    whole.path[5]: fake_downloads.picture('x.jpg', (8, 8)),
  }
  for path, data in bad.items():
    (root / path).write_bytes(data)
  with pytest.raises(ValueError, match='2 pictures cannot be read') as caught:
    build(root, tmp_path / 'data')
  assert '8x8 pixels; width / height must be 2' in str(caught.value)
  build(root, tmp_path / 'data', skip_damaged=True)
  query = opened('cross', 'test_query_panorama')
  kept = np.delete(np.arange(48), [3, 5])
  assert query.path.tolist() == whole.path[kept].tolist()
  np.testing.assert_array_equal(query.positive, whole.positive[kept])
  np.testing.assert_array_equal(query.offset_px, whole.offset_px[kept])


def test_a_protocol_without_its_index_is_incomplete_and_built_anew(
  root, tmp_path
):
  folder = build(root, tmp_path / 'data')
  (folder / 'cross/index-train_panorama.npz').unlink()
  assert prepare.missing_files(folder) == ['cross/index-train_panorama.npz']
  build(root, tmp_path / 'data', overwrite=True)
  assert not prepare.missing_files(folder)


def test_two_processes_build_the_same_as_one(root, tmp_path):
  folders = [
    build(root, tmp_path / str(count), num_processes=count) for count in (1, 2)
  ]
  files = [sorted(folder.glob('**/index-*.npz')) for folder in folders]
  assert len(files[0]) == 10
  for one, two in zip(*files, strict=True):
    assert one.relative_to(folders[0]) == two.relative_to(folders[1])
    with np.load(one) as first, np.load(two) as second:
      assert set(first) == set(second)
      for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_the_command_lists_protocols_and_accepts_their_names(
  root, tmp_path, capsys
):
  assert command.main(['vigor', '--list']) == 0
  assert 'cross: Train in New York and Seattle' in capsys.readouterr().out
  arguments = ['vigor', f'--data_dir={tmp_path}/d', f'--manual_dir={root}']
  assert command.main([*arguments, '--config=near']) == 1
  assert "no config 'near'; there are ['same', 'cross'" in (
    capsys.readouterr().err
  )
  with pytest.raises(ValueError, match="no data set 'vigor/same'") as caught:
    fake_downloads.open_split(tmp_path / 'd', 'vigor/same', 'train_panorama')
  hint = re.search(r'data_builders/vigor .*', str(caught.value))[0].split()
  hint = [part for part in hint if not part.startswith(('<', 'unp', 'down'))]
  hint[-1] = f'--manual_dir={root}'
  assert command.main(hint) == 0
  built = capsys.readouterr().out.strip()
  assert pathlib.Path(built) == tmp_path / 'd/vigor/1.0.0'
