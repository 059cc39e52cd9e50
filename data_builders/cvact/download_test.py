"""What the check says about CVACT as people have it, and about a wrong .mat."""

import numpy as np
import pytest
import scipy.io

from data_builders import check
from data_builders.cvact import download, lists
from tests import fake_downloads


@pytest.fixture
def root(tmp_path):
  return fake_downloads.cvact(tmp_path / 'CVACT')


@pytest.fixture
def change(root):
  """Writes ACT_data.mat with other variables; None leaves one out."""
  path = root / 'ACT_data.mat'
  content = scipy.io.loadmat(path)
  kept = {k: v for k, v in content.items() if not k.startswith('__')}

  def write(**variables):
    new = {k: v for k, v in (kept | variables).items() if v is not None}
    scipy.io.savemat(path, new)
    return path

  return write


def errors(folder):
  return '\n'.join(download.inspect(folder)[0].select('error'))


def warnings(folder):
  found, usable = download.inspect(folder)
  assert usable is not None, found.text()
  return '\n'.join(found.select('warning'))


def test_a_small_copy_is_usable_and_its_counts_are_compared(root, capsys):
  text = warnings(root)
  assert 'train pairs: 20; the release has 35531' in text
  assert 'val pairs: 7; the release has 8884' in text
  assert 'test pairs: 15; the release has 92802' in text
  assert check.main(['cvact', f'--manual_dir={root}']) == 0
  assert 'ACT_data.mat: 38 panoramas, train 20' in capsys.readouterr().out


def test_the_mat_is_found_in_both_places_and_its_absence_named(root):
  path = root / 'ACT_data.mat'
  path.rename(root / 'ANU_data_small/ACT_data.mat')
  assert download.inspect(root)[1] is not None
  (root / 'ANU_data_small/ACT_data.mat').unlink()
  assert f'no ACT_data.mat in {root}' in errors(root)


@pytest.mark.parametrize(
  'name', ['panoIds', 'utm', 'trainSet', 'valSet', 'valSetAll']
)
def test_a_missing_variable_is_named_with_those_that_are_there(change, name):
  path = change(**{name: None})
  with pytest.raises(ValueError, match=f'has no variable {name!r}; it has'):
    lists.read(path)


def test_a_struct_without_the_expected_field_is_named(change):
  path = change(trainSet={'trainUTM': 1.0, 'indices': np.array([[1], [2]])})
  message = r"struct trainSet has no field 'trainInd'.*'trainUTM', 'indices'"
  with pytest.raises(ValueError, match=message):
    lists.read(path)


def test_a_plain_array_instead_of_a_struct_is_named(change, root):
  change(valSet=np.array([[1], [2]]))
  assert 'valSet is int64 (2, 1); expected a struct' in errors(root)


@pytest.mark.parametrize(
  ('indices', 'message'),
  [
    ([[0], [1]], r'indices 0 to 1; expected 1 to 38.*count from 0'),
    ([[1], [39]], 'indices 1 to 39; expected 1 to 38'),
    ([[1.5]], 'fractions'),
    (np.zeros((0, 1)), 'no numbers'),
  ],
)
def test_indices_that_are_off_by_one_are_refused(change, indices, message):
  path = change(trainSet={'trainInd': np.array(indices)})
  with pytest.raises(ValueError, match=f'trainSet.trainInd .*{message}'):
    lists.read(path)


def test_coordinates_of_another_shape_are_refused(change):
  with pytest.raises(ValueError, match=r'utm is .*\(37, 2\).*\(38, 2\)'):
    lists.read(change(utm=np.zeros((37, 2))))


def test_ids_may_be_a_cell_array_and_must_be_texts(change):
  ids = lists.read(change()).panoramas
  cells = np.empty((len(ids), 1), object)
  cells[:, 0] = ids
  assert lists.read(change(panoIds=cells)).panoramas == ids
  with pytest.raises(ValueError, match=r'panoIds is .* expected a char array'):
    lists.read(change(panoIds=np.arange(38)))


@pytest.mark.parametrize('data', [b'', b'not a mat file', b'\0' * 300])
def test_a_damaged_mat_is_refused(root, data):
  (root / 'ACT_data.mat').write_bytes(data)
  assert 'ACT_data.mat cannot be read as a MATLAB file' in errors(root)


def test_a_cut_mat_is_refused(root):
  path = root / 'ACT_data.mat'
  path.write_bytes(path.read_bytes()[:1500])
  assert 'ACT_data.mat' in errors(root)


def test_missing_pictures_are_named(root):
  path = next((root / 'ANU_data_small/streetview').iterdir())
  path.unlink()
  assert f'1 pairs are left out, these pictures are missing: {path}'.replace(
    f'{root}/', ''
  ) in warnings(root)


def test_a_folder_without_any_listed_picture_is_an_error(root):
  for path in (root / 'ANU_data_test/streetview').iterdir():
    path.rename(path.with_suffix('.png'))
  assert 'test: none of the 15 pairs is there' in errors(root)


def test_panoramas_that_are_cut_already_are_refused(root):
  folder = root / 'ANU_data_small/streetview'
  names = [path.name for path in folder.iterdir()]
  fake_downloads.write(folder, names, (44, 8))
  assert 'width / height should be 2' in errors(root)
  assert 'the middle half is cut out' in errors(root)


def test_other_layouts_are_explained(root, tmp_path):
  (tmp_path / 'lpn/train/satview_polish/0000001').mkdir(parents=True)
  assert 'made by prepare_cvact.py' in errors(tmp_path / 'lpn')
  (root / 'ANU_data_small').rename(tmp_path / 'plain')
  assert 'must be in a folder ANU_data_small/' in errors(tmp_path / 'plain')
  assert 'no ANU_data_small/: there will be no train' in warnings(root)


def test_splits_that_share_pairs_are_warned_about(change, root):
  content = lists.read(root / 'ACT_data.mat')
  train = content.splits['train'] + 1
  change(valSet={'valInd': train[:3, None]})
  text = warnings(root)
  assert '3 pairs are in train and in val' in text
  assert '3 pairs of val are not in test' in text
  change(valSet={'valInd': np.repeat(content.splits['val'] + 1, 2)[:, None]})
  assert 'val has these panoramas more than once' in warnings(root)
