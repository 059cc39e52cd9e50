"""Protocols of a data set, and ground truth that is more than places."""

import functools
import pathlib

import numpy as np
import pytest

from cvgl_jax.data import relations, sources
from data_builders import base, records
from tests import fake_university


def make(places):
  for place in places:
    yield base.record(
      fake_university.jpeg(place), place=place, path=f'{place}.jpg'
    )


class ToyTiles(base.Builder):
  """Four tiles and four panoramas; the protocol `near` uses some of them."""

  def __init__(self, *, first_place=0, gallery='train_satellite', **kwargs):
    super().__init__(**kwargs)
    self._places = range(first_place, first_place + 4)
    self._gallery = gallery

  def jobs(self, manual_dir):
    job = base.Job(4, functools.partial(make, self._places))
    return {'panorama': [job], 'satellite': [job]}

  def protocols(self, stored):
    assert stored['satellite']['path'][3] == f'{self._places[3]}.jpg'.encode()
    yield records.Remark('missing', 'x.jpg', 'not there')
    yield records.Selection(
      protocol='near',
      split=self._gallery,
      stored='satellite',
      rows=np.array([3, 1, 0]),
      columns={},
    )
    yield records.Selection(
      protocol='near',
      split='train_panorama',
      stored='panorama',
      rows=np.array([1, 3]),
      columns={
        'positive': np.array([1, 0]),
        'semi_positives': np.array([[0, -1], [2, 1]]),
        'offset_px': np.arange(12.0).reshape(2, 3, 2),
      },
      gallery=self._gallery,
    )


def build(folder, **kwargs):
  """Builds; returns the version directory."""
  builder = ToyTiles(data_dir=folder, **kwargs)
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  build(root / 'a')
  build(root / 'b', first_place=100)
  build(root / 'c', first_place=200, gallery='train_tile')
  return root


def test_a_protocol_opens_rows_of_the_stored_splits(data_dir):
  tiles = sources.open_split(data_dir, 'a/toy_tiles/near', 'train_satellite')
  assert tiles.place.tolist() == [3, 1, 0]
  assert tiles.image_bytes(0) == fake_university.jpeg(3)
  assert tiles.positive is None and tiles.gallery == ''
  query = sources.open_split(data_dir, 'a/toy_tiles/near', 'train_panorama')
  assert query.place.tolist() == [1, 3]
  assert tiles.place[query.positive].tolist() == [1, 3]
  assert query.semi_positives.tolist() == [[0, -1], [2, 1]]
  assert query.offset_px.shape == (2, 3, 2) and query.utm_m is None
  stored = sources.open_split(data_dir, 'a/toy_tiles', 'panorama')
  assert len(stored) == 4 and stored.positive is None


def test_select_takes_the_relation_along(data_dir):
  query = sources.open_split(data_dir, 'a/toy_tiles/near', 'train_panorama')
  part = query.select([1])
  assert part.positive.tolist() == [0] and part.gallery == 'train_satellite'
  assert part.semi_positives.tolist() == [[2, 1]]
  assert part.offset_px[0, 0].tolist() == [6.0, 7.0]
  assert part.image_bytes(0) == fake_university.jpeg(3)


def test_rows_of_several_galleries_count_on(data_dir):
  names = ['a/toy_tiles/near', 'b/toy_tiles/near']
  query = sources.open_split(data_dir, names, 'train_panorama')
  tiles = sources.open_split(data_dir, names, 'train_satellite')
  assert query.positive.tolist() == [1, 0, 4, 3]
  assert tiles.place[query.positive].tolist() == query.place.tolist()
  assert query.semi_positives.tolist() == [[0, -1], [2, 1], [3, -1], [5, 4]]
  assert query.offset_px.shape == (4, 3, 2)
  assert query.image_bytes(3) == fake_university.jpeg(103)


def test_relations_to_different_splits_are_not_mixed(data_dir):
  names = ['a/toy_tiles/near', 'c/toy_tiles/near']
  with pytest.raises(ValueError, match=r"\['train_satellite', 'train_tile'\]"):
    sources.open_split(data_dir, names, 'train_panorama')


def test_unknown_protocols_and_splits_list_what_there_is(data_dir):
  with pytest.raises(ValueError, match=r"no protocol 'far'; it has \['near'\]"):
    sources.open_split(data_dir, 'a/toy_tiles/far', 'train_panorama')
  message = r"no split 'train_panorama'.*'satellite'.*\['a/toy_tiles/near'\]"
  with pytest.raises(ValueError, match=message):
    sources.open_split(data_dir, 'a/toy_tiles', 'train_panorama')
  with pytest.raises(ValueError, match=r"no split 'test'.*'train_panorama'"):
    sources.open_split(data_dir, 'a/toy_tiles/near', 'test')
  with pytest.raises(ValueError, match=r"there are \[.*'a/toy_tiles/near'"):
    sources.open_split(data_dir, 'nope', 'test')


def test_a_damaged_index_of_a_protocol_is_refused(tmp_path):
  index = build(tmp_path) / 'near/index-train_panorama.npz'
  good = index.read_bytes()
  index.write_bytes(good[:200])
  name = 'toy_tiles/near'
  with pytest.raises(ValueError, match=r'cannot be read.*build') as caught:
    sources.open_split(tmp_path, name, 'train_panorama')
  assert 'delete it' not in str(caught.value)
  index.write_bytes(good)
  with np.load(index) as file:
    columns = dict(file)
  np.savez(index, **(columns | {'stored_row': np.array([1, 4])}))
  with pytest.raises(ValueError, match="rows of 'panorama' that the data set"):
    sources.open_split(tmp_path, name, 'train_panorama')
  np.savez(index, **(columns | {'stored_row': np.array([1])}))
  with pytest.raises(ValueError, match='2 rows, the split 1 records'):
    sources.open_split(tmp_path, name, 'train_panorama')


def test_remarks_of_protocols_are_in_the_report(data_dir):
  report = (data_dir / 'a/toy_tiles/1.0.0/build_report.json').read_text()
  assert '"near"' in report and '"x.jpg"' in report


def test_covers_inverts_the_positives_in_order_of_first_use():
  rows, queries = relations.covers(np.array([7, 2, -1, 7, 5]))
  assert rows.tolist() == [7, 2, 5]
  assert queries.tolist() == [[0, 3], [1, -1], [4, -1]]
  rows, queries = relations.covers(np.array([], np.int64))
  assert rows.shape == (0,) and queries.shape == (0, 0)


def test_join_fills_what_a_data_set_does_not_know():
  one = {'positive': np.array([0, -1]), 'semi_positives': np.array([[1], [-1]])}
  two = {'utm_m': np.array([[1.5, 2.5]]), 'positive': None}
  three = {'semi_positives': np.array([[0, 2]])}
  joint = relations.join(
    [one, two, three], lengths=[2, 1, 1], gallery_starts=[0, 10, 30]
  )
  assert set(joint) == {'positive', 'semi_positives', 'utm_m'}
  assert joint['positive'].tolist() == [0, -1, -1, -1]
  expected = [[1, -1], [-1, -1], [-1, -1], [30, 32]]
  assert joint['semi_positives'].tolist() == expected
  assert joint['utm_m'][2].tolist() == [1.5, 2.5]
  assert np.isnan(joint['utm_m'][[0, 1, 3]]).all()
