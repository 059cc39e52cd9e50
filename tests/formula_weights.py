"""Weights of big networks by a formula of their names (golden READMEs).

A state dict entry `name` of shape `s` is drawn from the generator that is
seeded with the CRC32 of its name; networks of any size get the same weights
here and in the program that recorded the golden numbers.
"""

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np


def entry(name: str, shape: Sequence[int]) -> np.ndarray:
  """One entry, float32."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  n = rng.standard_normal(tuple(shape))
  if len(shape) == 0:
    value = np.ones(())
  elif len(shape) >= 2:
    value = n / np.sqrt(np.prod(shape[1:]))
  elif name.endswith('running_var'):
    value = 1 + 0.1 * np.abs(n)
  elif name.endswith(('running_mean', 'bias')):
    value = 0.1 * n
  else:
    value = 1 + 0.1 * n
  return value.astype(np.float32)


def state_dict(
  names: Iterable[tuple[str, Sequence[int]]], *, skip: str = ''
) -> dict[str, np.ndarray]:
  """A torch state dict of formula weights.

  Args:
    names: (name, shape) of every entry, as in `<case>.names.json`.
    skip: regular expression of names to leave out (large unused entries).
  """
  return {
    name: entry(name, shape)
    for name, shape in names
    if not (skip and re.fullmatch(skip, name))
  }
