"""One golden file: numbers recorded from the published code.

A check reads arguments and weights from its `Case`, and compares outputs with
`close` or `equal`. What a check does not touch makes it fail (`finish`), so
that no number of an unseen file is silently ignored.
"""

import fnmatch
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

DEFAULT = pathlib.Path(__file__).parent / 'golden'
ARGUMENTS = ('in/', 'param/')


class Case:
  """Arrays of one `.npz` below `<golden-dir>/<system>/`.

  Keys are `in/...` (arguments), `param/...` (torch state dict names and
  layouts) and `out/...` (what the published code returned).

  Attributes:
    path: of the file.
    stem: its name without the ending.
    closest: (part of its tolerance, key) of the comparison with `close` that
      came nearest to failing.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.stem = path.stem
    self.closest = (0.0, '')
    self._touched = set()
    with np.load(path, allow_pickle=False) as file:
      self._arrays = {key: file[key] for key in file.files}

  def __getitem__(self, key: str) -> np.ndarray:
    """The array; read an output only to compare it, since it counts as such."""
    if key not in self._arrays:
      raise KeyError(f'{self.path.name} has no {key!r}; it has {self.keys()}')
    self._touched.add(key)
    return self._arrays[key]

  def __contains__(self, key: str) -> bool:
    return key in self._arrays

  def keys(self, prefix: str = '') -> list[str]:
    """Sorted keys that start with `prefix`, whole; touches none of them."""
    return sorted(key for key in self._arrays if key.startswith(prefix))

  def scalar(self, key: str):
    """The Python number stored as an array of one element; see `decimals`."""
    value = self[key]
    assert value.size == 1, (
      f'{key} has shape {value.shape}, expected one number'
    )
    if value.dtype == np.float32:
      return decimals(value)[0]
    return value.reshape(-1)[0].item()

  def argument(self, name: str, default):
    """The number `in/<name>` if the file stores it, else the README's."""
    key = f'in/{name}'
    return self.scalar(key) if key in self else default

  def prefix(self, prefix: str) -> Mapping[str, np.ndarray]:
    """Entries whose key starts with `prefix`, without it; touched when read."""
    return _Entries(self, prefix)

  def ignore(self, pattern: str, reason: str) -> None:
    """Says that keys are not used, and why; a file may lack them.

    Args:
      pattern: a key, or a pattern of keys such as 'out/A_sym_*'.
      reason: why nothing is lost.
    """
    assert reason, f'{pattern}: say why it is ignored'
    self._touched |= set(fnmatch.filter(self._arrays, pattern))

  def close(
    self, key: str, got, *, rtol: float, scale: float | None = None
  ) -> None:
    """Asserts max |got - stored| <= rtol * max |stored|, as the READMEs measure.

    Args:
      key: of the stored array; a stored scalar has shape [1].
      got: an array of the same shape. Entries that are stored as NaN or
        infinity must be the same.
      rtol: the tolerance; 0 asks for equal numbers.
      scale: instead of max |stored|, where that is rounding noise about zero.
    """
    expected = self[key]
    got = np.asarray(got)
    if got.ndim == 0 and expected.shape == (1,):
      got = got[None]
    assert got.shape == expected.shape, (key, got.shape, expected.shape)
    if expected.size == 0:
      return
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite], err_msg=key)
    got, expected = got[finite], expected[finite]
    if scale is None:
      scale = np.abs(expected).max(initial=0.0)
    error = np.abs(got - expected).max(initial=0.0)
    allowed = rtol * scale
    assert error <= allowed, (
      f'{key}: difference {error:.2e} > {rtol:.0e} * {scale:.3g}'
    )
    if allowed:
      self.closest = max(self.closest, (float(error / allowed), key))

  def equal(self, key: str, got) -> None:
    """Asserts the same shape and exactly the same values."""
    expected = self[key]
    got = np.asarray(got)
    if got.ndim == 0 and expected.shape == (1,):
      got = got[None]
    assert got.shape == expected.shape, (key, got.shape, expected.shape)
    np.testing.assert_array_equal(got, expected, err_msg=key)

  def finish(self) -> None:
    """Asserts that every key was read, compared or ignored with a reason."""
    left = [key for key in self.keys() if key not in self._touched]
    unread = [key for key in left if key.startswith(ARGUMENTS)]
    uncompared = [key for key in left if not key.startswith(ARGUMENTS)]
    assert not left, (
      f'{self.path.name}: the check passed, but never read {unread} and never '
      f'compared {uncompared}; use them or case.ignore(key, reason)'
    )

  def normal(
    self, index: int = 0, *, seed: str = 'in/x_seed', shape=None
  ) -> np.ndarray:
    """A random network input that is not stored, but its seed is (READMEs).

    Args:
      index: which of the seeds, one a view.
      seed: key of the seeds.
      shape: of the array; None takes `in/x_shape`.

    Returns:
      float32, in torch's layout.
    """
    shape = tuple(self['in/x_shape']) if shape is None else shape
    rng = np.random.default_rng(self[seed][index])
    return rng.standard_normal(shape).astype(np.float32)

  def names(self, stem: str | None = None) -> list[tuple[str, list[int]]]:
    """`names` of this file's own network, or of `stem`."""
    return names(self.path, stem or self.stem)


def decimals(values: np.ndarray) -> list[float]:
  """The numbers that someone wrote down, of their float32: 0.3, not 0.30000001.

  The published code was given the former.
  """
  return [float(str(value)) for value in values.reshape(-1)]


def names(path: pathlib.Path, stem: str) -> list[tuple[str, list[int]]]:
  """State dict entries (name, shape) of a network that a golden file is of.

  `<file>.names.json` goes before `<stem>.names.json`; a folder that has neither
  falls back on the delivered ones.
  """
  delivered = DEFAULT / path.parent.name
  choices = [
    folder / f'{name}.names.json'
    for folder in (path.parent, delivered)
    for name in (path.stem, stem)
  ]
  for choice in choices:
    if choice.exists():
      return [(name, shape) for name, shape in json.loads(choice.read_text())]
  raise FileNotFoundError(f'{path.name}: none of {choices}')


class _Entries(Mapping):
  """`Case.prefix`: reading a value touches its key."""

  def __init__(self, case: Case, prefix: str):
    self._case, self._prefix = case, prefix

  def __getitem__(self, name: str) -> np.ndarray:
    return self._case[self._prefix + name]

  def __contains__(self, name: object) -> bool:
    return f'{self._prefix}{name}' in self._case

  def __iter__(self) -> Iterator[str]:
    keys = self._case.keys(self._prefix)
    return (key.removeprefix(self._prefix) for key in keys)

  def __len__(self) -> int:
    return len(self._case.keys(self._prefix))


class System:
  """What `golden_checks/<system>/` knows: checks and pending parts.

  Attributes:
    checks: prefix of the file's name -> function of a `Case`.
    json_checks: prefix -> function of the path of a `.json` file.
    pending: prefix -> why the part is not implemented yet.
  """

  def __init__(self):
    self.checks: dict[str, Callable[[Case], None]] = {}
    self.json_checks: dict[str, Callable[[pathlib.Path], None]] = {}
    self.pending: dict[str, str] = {}

  def add(self, module) -> None:
    """Takes CHECKS, JSON_CHECKS and PENDING of a module; it may lack them."""
    for ours, name in (
      (self.checks, 'CHECKS'),
      (self.json_checks, 'JSON_CHECKS'),
      (self.pending, 'PENDING'),
    ):
      theirs = getattr(module, name, {})
      repeated = set(ours) & set(theirs)
      assert not repeated, f'{module.__name__}: {name} again {sorted(repeated)}'
      ours.update(theirs)
    both = set(self.checks) & set(self.pending)
    assert not both, f'{module.__name__}: both checked and pending {both}'

  def find(self, path: pathlib.Path) -> Callable | str | None:
    """The check of a file, why it is pending, or None: by the longest prefix."""
    known = self.json_checks if path.suffix == '.json' else self.checks
    prefixes = [p for p in (*known, *self.pending) if path.stem.startswith(p)]
    if not prefixes:
      return None
    longest = max(prefixes, key=len)
    return known.get(longest) or self.pending[longest]
