"""Records, shards, order, processes: what every builder inherits."""

import functools
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders import base, progress, records
from tests import fake_university


def make_place(place, count):
  for i in range(count):
    yield base.record(
      fake_university.jpeg(place * 100 + i),
      place=place,
      path=f'{place}/bild-ä{i}.jpg',
      latlon_deg=(47.123456789012, place + 0.1),
      heading_deg=90.5,
      frame=i,
    )


def make_nothing():
  return ()


def fail():
  raise ValueError('no such place')


def die():
  os._exit(3)


class ToyWorld(base.Builder):
  """Rendered: needs no manual_dir. `special` replaces the last job."""

  def __init__(self, *, special=None, **kwargs):
    super().__init__(**kwargs)
    self._special = special

  def jobs(self, manual_dir):
    assert manual_dir is None
    jobs = [
      base.Job(2, functools.partial(make_place, place, 2)) for place in range(6)
    ]
    if self._special:
      jobs[-1] = base.Job(1, self._special)
    satellite = [
      base.Job(1, functools.partial(make_place, place, 1)) for place in range(6)
    ]
    return {'train_drone': jobs, 'train_satellite': satellite}


def build(folder, **kwargs):
  """Builds; returns the version directory."""
  builder = ToyWorld(data_dir=folder, **kwargs)
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def read(folder, split):
  """All records of a built split."""
  source = tfds.builder_from_directory(str(folder)).as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  return [source[i] for i in range(len(source))]


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  return build(tmp_path_factory.mktemp('toy'))


def test_records_keep_order_bytes_and_exact_coordinates(built):
  rows = read(built, 'train_drone')
  assert [row['place'] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  assert [row['frame'] for row in rows] == [0, 1] * 6
  assert rows[3]['image'] == fake_university.jpeg(101)
  assert rows[3]['path'].decode() == '1/bild-ä1.jpg'
  assert rows[3]['latlon_deg'].tolist() == [47.123456789012, 1.1]
  assert rows[3]['heading_deg'] == 90.5


def test_what_is_unknown_is_nan_or_minus_one():
  row = base.record(b'x', place=3, path='p')
  assert np.isnan(row['latlon_deg']).all() and np.isnan(row['altitude_m'])
  assert np.isnan(row['heading_deg']) and row['frame'] == -1


def test_index_equals_the_records(built):
  for split, count in (('train_drone', 12), ('train_satellite', 6)):
    rows = read(built, split)
    with np.load(built / records.index_file(split)) as index:
      assert set(index) == set(rows[0]) - {'image'}
      assert len(index['place']) == count
      for name in index:
        np.testing.assert_array_equal(index[name], [row[name] for row in rows])


def test_no_picture_is_in_the_index(built):
  assert (built / 'index-train_drone.npz').stat().st_size < 4000


def test_two_processes_build_the_same_as_one(built, tmp_path):
  other = build(tmp_path, num_processes=2)
  for split in ('train_drone', 'train_satellite'):
    pairs = zip(read(built, split), read(other, split), strict=True)
    for one, two in pairs:
      for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    with (
      np.load(built / records.index_file(split)) as one,
      np.load(other / records.index_file(split)) as two,
    ):
      for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_large_split_is_cut_into_shards_in_order(
  built, tmp_path, monkeypatch
):
  monkeypatch.setattr(base, 'SHARD_BYTES', 2000)
  other = build(tmp_path)
  shards = sorted(path.name for path in other.glob('*train_drone.array*'))
  assert len(shards) > 2
  assert shards[0].endswith(f'-00000-of-{len(shards):05d}')
  assert not list(other.glob('*.shard*'))
  assert [row['path'] for row in read(other, 'train_drone')] == [
    row['path'] for row in read(built, 'train_drone')
  ]


def test_the_finished_folder_has_a_report_and_no_mark(built):
  report = json.loads((built / 'build_report.json').read_text())
  assert report == {'pictures': {'train_drone': 12, 'train_satellite': 6}}
  assert not (built / 'building.json').exists()


@pytest.mark.parametrize('num_processes', [1, 2])
def test_an_error_in_a_job_ends_the_build_and_leaves_nothing(
  tmp_path, num_processes
):
  with pytest.raises(ValueError, match='no such place'):
    build(tmp_path, special=fail, num_processes=num_processes)
  assert not list(tmp_path.glob('toy_world/*'))


def test_a_dead_worker_is_reported(tmp_path):
  with pytest.raises(ValueError, match='worker process died'):
    build(tmp_path, special=die, num_processes=2)


def test_a_split_without_pictures_is_refused(tmp_path):
  class Nothing(ToyWorld):
    def jobs(self, manual_dir):
      return {'train_drone': [base.Job(1, make_nothing)]}

  with pytest.raises(ValueError, match=r'no picture to write.*train_drone'):
    Nothing(data_dir=tmp_path).download_and_prepare()


def test_a_log_gets_a_line_only_now_and_then(monkeypatch):
  monkeypatch.setattr(progress.sys, 'stderr', io.StringIO())  # no terminal
  now = iter([0.0, *np.arange(1.0, 101.0), 200.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(now))
  lines = []
  monkeypatch.setattr(
    progress.logging, 'info', lambda text, *args: lines.append(text % args)
  )
  bar = progress.Progress('toy', 1000)
  bar.part('train_drone')
  for _ in range(100):
    bar.add(2)
  assert len(lines) == 6
  assert (
    lines[0] == 'toy train_drone: 30 of 1000 pictures, 2.0/s, 8 min 05 s left'
  )
