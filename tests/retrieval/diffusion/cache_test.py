"""Diffused rows on disk."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl import logging

from cvgl_jax.retrieval.diffusion import cache, cross, graph
from tests.retrieval.diffusion import oracle

OPTIONS = cross.Options(kq=3, kd=5, n_trunc=10)


def nodes(seed: int = 0) -> np.ndarray:
  return oracle.clustered(np.random.default_rng(seed), clusters=4, each=8)


def rows(folder, features=None, options=OPTIONS) -> cross.Offline:
  return cross.diffused_rows(
    nodes() if features is None else features,
    read=np.array([[3, 1]]),
    candidates=20,
    options=options,
    cache_dir=str(folder),
  )


@pytest.fixture
def builds(monkeypatch) -> list:
  """One entry for every graph that is built."""
  calls = []
  build = graph.build

  def counted(*args, **kwargs):
    calls.append(kwargs)
    return build(*args, **kwargs)

  monkeypatch.setattr(graph, 'build', counted)
  return calls


@pytest.fixture
def warnings(monkeypatch) -> list:
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: lines.append(text % args)
  )
  return lines


def only_file(folder) -> pathlib.Path:
  [file] = pathlib.Path(folder).iterdir()
  return file


def assert_equal(a: cross.Offline, b: cross.Offline) -> None:
  for one, other in zip(a, b, strict=True):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype


def test_rows_are_computed_once(tmp_path, builds):
  first = rows(tmp_path / 'new' / 'folder')
  np.testing.assert_array_equal(first.nodes, np.arange(20))
  again = rows(tmp_path / 'new' / 'folder')
  assert len(builds) == 1
  assert_equal(first, again)


def test_without_a_cache_only_rows_that_are_read_are_computed():
  got = cross.diffused_rows(
    nodes(), read=np.array([[3, 1]]), candidates=20, options=OPTIONS
  )
  np.testing.assert_array_equal(got.nodes, [1, 3])


@pytest.mark.parametrize(
  'change',
  [
    {'kd': 4},
    {'n_trunc': 11},
    {'alpha': 0.98},
    {'gamma': 2},
    {'cg_iterations': 19},
    {'cg_tolerance': 1e-5},
    {'converge': True},
  ],
  ids=lambda change: next(iter(change)),
)
def test_other_options_are_other_files(tmp_path, builds, change):
  rows(tmp_path)
  rows(tmp_path, options=dataclasses.replace(OPTIONS, **change))
  assert len(builds) == 2
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('change', [{'kq': 4}, {'hiera': 2}, {'block': 3}])
def test_options_that_do_not_change_rows_find_them(tmp_path, builds, change):
  rows(tmp_path)
  rows(tmp_path, options=dataclasses.replace(OPTIONS, **change))
  assert len(builds) == 1


def test_one_changed_number_is_another_file(tmp_path, builds):
  rows(tmp_path)
  changed = nodes()
  changed[31, 15] = np.nextafter(changed[31, 15], np.float32(2))
  rows(tmp_path, changed)
  assert len(builds) == 2


def _cut(file):
  file.write_bytes(file.read_bytes()[:-700])


def _flip(file):
  data = bytearray(file.read_bytes())
  place = data.find(b'values.npy') + 300
  data[place] ^= 1
  file.write_bytes(bytes(data))


def _empty(file):
  file.write_bytes(b'')


def _garbage(file):
  file.write_bytes(b'these are not the rows you are looking for')


def _other(file):
  np.savez(file, key=np.array('0'), values=np.zeros(3))


def _of_other_features(file):
  with np.load(file) as stored:
    arrays = dict(stored)
  np.savez(file, **arrays | {'key': np.array('0' * 64)})


def _out_of_range(file):
  with np.load(file) as stored:
    arrays = dict(stored)
  arrays['ids'][3, 2] = 32
  np.savez(file, **arrays)


def _not_finite(file):
  with np.load(file) as stored:
    arrays = dict(stored)
  arrays['values'][3, 2] = np.nan
  np.savez(file, **arrays)


def _other_shape(file):
  with np.load(file) as stored:
    arrays = dict(stored)
  np.savez(file, **arrays | {'values': arrays['values'][:, :-1]})


@pytest.mark.parametrize(
  'damage',
  [
    _cut,
    _flip,
    _empty,
    _garbage,
    _other,
    _of_other_features,
    _out_of_range,
    _not_finite,
    _other_shape,
  ],
)
def test_a_damaged_file_is_reported_and_replaced(
  tmp_path, builds, warnings, damage
):
  first = rows(tmp_path)
  damage(only_file(tmp_path))
  again = rows(tmp_path)
  assert len(builds) == 2
  assert only_file(tmp_path).name in warnings[0]
  assert 'damaged' in warnings[0]
  np.testing.assert_array_equal(again.values, first.values)
  rows(tmp_path)
  assert len(builds) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path, warnings, monkeypatch):
  def full(stream, **arrays):
    stream.write(b'half a file')
    raise OSError('no space left')

  monkeypatch.setattr(np, 'savez', full)
  got = rows(tmp_path)
  assert len(got.values) == 20
  assert 'no space left' in warnings[0]
  assert not list(tmp_path.iterdir())


def test_key_depends_on_shape_and_parameters():
  features = np.arange(12, dtype=np.float32)
  keys = {
    cache.key(features.reshape(shape), parameters=parameters)
    for shape in ((3, 4), (4, 3))
    for parameters in ({'kd': 1}, {'kd': 2}, {'kq': 1})
  }
  assert len(keys) == 6
