"""Runs every golden file of every implemented system (design, "Golden files").

`pytest tests -m golden --golden-dir=DIR` runs the same checks on other files of
the same kinds. A file whose prefix no check knows fails; a system without
checks is reported as skipped.
"""

import importlib
import pathlib
import pkgutil

import pytest

from tests import golden_case, golden_checks


def implemented_systems() -> dict[str, dict]:
  """System name -> its checks by file-name prefix."""
  systems = {}
  for package in pkgutil.iter_modules(golden_checks.__path__):
    folder = importlib.import_module(f'{golden_checks.__name__}.{package.name}')
    checks = {}
    for area in pkgutil.iter_modules(folder.__path__):
      module = importlib.import_module(f'{folder.__name__}.{area.name}')
      repeated = set(checks) & set(module.CHECKS)
      assert not repeated, f'two checks for {sorted(repeated)}'
      checks |= module.CHECKS
    systems[package.name] = checks
  return systems


def pytest_generate_tests(metafunc):
  if 'golden_file' not in metafunc.fixturenames:
    return
  root = pathlib.Path(metafunc.config.getoption('--golden-dir'))
  files = sorted(root.glob('*/*.npz'))
  metafunc.parametrize(
    'golden_file', files, ids=[f'{f.parent.name}/{f.stem}' for f in files]
  )


@pytest.mark.golden
def test_golden_file(golden_file, record_property):
  system = golden_file.parent.name
  record_property('golden_system', system)
  systems = implemented_systems()
  if system not in systems:
    pytest.skip(f'system {system} is not implemented yet')
  check = golden_case.find_check(systems[system], golden_file.stem)
  if check is None:
    pytest.fail(
      f'no check knows {system}/{golden_file.name}; '
      f'prefixes: {sorted(systems[system])}'
    )
  check(golden_case.Case(golden_file))


@pytest.mark.golden
def test_the_golden_folder_has_files(golden_dir):
  assert list(golden_dir.glob('*/*.npz')), f'no golden files in {golden_dir}'
