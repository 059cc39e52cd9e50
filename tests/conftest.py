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
  """How many golden files ran, by system, and how close they came to failing."""
  counts, closest = {}, {}
  for outcome in ('passed', 'failed', 'skipped'):
    for report in terminalreporter.getreports(outcome):
      properties = dict(getattr(report, 'user_properties', ()))
      system = properties.get('golden_system')
      if not system or report.when != 'call':
        continue
      row = counts.setdefault(system, {'passed': 0, 'failed': 0, 'skipped': 0})
      row[outcome] += 1
      margin = tuple(properties.get('golden_closest', (0.0, '')))
      closest[system] = max(closest.get(system, margin), margin)
  for system, row in sorted(counts.items()):
    line = f'golden {system}: {row["passed"] + row["failed"]} ran'
    line += ''.join(f', {n} {name}' for name, n in row.items())
    if closest[system][1]:
      part, key = closest[system]
      line += f'; closest to its tolerance: {key} ({part:.0%} of it)'
    terminalreporter.write_line(line)
