"""Flights: the order of their pictures, and parts of splits by altitude."""

import types

import numpy as np
import pytest

from cvgl_jax.data import flight, sources
from data_builders import prepare
from data_builders.rendered_city import shots
from tests import fake_university, tiny_world

GALLERY = 'test_gallery_drone'


def flights(frames, *, extra=()):
  """A split with the frames of each place: place number -> frames."""
  rows = [(place, f) for place, taken in frames.items() for f in taken]
  paths = [f'test/gallery_drone/{p:04d}/image-{f:02d}.jpeg' for p, f in rows]
  return types.SimpleNamespace(
    name=GALLERY,
    place=np.array([p for p, _ in rows] + [p for p, _ in extra]),
    frame=np.array([f for _, f in rows] + [-1] * len(extra)),
    path=np.array(paths + [path for _, path in extra]),
  )


def taken_at(split, altitude):
  return split.frame[flight.rows_at(split, altitude)].tolist()


def test_a_flight_of_54_is_cut_by_the_published_numbers():
  split = flights(dict.fromkeys((3, 5), range(1, 55)))
  assert taken_at(split, 'high') == [*range(1, 19)] * 2
  assert taken_at(split, 'middle') == [*range(19, 37)] * 2
  assert taken_at(split, 'low') == [*range(37, 55)] * 2


def test_a_place_with_a_picture_more_or_less_goes_by_number_too():
  """Place 0 of the test of University-1652 has 55 pictures."""
  split = flights(
    {0: range(1, 55), 1: range(1, 55), 2: range(1, 55), 3: range(1, 54)},
    extra=[(0, 'test/gallery_drone/0000/image-54 2.jpeg')],
  )
  low = flight.rows_at(split, 'low')
  assert np.bincount(split.place[low]).tolist() == [19, 18, 18, 17]
  assert taken_at(split, 'high') == [*range(1, 19)] * 4


@pytest.mark.parametrize('count', [3, 4, 5, 6, 9, 12, 18, 36])
def test_other_flights_are_cut_in_thirds_as_the_rendered_drone_descends(count):
  """The rendered city spreads so many views over the same three rounds."""
  views = [shots.spiral_view(i, count) for i in range(count)]
  split = flights({7: [view + 1 for view in views]})
  for number, altitude in enumerate(flight.ALTITUDES):
    expected = [view + 1 for view in views if view // 18 == number]
    assert taken_at(split, altitude) == expected


def test_two_pictures_have_no_middle():
  split = flights({7: [1, 44]})
  assert taken_at(split, 'high') == [1] and taken_at(split, 'low') == [44]
  with pytest.raises(ValueError, match=r'no picture is middle.* have 2 drone'):
    flight.rows_at(split, 'middle')


def test_thirds_are_of_each_place_and_in_the_order_of_the_flight():
  split = flights({7: [5, 1, 9], 8: [2, 4, 6, 8, 10, 12]})
  assert taken_at(split, 'high') == [1, 2, 4]
  assert taken_at(split, 'middle') == [5, 6, 8]
  assert taken_at(split, 'low') == [9, 10, 12]


def test_the_altitudes_of_a_split_are_all_of_it_once():
  for count in (2, 3, 5, 18, 53, 54, 55, 100):
    split = flights({7: range(1, count + 1), 8: range(1, count + 1)})
    altitudes = [a for a in flight.ALTITUDES if count > 2 or a != 'middle']
    rows = np.concatenate([flight.rows_at(split, a) for a in altitudes])
    np.testing.assert_array_equal(np.sort(rows), np.arange(2 * count))


def test_pictures_without_a_number_are_errors():
  split = flights({1: range(1, 55)}, extra=[(2, 'a/b-02/photo.jpeg')])
  with pytest.raises(ValueError, match=r"'a/b-02/photo\.jpeg' has no number"):
    flight.rows_at(split, 'low')


def test_an_unknown_altitude_is_an_error():
  with pytest.raises(ValueError, match="altitude 'lwo'; expected one of"):
    flight.rows_at(flights({1: [1, 2, 3]}), 'lwo')


@pytest.mark.parametrize(
  ('split', 'view'),
  [
    ('train_drone', 'drone'),
    ('test_gallery_drone_low', 'drone'),
    ('test_query_drone_middle', 'drone'),
    ('test_gallery_satellite', 'satellite'),
    ('train_video45', 'video45'),
  ],
)
def test_the_name_of_a_split_tells_its_view(split, view):
  assert flight.view_of(split) == view


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """university1652 with 54 drone pictures a place; other with six."""
  root = tmp_path_factory.mktemp('data')
  for folder, count, place, seed in (('.', 54, 0, 0), ('other', 6, 10, 500)):
    views = {
      'test/gallery_drone': ((place, place + 1), count),
      'test/gallery_satellite': ((place, place + 1), 1),
    }
    download = tmp_path_factory.mktemp('download')
    fake_university.write(download, views, first_seed=seed)
    prepare.prepare('university1652', root / folder, manual_dir=download)
  return root


def test_a_part_of_a_built_split_is_opened_by_name(data_dir):
  whole = sources.open_split(data_dir, 'university1652', GALLERY)
  low = sources.open_split(data_dir, 'university1652', f'{GALLERY}_low')
  assert low.name == f'{GALLERY}_low' and low.view == 'drone'
  assert low.place.tolist() == [0] * 18 + [1] * 18
  assert low.frame.tolist() == [*range(37, 55)] * 2
  assert low.path[0] == 'test/gallery_drone/0000/image-37.jpeg'
  assert low.image_bytes(20) == whole.image_bytes(54 + 36 + 2)


def test_a_part_of_several_data_sets_is_cut_in_each(data_dir):
  names = ['university1652', 'other/university1652']
  high = sources.open_split(data_dir, names, f'{GALLERY}_high')
  assert high.frame.tolist() == [*range(1, 19)] * 2 + [1, 2, 1, 2]
  other = sources.open_split(data_dir, names[1], GALLERY)
  assert high.image_bytes(37) == other.image_bytes(1)


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    (f'{GALLERY}_lwo', f'by altitude are {GALLERY}_high, {GALLERY}_middle'),
    ('test_gallery_satellite_low', "only drone splits.*altitude such as 'low'"),
    ('train_drone_low', "no split 'train_drone'; it has"),
  ],
)
def test_a_part_that_does_not_exist_is_an_error(data_dir, split, message):
  with pytest.raises(ValueError, match=message):
    sources.open_split(data_dir, 'university1652', split)


def test_a_data_set_without_order_names_itself_and_the_part(data_dir):
  folder = data_dir / 'other/university1652/1.0.0'
  index = folder / f'index-{GALLERY}.npz'
  good = index.read_bytes()
  with np.load(index) as file:
    columns = dict(file)
  columns['frame'][:] = -1
  columns['path'] = np.char.replace(columns['path'], b'image-', b'picture')
  np.savez(index, **columns)
  try:
    with pytest.raises(
      ValueError, match=f'other/.*, {GALLERY}_low: .*no number'
    ):
      sources.open_split(data_dir, 'other/university1652', f'{GALLERY}_low')
  finally:
    index.write_bytes(good)


def test_the_rendered_city_is_cut_where_its_drone_flies():
  found = {
    altitude: sources.open_split(
      tiny_world.data_dir(), tiny_world.NAME, f'train_drone_{altitude}'
    ).altitude_m
    for altitude in flight.ALTITUDES
  }
  assert [len(metres) for metres in found.values()] == [16, 16, 16]
  assert found['high'].min() > found['middle'].max()
  assert found['middle'].min() > found['low'].max()
