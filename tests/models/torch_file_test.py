"""Reading torch files: right arrays, nothing executed, faults named."""

import json
import pickle
import re
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from cvgl_jax.models import torch_file

KINDS = {
  np.dtype('f8'): 'DoubleStorage',
  np.dtype('f4'): 'FloatStorage',
  np.dtype('f2'): 'HalfStorage',
  np.dtype('i8'): 'LongStorage',
  np.dtype('u1'): 'ByteStorage',
  np.dtype('?'): 'BoolStorage',
}


class Global:
  """A name that the pickle imports."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """A call that the pickle makes."""

  def __init__(self, module, name, *args):
    self.function, self.args = Global(module, name), args


class Tensor:
  """A view of a stored array."""

  def __init__(self, array, *, size=None, stride=None, offset=0, kind=None):
    self.array, self.offset = np.asarray(array, order='C'), offset
    self.size = array.shape if size is None else size
    if stride is None:
      stride = [s // self.array.itemsize for s in self.array.strides]
    self.stride = tuple(stride)
    self.kind = kind or KINDS[array.dtype]


class Number:
  """A NumPy float as a version of NumPy pickles it."""

  def __init__(self, module, value):
    raw = pickle.dumps(np.float64(value), protocol=2)[2:-1]
    own = np.float64(0).__reduce__()[0].__module__
    self.raw = raw.replace(own.encode(), module.encode())


class StateDict(dict):
  """Written as an OrderedDict with torch's `_metadata` attribute."""


def dump(value, storages):
  """Pickle opcodes of a value, protocol 2, as torch.save writes them."""
  match value:
    case Tensor():
      storages.append(value.array)
      key, numel = str(len(storages) - 1), value.array.size
      kind = Global('torch', value.kind)
      pid = dump(('storage', kind, key, 'cpu', numel), storages)
      args = [value.offset, tuple(value.size), value.stride, False, StateDict()]
      return (
        dump(Global('torch._utils', '_rebuild_tensor_v2'), storages)
        + b'('
        + pid
        + b'Q'
        + b''.join(dump(a, storages) for a in args)
        + b'tR'
      )
    case Number():
      return value.raw
    case Call():
      return (
        dump(value.function, storages)
        + dump(tuple(value.args), storages)
        + b'R'
      )
    case Global():
      return f'c{value.module}\n{value.name}\n'.encode()
    case dict():
      items = b''.join(
        dump(k, storages) + dump(v, storages) for k, v in value.items()
      )
      if not isinstance(value, StateDict):
        return b'}(' + items + b'u'
      made = dump(Global('collections', 'OrderedDict'), storages) + b')R'
      state = dump({'_metadata': {'version': 1}}, storages)
      return made + b'(' + items + b'u' + state + b'b'
    case bool():
      return b'\x88' if value else b'\x89'
    case int():
      return b'J' + struct.pack('<i', value)
    case float():
      return b'G' + struct.pack('>d', value)
    case str():
      raw = value.encode()
      return b'X' + struct.pack('<I', len(raw)) + raw
    case tuple():
      return b'(' + b''.join(dump(v, storages) for v in value) + b't'
  raise TypeError(type(value))


def write(path, value, *, compression=zipfile.ZIP_STORED, extra=()):
  """Writes what torch.save would."""
  storages = []
  raw = b'\x80\x02' + dump(value, storages) + b'.'
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('net/data.pkl', raw)
    archive.writestr('net/byteorder', 'little')
    for i, array in enumerate(storages):
      archive.writestr(f'net/data/{i}', array.tobytes())
    archive.writestr('net/version', '3\n')
    for name in extra:
      archive.writestr(f'net/{name}', b'')
  return str(path)


@pytest.mark.parametrize('dtype', KINDS, ids=str)
def test_every_type_is_read_as_written(tmp_path, dtype):
  array = np.arange(6).reshape(2, 3).astype(dtype)
  path = write(tmp_path / 'a.pth', StateDict({'w': Tensor(array)}))
  read = torch_file.read(path)['w']
  assert read.dtype == dtype
  np.testing.assert_array_equal(read, array)


def test_bfloat16_is_widened_exactly(tmp_path):
  values = np.array([1.5, -2.0, 3.140625, 0.0], np.float32)
  high = (values.view(np.uint32) >> 16).astype(np.uint16)
  tensor = Tensor(high, kind='BFloat16Storage')
  path = write(tmp_path / 'a.pth', {'w': tensor})
  np.testing.assert_array_equal(torch_file.read(path)['w'], values)


def test_strided_views_of_a_storage_are_read(tmp_path):
  base = np.arange(24, dtype=np.float32)
  views = {
    'transposed': Tensor(base, size=(4, 6), stride=(1, 4)),
    'offset': Tensor(base, size=(3,), stride=(2,), offset=5),
    'expanded': Tensor(base, size=(2, 4), stride=(0, 1)),
    'scalar': Tensor(base, size=(), stride=(), offset=7),
    'empty': Tensor(base, size=(0, 3), stride=(3, 1)),
  }
  read = torch_file.read(write(tmp_path / 'a.pth', views))
  np.testing.assert_array_equal(read['transposed'], base.reshape(6, 4).T)
  np.testing.assert_array_equal(read['offset'], [5, 7, 9])
  np.testing.assert_array_equal(read['expanded'], [base[:4]] * 2)
  assert read['scalar'] == 7 and read['scalar'].shape == ()
  assert read['empty'].shape == (0, 3)


def test_parameters_nested_dicts_and_data_parallel_names_are_understood(
  tmp_path,
):
  weight = Tensor(np.ones((2, 2), np.float32))
  parameter = Call(
    'torch._utils', '_rebuild_parameter', weight, True, StateDict()
  )
  checkpoint = {
    'epoch': 3,
    'loss': 0.5,
    'state_dict': StateDict({'module.fc.weight': parameter}),
  }
  path = write(tmp_path / 'a.pth', checkpoint)
  assert list(torch_file.read(path)) == ['fc.weight']
  with pytest.raises(ValueError, match=r"no state dict 'ema'; it has epoch"):
    torch_file.read(path, key='ema')


@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('os', 'system'),
    ('posix', 'system'),
    ('builtins', 'eval'),
    ('builtins', 'getattr'),
    ('torch', 'load'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('collections', 'Counter'),
  ],
)
def test_other_globals_are_refused_by_name(tmp_path, module, name):
  path = write(tmp_path / 'a.pth', {'w': Call(module, name, 'x')})
  with pytest.raises(ValueError, match=rf'a\.pth.*{re.escape(module)}\.{name}'):
    torch_file.read(path)


def test_a_malicious_pickle_is_not_executed(tmp_path):
  witness = tmp_path / 'executed'
  payload = Call('os', 'system', f'touch {witness}')
  tensor = Tensor(np.ones(2, np.float32))
  path = write(tmp_path / 'a.pth', {'w': tensor, 'x': payload})
  with pytest.raises(ValueError, match='nothing in the file was executed'):
    torch_file.read(path)
  assert not witness.exists()


def test_the_test_payload_would_be_executed_by_plain_pickle(tmp_path):
  import pickle

  witness = tmp_path / 'executed'
  raw = b'\x80\x02' + dump(Call('os', 'system', f'touch {witness}'), []) + b'.'
  pickle.loads(raw)
  assert witness.exists()


def test_attributes_set_by_one_file_do_not_reach_the_next(tmp_path):
  storages = []
  target = dump(Global('torch._utils', '_rebuild_tensor_v2'), storages)
  state = dump({'__defaults__': (1,), '__name__': 'owned'}, storages)
  good = dump({'w': Tensor(np.ones(2, np.float32))}, storages)
  raw = b'\x80\x02' + target + state + b'b0' + good + b'.'
  path = tmp_path / 'a.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('net/data.pkl', raw)
    archive.writestr('net/data/0', np.ones(2, np.float32).tobytes())
  torch_file.read(str(path))
  array = np.arange(4, dtype=np.float32)
  again = write(tmp_path / 'b.pth', {'w': Tensor(array)})
  np.testing.assert_array_equal(torch_file.read(again)['w'], array)


@pytest.mark.parametrize(
  ('size', 'stride', 'offset'),
  [((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (1, 9), 0), ((2,), (-1,), 3)],
)
def test_tensors_outside_their_storage_are_refused(
  tmp_path, size, stride, offset
):
  tensor = Tensor(
    np.ones(4, np.float32), size=size, stride=stride, offset=offset
  )
  path = write(tmp_path / 'a.pth', {'w': tensor})
  with pytest.raises(ValueError, match='a tensor of size'):
    torch_file.read(path)


def test_expansion_bombs_are_refused(tmp_path):
  tensor = Tensor(np.ones(4, np.float32), size=(10**9, 4), stride=(0, 1))
  path = write(tmp_path / 'a.pth', {'w': tensor})
  with pytest.raises(ValueError, match='a tensor of size'):
    torch_file.read(path)


def test_compressed_tensors_are_refused(tmp_path):
  tensor = Tensor(np.zeros(1000, np.float32))
  path = write(
    tmp_path / 'a.pth', {'w': tensor}, compression=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ValueError, match='compressed'):
    torch_file.read(path)


@pytest.mark.parametrize('kept', [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated_files_are_named(tmp_path, suffix, kept):
  path = tmp_path / f'cut{suffix}'
  array = np.arange(2000, dtype=np.float32)
  if suffix == '.pth':
    write(path, {'w': Tensor(array)})
  else:
    safetensors.numpy.save_file({'w': array}, path)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(kept * len(whole))])
  with pytest.raises(ValueError, match=r'cut\.(pth|safetensors): truncated'):
    torch_file.read(str(path))


def test_a_damaged_byte_is_noticed(tmp_path):
  path = tmp_path / 'a.pth'
  write(path, {'w': Tensor(np.arange(2000, dtype=np.float32))})
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 0xFF
  path.write_bytes(bytes(raw))
  with pytest.raises(ValueError, match=r'a\.pth: truncated or damaged'):
    torch_file.read(str(path))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (torch_file.LEGACY_MAGIC + b'rest', r'before 1\.6.*torch\.save'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'<!DOCTYPE html><html></html>', 'web page'),
    (b'', 'empty'),
    (b'something else', 'not a PyTorch file'),
  ],
)
def test_other_kinds_of_files_are_recognised(tmp_path, content, message):
  path = tmp_path / 'a.pth'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    torch_file.read(str(path))


def test_torchscript_and_other_archives_are_recognised(tmp_path):
  tensor = Tensor(np.ones(2, np.float32))
  script = write(tmp_path / 'a.pt', {'w': tensor}, extra=['constants.pkl'])
  with pytest.raises(ValueError, match='TorchScript'):
    torch_file.read(script)
  other = tmp_path / 'b.pt'
  with zipfile.ZipFile(other, 'w') as archive:
    archive.writestr('readme.txt', 'no weights')
  with pytest.raises(ValueError, match=r'not one of torch\.save'):
    torch_file.read(str(other))


@pytest.mark.parametrize(
  'content', [{'epoch': 3}, {'w': Tensor(np.ones(2, np.float32)), 'lr': 0.1}]
)
def test_what_is_not_a_state_dict_is_named(tmp_path, content):
  path = write(tmp_path / 'a.pth', content)
  with pytest.raises(ValueError, match=r'state dict.*(epoch|lr)'):
    torch_file.read(path)


def test_safetensors_are_read_as_the_package_writes_them(tmp_path):
  arrays = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3),
    'b': np.array(3, np.int64),
    'c': np.array([True, False]),
    'd': np.ones((2, 2), np.float16),
  }
  path = str(tmp_path / 'a.safetensors')
  safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  read = torch_file.read(path)
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_safetensors_in_bfloat16_are_widened(tmp_path):
  header = {'w': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}
  raw = json.dumps(header).encode()
  high = np.array([1.5, -2], np.float32).view(np.uint32) >> 16
  path = tmp_path / 'a.safetensors'
  path.write_bytes(
    struct.pack('<Q', len(raw)) + raw + high.astype(np.uint16).tobytes()
  )
  np.testing.assert_array_equal(torch_file.read(str(path))['w'], [1.5, -2])


def test_torch_files_round_trip(tmp_path):
  torch = pytest.importorskip('torch')
  net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  state = {'state_dict': net.state_dict(), 'epoch': 1}
  torch.save(state, tmp_path / 'a.pth')
  read = torch_file.read(str(tmp_path / 'a.pth'))
  for name, value in net.state_dict().items():
    np.testing.assert_array_equal(read[name], value.numpy())
  old = str(tmp_path / 'old.pth')
  torch.save(net.state_dict(), old, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match=r'before 1\.6'):
    torch_file.read(old)


def test_fetch_explains_missing_files_and_bad_ids(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    torch_file.fetch(str(tmp_path / 'none.pth'))
  with pytest.raises(ValueError, match='hf:owner/repository/file'):
    torch_file.fetch('hf:resnet50')


def test_fetch_explains_how_to_work_offline(monkeypatch):
  def download(repository, file):
    raise ConnectionError(f'cannot reach {repository} for {file}')

  hub = types.SimpleNamespace(hf_hub_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  with pytest.raises(
    ValueError, match=r'cannot reach a/b for c/d\.pth.*Without'
  ):
    torch_file.fetch('hf:a/b/c/d.pth')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match='pip install huggingface_hub'):
    torch_file.fetch('hf:a/b/c/d.pth')


def test_a_numpy_number_beside_the_network_does_no_harm(tmp_path):
  """FRGeo-Code keeps its best recall as a NumPy float beside `state_dict`."""
  weight = np.arange(6, dtype=np.float32).reshape(2, 3)
  for module in torch_file.NUMPY_SCALARS:
    checkpoint = {
      'epoch': 50,
      'state_dict': StateDict({'module.query_net.w': Tensor(weight)}),
      'best_acc1': Number(module, 97.06),
    }
    path = write(tmp_path / 'model_best.pth.tar', checkpoint)
    state = torch_file.read(path)
    assert list(state) == ['query_net.w']
    np.testing.assert_array_equal(state['query_net.w'], weight)
