import pickle

import h5py
import numpy as np
import pytest
import scipy.io

from cvgl_jax.retrieval.files import array_files

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
NAMES = ['a/0001.jpg', 'a/0002.jpeg', 'b/0003.png', 'c.jpg']


def npy(folder):
  np.save(folder / 'x.npy', ROWS)
  return folder / 'x.npy'


def npz(folder):
  np.savez(folder / 'x.npz', query_f=ROWS, query_path=np.array(NAMES))
  return folder / 'x.npz'


def mat(folder):
  values = {'query_f': ROWS, 'query_path': NAMES}
  scipy.io.savemat(folder / 'x.mat', values)
  return folder / 'x.mat'


def hdf5(folder):
  with h5py.File(folder / 'x.hdf5', 'w') as file:
    file['query_f'] = ROWS
    file['query_path'] = NAMES
    file.create_group('a_group')
  return folder / 'x.hdf5'


def matlab(folder):
  """As MATLAB saves with -v7.3: HDF5, column by column, text as numbers."""
  path = folder / 'x73.mat'
  with h5py.File(path, 'w', userblock_size=512) as file:
    file['query_f'] = ROWS.T
    file['query_f'].attrs['MATLAB_class'] = np.bytes_('single')
    width = max(map(len, NAMES))
    codes = [[ord(c) for c in name.ljust(width)] for name in NAMES]
    file['query_path'] = np.array(codes, np.uint16).T
    file['query_path'].attrs['MATLAB_class'] = np.bytes_('char')
    references = []
    for i, name in enumerate(NAMES):
      cell = file.create_dataset(
        f'#refs#/{i}', data=np.array([[ord(c)] for c in name], np.uint16)
      )
      cell.attrs['MATLAB_class'] = np.bytes_('char')
      references.append(cell.ref)
    cells = file.create_dataset('cells', (4, 1), dtype=h5py.ref_dtype)
    cells[:, 0] = references
    cells.attrs['MATLAB_class'] = np.bytes_('cell')
  header = b'MATLAB 7.3 MAT-file'.ljust(512, b' ')
  with path.open('r+b') as file:
    file.write(header)
  return path


@pytest.mark.parametrize('make', [npz, mat, hdf5, matlab])
def test_arrays_and_text_come_back_by_key(tmp_path, make):
  file = array_files.ArrayFile(make(tmp_path))
  assert set(file.keys) >= {'query_f', 'query_path'}
  assert 'a_group' not in file.keys
  np.testing.assert_array_equal(file.array('query_f'), ROWS)
  assert [name.strip() for name in file.array('query_path')] == NAMES


def test_cells_of_matlab_are_text(tmp_path):
  cells = array_files.ArrayFile(matlab(tmp_path)).array('cells')
  assert cells.shape == (1, 4)
  assert [cell[0] for cell in cells[0]] == NAMES


@pytest.mark.parametrize(
  ('make', 'key'), [(npy, ''), (hdf5, 'query_f'), (matlab, 'query_f')]
)
def test_features_are_mapped_not_loaded(tmp_path, make, key):
  array = array_files.ArrayFile(make(tmp_path)).array(key)
  assert isinstance(array, np.memmap)
  np.testing.assert_array_equal(array, ROWS)


def test_data_in_chunks_are_read(tmp_path):
  with h5py.File(tmp_path / 'x.h5', 'w') as file:
    file.create_dataset('f', data=ROWS, chunks=(2, 3), compression='gzip')
  array = array_files.ArrayFile(tmp_path / 'x.h5').array('f')
  np.testing.assert_array_equal(array, ROWS)


@pytest.mark.parametrize('make', [npy, npz, mat, hdf5, matlab])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.95])
def test_a_cut_file_is_named(tmp_path, make, share):
  path = make(tmp_path)
  data = path.read_bytes()
  # Metadata of HDF5 stand behind the data, so that any cut shows.
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match=f'{path.name}.*cannot be read'):
    file = array_files.ArrayFile(path)
    for key in file.keys:
      file.array(key)


@pytest.mark.parametrize('make', [npy, npz, mat, hdf5])
def test_a_file_of_another_kind_is_named(tmp_path, make):
  path = make(tmp_path)
  path.write_bytes(b'<html>404 not found</html>' * 30)
  with pytest.raises(ValueError, match=rf'{path.name}.*not what its name says'):
    array_files.ArrayFile(path)


class Trap:
  sprung = False

  def __reduce__(self):
    return (setattr, (Trap, 'sprung', True))


@pytest.mark.parametrize('suffix', ['npy', 'npz', 'pickle_as_npy'])
def test_pickled_objects_are_refused_and_not_executed(tmp_path, suffix):
  objects = np.array([Trap()], object)
  path = tmp_path / f'x.{suffix[-3:]}'
  if suffix == 'npz':
    np.savez(path, query_f=objects)
  elif suffix == 'npy':
    np.save(path, objects)
  else:
    path.write_bytes(pickle.dumps(objects))
  with pytest.raises(ValueError, match=r'x\.np.*pickled Python objects'):
    file = array_files.ArrayFile(path)
    file.array(file.keys[0])
  assert not Trap.sprung


def test_an_unknown_kind_lists_those_that_are_known(tmp_path):
  (tmp_path / 'x.pth').write_bytes(b'')
  with pytest.raises(ValueError, match=r'x\.pth.*\.npy.*numpy\.save'):
    array_files.ArrayFile(tmp_path / 'x.pth')
  with pytest.raises(ValueError, match=r'none\.npy: no such file'):
    array_files.ArrayFile(tmp_path / 'none.npy')
