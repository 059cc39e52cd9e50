import numpy as np
import pytest
from absl import logging

from cvgl_jax.retrieval.files import feature_files, inputs

ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)


def side(features=UNIT, name='f.npy', **entries):
  return feature_files.Side(features=features, name=name, **entries)


def listed(folder, name, text):
  """A side with a CSV list beside its .npy."""
  np.save(folder / f'{name}.npy', UNIT)
  (folder / f'{name}.csv').write_text(text)
  return inputs.load('query', alone=folder / f'{name}.npy')


def test_an_array_file_is_mapped_and_its_list_found(tmp_path):
  loaded = listed(tmp_path, 'q', 'place,path\n1,a\n2,b\n3,c\n4,d\n')
  assert isinstance(loaded.side.features, np.memmap)
  assert loaded.side.labels.tolist() == ['1', '2', '3', '4']
  assert loaded.source.endswith('q.csv')


def test_a_named_list_goes_before_the_one_beside_and_before_keys(tmp_path):
  listed(tmp_path, 'q', 'place\n1\n2\n3\n4\n')
  (tmp_path / 'other.csv').write_text('5\n6\n7\n8\n')
  load = lambda path: inputs.load(
    'query', alone=tmp_path / path, labels=tmp_path / 'other.csv'
  )
  assert load('q.npy').side.labels.tolist() == ['5', '6', '7', '8']
  np.savez(tmp_path / 'q.npz', f=UNIT, label=np.arange(4), path=list('abcd'))
  loaded = load('q.npz')
  assert loaded.side.labels.tolist() == ['5', '6', '7', '8']
  assert loaded.side.paths.tolist() == list('abcd')


def test_lists_of_another_length_are_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r'q\.csv: 2 entries, but .*q\.npy has 4'
  ):
    listed(tmp_path, 'q', 'place\n1\n2\n')
  np.save(tmp_path / 'l.npy', np.arange(3))
  with pytest.raises(
    ValueError, match=r'l\.npy: 3 entries, but .*q\.npy has 4'
  ):
    inputs.load('query', alone=tmp_path / 'q.npy', labels=tmp_path / 'l.npy')


def test_a_side_without_a_file_is_asked_for():
  with pytest.raises(ValueError, match='--gallery_features is missing'):
    inputs.load('gallery')


@pytest.mark.parametrize('bad', [np.nan, np.inf, 0.0])
def test_rows_that_cannot_be_ranked_are_named_wherever_they_are(bad):
  features = np.ones((5000, 3), np.float32)
  features[4321] = bad
  with pytest.raises(ValueError, match=r'g\.mat, key f: 1 .*rows 4321'):
    inputs.check(side(), side(features, 'g.mat, key f'), similarity='cosine')


def test_features_that_are_not_of_unit_norm_are_told_of_the_dot_product(
  monkeypatch,
):
  told = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *values: told.append(text % values)
  )
  inputs.check(side(), side(), similarity='cosine')
  inputs.check(side(3 * UNIT), side(), similarity='dot')
  assert not told
  inputs.check(side(3 * UNIT, 'q.mat'), side(), similarity='cosine')
  assert len(told) == 1
  assert told[0].startswith('q.mat: norms from 3 to 3')


def test_semi_positives_are_added_to_labels(tmp_path):
  query = listed(tmp_path, 'q', 'place,semi_positives\n1,2 3\n2,\n3,0\n4,\n')
  gallery = inputs.Input(side=side(labels=np.arange(1, 5)))
  found = inputs.answers(query, gallery)
  assert found['query_place'].tolist() == [1, 2, 3, 4]
  np.testing.assert_array_equal(
    found['semi_positives'], [[2, 3], [-1, -1], [0, -1], [-1, -1]]
  )


def test_without_labels_there_is_no_ground_truth():
  unknown = inputs.Input(side=side())
  known = inputs.Input(side=side(labels=np.arange(4)))
  assert inputs.answers(unknown, known) is None
  assert inputs.answers(known, unknown) is None


def test_errors_in_metres_are_measured_on_the_sphere(tmp_path):
  header = 'latitude_deg,longitude_deg\n'
  points = ['48,11', '48,12', '49,11', '-1,179.5']
  query = listed(tmp_path, 'q', header + '\n'.join(points))
  gallery = listed(tmp_path, 'g', header + '\n'.join(points))
  errors = inputs.errors_m(query, gallery, np.array([0, 0, 0, 3]))
  assert errors[0] == errors[3] == 0
  assert errors[2] == pytest.approx(111_195, rel=1e-4)  # a degree of latitude
  assert errors[1] == pytest.approx(111_195 * np.cos(np.radians(48)), rel=1e-3)
  far = listed(tmp_path, 'x', header + '\n'.join([*points[:3], 'nan,nan']))
  assert inputs.errors_m(query, far, np.zeros(4, int)) is None
