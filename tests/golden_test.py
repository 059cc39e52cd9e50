"""Runs every golden file of every implemented system (design, "Golden files").

`pytest tests -m golden --golden-dir=DIR` runs the same checks on other files of
the same kinds. A file whose prefix no check knows fails, and so does one with
arguments or outputs that its check does not use; a system without checks, and
a part that `golden_checks` calls pending, are reported as skipped.
"""

import functools
import importlib
import pathlib
import pkgutil

import pytest

from tests import golden_case, golden_checks

# Starts of the names of files that are slow to check.
SLOW = ('two_view', 'three_view', 'train_tiny', 'net_rmac')


@functools.cache
def systems() -> dict[str, golden_case.System]:
  """What every folder of `golden_checks` knows, by the name of the system."""
  found = {}
  for package in pkgutil.iter_modules(golden_checks.__path__):
    folder = importlib.import_module(f'{golden_checks.__name__}.{package.name}')
    system = found[package.name] = golden_case.System()
    system.add(folder)
    for area in pkgutil.iter_modules(folder.__path__):
      system.add(importlib.import_module(f'{folder.__name__}.{area.name}'))
  return found


def golden_files(root: pathlib.Path) -> list[pathlib.Path]:
  """Every .npz of every system, and the .json files that a check knows."""
  jsons = [
    path
    for path in root.glob('*/*.json')
    if path.parent.name in systems()
    and not path.name.endswith('names.json')
    and callable(systems()[path.parent.name].find(path))
  ]
  return sorted([*root.glob('*/*.npz'), *jsons])


def is_slow(path: pathlib.Path) -> bool:
  """Whole networks in float64, which take a quarter of a minute or more."""
  return path.stem.startswith(SLOW)


def pytest_generate_tests(metafunc):
  if 'golden_file' not in metafunc.fixturenames:
    return
  root = pathlib.Path(metafunc.config.getoption('--golden-dir'))
  files = golden_files(root)
  metafunc.parametrize(
    'golden_file',
    [
      pytest.param(file, marks=[pytest.mark.slow] if is_slow(file) else [])
      for file in files
    ],
    ids=[
      f'{f.parent.name}/{f.stem if f.suffix == ".npz" else f.name}'
      for f in files
    ],
  )


@pytest.mark.golden
def test_golden_file(golden_file, record_property):
  name = golden_file.parent.name
  record_property('golden_system', name)
  if name not in systems():
    pytest.skip(f'system {name} is not implemented yet')
  check = systems()[name].find(golden_file)
  if check is None:
    pytest.fail(
      f'no check knows {name}/{golden_file.name}; '
      f'prefixes: {sorted(systems()[name].checks)}'
    )
  if isinstance(check, str):
    pytest.skip(f'{name}: {check}')
  if golden_file.suffix == '.json':
    check(golden_file)
    return
  case = golden_case.Case(golden_file)
  check(case)
  case.finish()
  part, key = case.closest
  record_property('golden_closest', [part, f'{case.stem} {key}'])


@pytest.mark.golden
def test_the_golden_folder_has_files(golden_dir):
  assert list(golden_dir.glob('*/*.npz')), (
    f'--golden-dir={golden_dir}: expected files <system>/<case>.npz below it'
  )
