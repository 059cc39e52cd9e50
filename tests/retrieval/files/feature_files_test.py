import h5py
import numpy as np
import pytest
import scipy.io

from cvgl_jax.retrieval.files import feature_files

QUERY = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
GALLERY = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
QUERY_LABEL = [839, 839, 1, 1, 2, 3]
GALLERY_LABEL = [1, 2, 3, 839, -1]
QUERY_PATH = [f'query/{i:04}/q.jpeg' for i in range(6)]
GALLERY_PATH = [f'gallery/{i:04}/{"g" * i}.jpg' for i in range(5)]


def university(folder, **changes):
  """What `test.py` of University-1652 and MobileGeo saves."""
  values = {
    'gallery_f': GALLERY,
    'gallery_label': GALLERY_LABEL,
    'gallery_path': GALLERY_PATH,
    'query_f': QUERY,
    'query_label': QUERY_LABEL,
    'query_path': QUERY_PATH,
  } | changes
  values = {key: value for key, value in values.items() if value is not None}
  path = folder / 'pytorch_result.mat'
  scipy.io.savemat(path, values)
  return [path]


def plcd(folder, **changes):
  university(folder, gallery_f=None, query_f=None, **changes)
  with h5py.File(folder / 'pytorch.hdf5', 'w') as file:
    file['gallery_feature'] = GALLERY
    file['query_feature'] = QUERY
  return [folder / 'pytorch.hdf5']


def npz(folder):
  np.savez(
    folder / 'x.npz',
    gallery_features=GALLERY,
    gallery_labels=np.array(GALLERY_LABEL),
    gallery_paths=np.array(GALLERY_PATH),
    query_features=QUERY,
    query_labels=np.array(QUERY_LABEL),
    query_paths=np.array(QUERY_PATH),
  )
  return [folder / 'x.npz']


def read_pair(paths):
  return {
    side: feature_files.read_side(paths, side) for side in feature_files.SIDES
  }


def check(sides):
  np.testing.assert_array_equal(sides['query'].features, QUERY)
  np.testing.assert_array_equal(sides['gallery'].features, GALLERY)
  assert sides['query'].labels.tolist() == QUERY_LABEL
  assert sides['gallery'].labels.tolist() == GALLERY_LABEL
  assert sides['gallery'].labels.dtype == np.int64
  assert sides['query'].paths.tolist() == QUERY_PATH
  assert sides['gallery'].paths.tolist() == GALLERY_PATH


@pytest.mark.parametrize('make', [university, plcd, npz])
def test_result_files_of_the_published_code_are_read(tmp_path, make):
  check(read_pair(make(tmp_path)))


def test_plcd_files_may_be_given_both(tmp_path):
  paths = [*plcd(tmp_path), tmp_path / 'pytorch_result.mat']
  check(read_pair(paths))


def test_one_side_is_taken_from_a_file_of_both(tmp_path):
  (path,) = university(tmp_path)
  side = feature_files.read_side([path], 'query', alone=True)
  np.testing.assert_array_equal(side.features, QUERY)
  assert side.labels.tolist() == QUERY_LABEL
  assert side.name.endswith('pytorch_result.mat, key query_f')


@pytest.mark.parametrize('key', ['features', 'f', 'anything'])
def test_a_file_of_one_side_needs_no_prefix(tmp_path, key):
  np.savez(tmp_path / 'g.npz', **{key: GALLERY})
  side = feature_files.read_side([tmp_path / 'g.npz'], 'gallery', alone=True)
  np.testing.assert_array_equal(side.features, GALLERY)
  assert side.labels is None and side.paths is None


def test_the_only_key_is_not_taken_from_the_other_side(tmp_path):
  np.savez(tmp_path / 'x.npz', query_f=QUERY)
  with pytest.raises(ValueError, match=r"gallery_f or .*found.*\['query_f'\]"):
    feature_files.read_side([tmp_path / 'x.npz'], 'gallery', alone=True)


def test_paths_may_be_pairs_with_the_class(tmp_path):
  pairs = [(path, str(i)) for i, path in enumerate(QUERY_PATH)]
  sides = read_pair(university(tmp_path, query_path=pairs))
  assert sides['query'].paths.tolist() == QUERY_PATH


def test_labels_may_be_text_cells_or_float_columns(tmp_path):
  cells = np.array(['0001', '0002', '0003', '0839', 'x'], object)
  column = np.array(QUERY_LABEL, np.float64)[:, None]
  sides = read_pair(
    university(tmp_path, gallery_label=cells, query_label=column)
  )
  assert sides['gallery'].labels.tolist() == cells.tolist()
  assert sides['query'].labels.tolist() == QUERY_LABEL


def test_a_list_of_labels_is_read_from_any_file(tmp_path):
  (path,) = university(tmp_path)
  assert feature_files.read_labels(path, 'query').tolist() == QUERY_LABEL
  np.save(tmp_path / 'l.npy', np.array(QUERY_LABEL, np.int32))
  labels = feature_files.read_labels(tmp_path / 'l.npy', 'query')
  assert labels.tolist() == QUERY_LABEL and labels.dtype == np.int64


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'query_f': None, 'feat_q': QUERY},
      r'no query features: expected the key query_f or .*pytorch_result\.mat: '
      r".*'feat_q', 'gallery_f'",
    ),
    (
      {'query_label': QUERY_LABEL[:5]},
      r'key query_label: 5 entries, but .*key query_f has 6 feature rows',
    ),
    (
      {'gallery_path': GALLERY_PATH[:4]},
      r'key gallery_path: 4 entries, but .*key gallery_f has 5 feature rows',
    ),
    ({'query_f': ['text']}, r'key query_f: .*expected numbers of shape'),
    ({'query_f': np.zeros((2, 3, 4))}, r'key query_f: float64 of shape'),
    ({'query_label': np.arange(6) / 2}, r'key query_label: .*whole numbers'),
    ({'query_label': np.zeros((2, 3))}, r'key query_label: labels of shape'),
    ({'query_path': np.arange(6)}, r'key query_path: .*expected text'),
    (
      {'query_path': np.array([np.zeros(3)] * 6 + [0], object)[:6]},
      r'key query_path: a cell holds no single text',
    ),
  ],
)
def test_faults_name_file_and_key(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    read_pair(university(tmp_path, **changes))


def test_a_npy_file_is_one_side(tmp_path):
  np.save(tmp_path / 'q.npy', QUERY)
  with pytest.raises(ValueError, match='--query_features and --gallery'):
    read_pair([tmp_path / 'q.npy'])


def sides():
  return {
    'query': feature_files.Side(
      features=QUERY, labels=np.array(QUERY_LABEL), paths=np.array(QUERY_PATH)
    ),
    'gallery': feature_files.Side(
      features=GALLERY,
      labels=np.array(GALLERY_LABEL),
      paths=np.array(GALLERY_PATH),
    ),
  }


def test_mat_is_written_as_the_original_evaluators_read_it(tmp_path):
  (path,) = feature_files.write(tmp_path / 'new', 'mat', sides())
  # The lines of `evaluate_gpu.py`.
  result = scipy.io.loadmat(path)
  assert result['query_label'][0].tolist() == QUERY_LABEL
  assert result['gallery_label'][0].tolist() == GALLERY_LABEL
  assert result['query_f'].dtype == np.float32
  np.testing.assert_array_equal(result['gallery_f'], GALLERY)
  check(read_pair([path]))
  assert [p.name for p in (tmp_path / 'new').iterdir()] == [path.name]


def test_hdf5_is_written_as_plcd_reads_it(tmp_path):
  written = feature_files.write(
    tmp_path, 'hdf5', sides(), suffix='_for_diffusion'
  )
  assert [path.name for path in written] == [
    'pytorch_for_diffusion.hdf5',
    'pytorch_result_for_diffusion.mat',
  ]
  with h5py.File(written[0]) as file:
    assert sorted(file) == ['gallery_feature', 'query_feature']
    np.testing.assert_array_equal(file['query_feature'][()], QUERY)
  assert 'query_f' not in scipy.io.loadmat(written[1])
  check(read_pair(written[:1]))


def test_what_a_mat_file_cannot_hold_is_refused(tmp_path):
  huge = np.broadcast_to(np.float32(1), (2**20, 512))
  changed = sides() | {
    'query': feature_files.Side(features=huge, labels=np.zeros(2**20, int))
  }
  with pytest.raises(ValueError, match=r'query features take 2\.0 GiB.*hdf5'):
    feature_files.write(tmp_path, 'mat', changed)
  with pytest.raises(ValueError, match=r"'xls'.*'mat'"):
    feature_files.write(tmp_path, 'xls', sides())
  assert not list(tmp_path.iterdir())
