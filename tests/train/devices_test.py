"""The same run on one device, on eight, sharded, and in two processes.

Only three steps of SGD are compared: the order of sums differs between device
counts, and training amplifies rounding (Adam at once: it turns the rounding of
a zero gradient into a full step).

How near they must be: parameters by the error relative to the length of the
update, |p - p'| / |p - p_0|, over all parameters together. Relative to each
number alone would be no criterion: the bias before a batch norm has gradient
zero, so that it holds nothing but rounding. In float64 the same step agrees to
1e-13 (`step_test.py`), so what is left here is rounding and nothing else.
"""

import pathlib
import subprocess

import numpy as np
import pytest

from cvgl_jax import writer
from tests import tiny_world

# One epoch of three steps; the checkpoint after it holds the parameters.
OPTIONS = {
  'optim.name': 'sgd',
  'optim.warmup_epochs': 0.0,
  'train.batch_size': 16,
  'train.epochs': 1,
  'train.eval_every_epochs': 0,
  'train.save_every_steps': 0,
}
RTOL = 1e-5


def parameters(workdir: pathlib.Path) -> np.ndarray:
  """All parameters after the last step in one row, float64."""
  arrays = tiny_world.saved_arrays(workdir)
  rows = [
    arrays[name].ravel()
    for name in sorted(arrays)
    if name.startswith('params/')
  ]
  return np.concatenate(rows).astype(np.float64)


def losses(workdir: pathlib.Path) -> np.ndarray:
  rows = [row for row in writer.read(workdir) if 'train/loss' in row]
  assert len(rows) == 3
  return np.array([[row['train/loss'], row['train/grad_norm']] for row in rows])


def assert_same_training(workdir, reference, start):
  np.testing.assert_allclose(losses(workdir), losses(reference), rtol=RTOL)
  expected = parameters(reference)
  moved = np.linalg.norm(expected - start)
  assert moved > 1e-3 * np.linalg.norm(start)  # there is something to compare
  error = np.linalg.norm(parameters(workdir) - expected) / moved
  assert error < RTOL


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """The parameters before the first step: those of a learning rate of zero."""
  workdir = tmp_path_factory.mktemp('devices') / 'start'
  tiny_world.train(workdir, **OPTIONS | {'optim.lr': 0.0})
  return parameters(workdir)


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('devices') / 'one'
  subprocess.run(
    tiny_world.train_arguments(workdir, **OPTIONS),
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(1),
    check=True,
  )
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [False, True])
def test_eight_devices_equal_one(tmp_path, one_device, start, fsdp):
  options = OPTIONS | {'train.fsdp': fsdp, 'train.fsdp_min_size': 64}
  tiny_world.train(tmp_path, **options)  # on the eight of this process
  assert_same_training(tmp_path, one_device, start)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, one_device, start):
  options = OPTIONS | {'train.eval_every_epochs': 1}
  arguments = tiny_world.train_arguments(tmp_path, **options)
  processes = tiny_world.several_processes(arguments, devices=4)
  logs = [process.communicate(timeout=300)[1] for process in processes]
  for process, log in zip(processes, logs, strict=True):
    assert process.returncode == 0, log[-3000:]
  assert_same_training(tmp_path, one_device, start)
  assert (tmp_path / 'eval' / 'drone_to_satellite.json').exists()
  # One of them speaks.
  assert logs[0].count('pictures/s') == 3
  assert 'pictures/s' not in logs[1]
