"""Eight virtual CPU devices, strict rank promotion, the golden folder.

Set CVGL_TEST_PLATFORM=gpu to run the suite on an accelerator instead.
"""

import os
import pathlib

import jax

if os.environ.get('CVGL_TEST_PLATFORM', 'cpu') == 'cpu':
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compiled programs are shared between runs and between test processes.
CACHE = pathlib.Path(__file__).parents[1] / '.cache' / 'jax_tests'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

import pytest
from absl import flags

DEFAULT_GOLDEN = pathlib.Path(__file__).parent / 'golden'


def pytest_addoption(parser):
  parser.addoption(
    '--golden-dir',
    default=str(DEFAULT_GOLDEN),
    help='folder with <system>/*.npz of golden numbers (default: tests/golden)',
  )


def pytest_configure(config):
  # Grain reads absl flags; outside app.run nobody has parsed them.
  flags.FLAGS.mark_as_parsed()


@pytest.fixture
def golden_dir(request) -> pathlib.Path:
  """The folder that holds one folder of golden files per system."""
  return pathlib.Path(request.config.getoption('--golden-dir'))


def pytest_terminal_summary(terminalreporter):
  """How many golden files ran, by system."""
  counts = {}
  for outcome in ('passed', 'failed', 'skipped'):
    for report in terminalreporter.getreports(outcome):
      system = dict(getattr(report, 'user_properties', ())).get('golden_system')
      if system and (report.when == 'call' or outcome != 'passed'):
        row = counts.setdefault(
          system, {'passed': 0, 'failed': 0, 'skipped': 0}
        )
        row[outcome] += 1
  for system, row in sorted(counts.items()):
    numbers = ', '.join(f'{n} {name}' for name, n in row.items())
    terminalreporter.write_line(f'golden {system}: {numbers}')
