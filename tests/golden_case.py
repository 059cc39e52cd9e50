"""One golden file: numbers recorded from the published code."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

DEFAULT = pathlib.Path(__file__).parent / 'golden'


class Case:
  """Arrays of one `.npz` below `<golden-dir>/<system>/`.

  Keys are `in/...` (arguments), `param/...` (torch state dict names and
  layouts) and `out/...` (what the published code returned).
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.stem = path.stem
    with np.load(path, allow_pickle=False) as file:
      self._arrays = {key: file[key] for key in file.files}

  def __getitem__(self, key: str) -> np.ndarray:
    if key not in self._arrays:
      raise KeyError(f'{self.path.name} has no {key!r}; it has {self.keys()}')
    return self._arrays[key]

  def __contains__(self, key: str) -> bool:
    return key in self._arrays

  def keys(self) -> list[str]:
    return sorted(self._arrays)

  def scalar(self, key: str):
    """The Python number stored as an array of one element."""
    return self[key].reshape(-1)[0].item()

  def prefix(self, prefix: str) -> dict[str, np.ndarray]:
    """Entries whose key starts with `prefix`, without it."""
    return {
      key.removeprefix(prefix): value
      for key, value in self._arrays.items()
      if key.startswith(prefix)
    }

  def names(self, stem: str | None = None) -> list[tuple[str, list[int]]]:
    """State dict entries (name, shape) of `<stem>.names.json`.

    A file of the case's own name goes first; a folder that has none falls back
    on the delivered ones.
    """
    wanted = f'{stem or self.stem}.names.json'
    own = self.path.with_name(f'{self.stem}.names.json')
    shared = DEFAULT / self.path.parent.name
    choices = (
      own,
      self.path.with_name(wanted),
      shared / own.name,
      shared / wanted,
    )
    path = next((c for c in choices if c.exists()), None)
    if path is None:
      raise FileNotFoundError(f'{self.path.name}: none of {choices}')
    return [(name, shape) for name, shape in json.loads(path.read_text())]


def find_check(checks: dict, stem: str):
  """The check of the longest prefix of `stem`, or None."""
  prefixes: Iterable[str] = (p for p in checks if stem.startswith(p))
  longest = max(prefixes, key=len, default=None)
  return checks[longest] if longest is not None else None
