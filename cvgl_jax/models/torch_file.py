"""Reads `.safetensors` and PyTorch `.pth`/`.pt` files, without torch.

A `.pth` file is a zip archive of a pickle and raw tensor bytes. Unpickling may
execute anything, so only a closed list of globals is honoured here, all of
them replaced by functions of this file that build arrays; any other name is
refused before anything is called. Whatever a file contains, reading it runs no
code of its author.
"""

import collections
import os
import pathlib
import pickle
import re
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

# Storage class of torch -> NumPy type; bfloat16 is widened below.
STORAGES = {
  'DoubleStorage': 'f8',
  'FloatStorage': 'f4',
  'HalfStorage': 'f2',
  'BFloat16Storage': 'bfloat16',
  'LongStorage': 'i8',
  'IntStorage': 'i4',
  'ShortStorage': 'i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}
# Keys under which checkpoints of training runs keep the network.
NESTED = ('state_dict', 'model_state_dict', 'model', 'net', 'network')
# NumPy's single numbers: checkpoints keep their best recall so. Read as None.
NUMPY_SCALARS = ('numpy.core.multiarray', 'numpy._core.multiarray')
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
CONVERT = (
  'convert it where PyTorch is installed: python -c "import torch; '
  "torch.save(torch.load('{name}', map_location='cpu', weights_only=True), "
  "'converted.pth')\""
)


def fetch(path: str) -> str:
  """A local path for a path or a Hugging Face hub id.

  Args:
    path: a file, or 'hf:owner/repository/file' (the file may lie in folders);
      the hub's own cache is used, so a second call works offline.

  Raises:
    ValueError: no such file; a malformed id; the hub cannot be reached or does
      not have the file, with what to do instead.
  """
  if not path.startswith('hf:'):
    if not os.path.isfile(path):
      raise ValueError(
        f'{path}: no such file; give the path of a .safetensors or .pth file, or '
        "'hf:owner/repository/file'"
      )
    return path
  parts = path.removeprefix('hf:').split('/', 2)
  if len(parts) < 3 or not all(parts):
    raise ValueError(
      f'{path}: expected hf:owner/repository/file, such as '
      'hf:timm/resnet50.tv_in1k/model.safetensors'
    )
  repository, file = '/'.join(parts[:2]), parts[2]
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(
      f'{path}: reading from the Hugging Face hub needs the package '
      'huggingface_hub (pip install huggingface_hub); or download the file '
      'yourself and give its path'
    ) from error
  try:
    return huggingface_hub.hf_hub_download(repository, file)
  except Exception as error:  # The hub raises errors of several libraries.
    raise ValueError(
      f'{path}: the Hugging Face hub did not give {file!r} of {repository!r} '
      f'({type(error).__name__}: {str(error).partition(chr(10))[0]}). Without a '
      'network connection, download the file elsewhere and give its path'
    ) from error


def read(path: str, *, key: str = '') -> dict[str, np.ndarray]:
  """The state dict of a file.

  Args:
    path: `.safetensors` (by its extension), else a PyTorch zip file.
    key: which entry of a checkpoint holds the network; '' finds it (the top
      level or one of `NESTED`). 'module.' of DataParallel is removed.

  Returns:
    name -> array, in the file's order. bfloat16 becomes float32, all other
    types stay.

  Raises:
    ValueError: the file is truncated, of another kind, or contains anything
      but tensors, numbers, texts and containers of these.
  """
  if pathlib.Path(path).suffix == '.safetensors':
    state = _read_safetensors(path)
  else:
    state = _state_dict(_read_zip(path), path, key)
  prefix = 'module.'
  if state and all(name.startswith(prefix) for name in state):
    state = {name.removeprefix(prefix): value for name, value in state.items()}
  return state


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  try:
    state = safetensors_numpy.load_file(path)
  except (safetensors.SafetensorError, KeyError) as error:
    with open(path, 'rb') as file:
      hint = _hint(file.read(64))
    raise ValueError(
      f'{path}: truncated or not a safetensors file ({error}){hint}'
    ) from error
  return {
    name: value.astype(np.float32)
    if value.dtype == ml_dtypes.bfloat16
    else value
    for name, value in state.items()
  }


def _read_zip(path: str) -> Any:
  """The object that torch.save wrote, with arrays for tensors."""
  name = os.path.basename(path)
  with open(path, 'rb') as file:
    head = file.read(64)
  if head.startswith(LEGACY_MAGIC[:14]):
    raise ValueError(
      f'{path}: in the format of PyTorch before 1.6, which is not read here; '
      + CONVERT.format(name=name)
    )
  if not head.startswith(b'PK\x03\x04'):
    raise ValueError(f'{path}: not a PyTorch file{_hint(head)}')
  try:
    with zipfile.ZipFile(path) as archive:
      records = archive.namelist()
      pickles = [r for r in records if r.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise ValueError(
          f'{path}: a zip archive, but not one of torch.save (no data.pkl)'
        )
      root = pickles[0].removesuffix('data.pkl')
      if f'{root}constants.pkl' in records:
        raise ValueError(
          f'{path}: a TorchScript program, not a state dict; save '
          'model.state_dict() instead'
        )
      order = '<'
      if f'{root}byteorder' in records:
        order = '>' if archive.read(f'{root}byteorder') == b'big' else '<'
      with archive.open(pickles[0]) as stream:
        return _Unpickler(stream, archive, root, order, path).load()
  except zipfile.BadZipFile as error:
    raise ValueError(
      f'{path}: truncated or damaged ({error}); copy or download it again'
    ) from error
  except _Refused as error:
    raise ValueError(
      f'{path}: refused, because it is more than weights: {error}. Only tensors '
      'and plain containers are read and nothing in the file was executed. Save '
      'the state dict alone (torch.save(model.state_dict(), ...))'
    ) from error
  except (
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    UnicodeDecodeError,
    OverflowError,
    MemoryError,
  ) as error:
    raise ValueError(
      f'{path}: truncated or damaged ({type(error).__name__}: {error}); copy or '
      'download it again'
    ) from error


class _Refused(Exception):
  """The pickle asks for something that is not on the list."""


class _Unpickler(pickle.Unpickler):
  """Builds arrays and containers; refuses every other global by name."""

  def __init__(self, stream, archive, root, order, path):
    super().__init__(stream)
    self._archive, self._root, self._order = archive, root, order
    self._path, self._storages = path, {}

  def find_class(self, module: str, name: str) -> Any:
    # Fresh closures for every request: a pickle may set attributes of what it
    # got, and must not reach anything that outlives it.
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch._utils':
      if name == '_rebuild_tensor_v2':
        return lambda storage, offset, size, stride, *_: _strided(
          storage, offset, size, stride
        )
      if name == '_rebuild_parameter':
        return lambda data, *_: _checked_array(data)
    if module == 'torch' and name in STORAGES:
      return _StorageType(name)
    if (module, name) == ('torch', 'Size'):
      return lambda items=(): tuple(items)
    if name == 'scalar' and module in NUMPY_SCALARS:
      return lambda *_: None
    if (module, name) == ('numpy', 'dtype'):
      return _number_type()
    if (module, name) == ('_codecs', 'encode'):
      return lambda text, *_: text.encode('latin1')
    raise _Refused(f'it names {module}.{name}')

  def persistent_load(self, pid: Any) -> np.ndarray:
    """Bytes of a storage, as a flat array."""
    if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == 'storage'):
      raise _Refused(f'it refers to an object of kind {str(pid)[:80]}')
    _, kind, key, _, count = pid
    if not isinstance(kind, _StorageType):
      raise _Refused(f'it has a storage of type {str(kind)[:80]}')
    if key not in self._storages:
      info = self._archive.getinfo(f'{self._root}data/{key}')
      if info.compress_type != zipfile.ZIP_STORED:
        raise _Refused(
          'its tensors are compressed, which torch.save never does'
        )
      raw = self._archive.read(info)
      self._storages[key] = _array(raw, STORAGES[kind.name], self._order)
    storage = self._storages[key]
    if storage.size < count:
      raise zipfile.BadZipFile(
        f'storage {key} has {storage.size} values of {count}'
      )
    return storage


def _number_type() -> type:
  """A new class that stands for numpy.dtype and keeps nothing."""

  class NumberType:
    def __init__(self, *_):
      pass

    def __setstate__(self, _):
      pass

  return NumberType


class _StorageType(collections.namedtuple('_StorageType', ['name'])):
  """Stands for torch.FloatStorage and its kind."""

  __slots__ = ()


def _array(raw: bytes, kind: str, order: str = '<') -> np.ndarray:
  """Flat array of raw bytes; bfloat16 is widened to float32."""
  if kind == 'bfloat16':
    high = np.frombuffer(raw, f'{order}u2').astype(np.uint32)
    return (high << 16).view(np.float32)
  array = np.frombuffer(raw, np.dtype(kind).newbyteorder(order))
  return array.astype(array.dtype.newbyteorder('='))


def _strided(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
  """A tensor of a storage; never reads outside it."""
  storage = _checked_array(storage)
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or not all(
    isinstance(n, int) and n >= 0 for n in numbers
  ):
    raise _Refused(f'a tensor of size {size} and stride {stride}')
  if 0 in size:
    return np.zeros(size, storage.dtype)
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if last >= storage.size or np.prod(size, dtype=object) > storage.size:
    raise _Refused(f'a tensor of size {size} in a storage of {storage.size}')
  view = np.lib.stride_tricks.as_strided(
    storage[offset:], size, [s * storage.itemsize for s in stride]
  )
  return view.copy()


def _checked_array(data: Any) -> np.ndarray:
  if not isinstance(data, np.ndarray):
    raise _Refused(f'a tensor made of {type(data).__name__}')
  return data


def _state_dict(found: Any, path: str, key: str) -> dict[str, np.ndarray]:
  """The network's entries of a checkpoint."""
  if not isinstance(found, dict):
    raise ValueError(
      f'{path}: holds a {type(found).__name__}, expected a state dict'
    )
  top = {name: value for name, value in dict.items(found)}
  if key:
    if not isinstance(top.get(key), dict):
      raise ValueError(f'{path}: no state dict {key!r}; it has {_names(top)}')
    top = dict(dict.items(top[key]))
  elif not any(isinstance(value, np.ndarray) for value in top.values()):
    keys = [k for k in NESTED if isinstance(top.get(k), dict)]
    if not keys:
      raise ValueError(
        f'{path}: no state dict, at the top or under one of {NESTED}; it has '
        f'{_names(top)}'
      )
    top = dict(dict.items(top[keys[0]]))
  others = [k for k, v in top.items() if not isinstance(v, np.ndarray)]
  tensors = {k: v for k, v in top.items() if isinstance(v, np.ndarray)}
  if others or not all(isinstance(k, str) for k in tensors):
    raise ValueError(
      f'{path}: a state dict holds only named tensors, this one also '
      f'{_names(others)}'
    )
  return tensors


def _names(items: Any) -> str:
  names = [str(item)[:60] for item in items]
  return ', '.join(names[:12]) + (', ...' if len(names) > 12 else '')


def _hint(head: bytes) -> str:
  """What a file that is no checkpoint looks like."""
  if head.startswith(b'version https://git-lfs'):
    return ': a Git LFS pointer; fetch the file itself (git lfs pull)'
  if re.match(rb'\s*<(!doctype|html)', head, re.IGNORECASE):
    return ': a web page; the download was not the file itself'
  if not head:
    return ': the file is empty'
  return ''
