"""The same run on one device, eight devices, sharded, and in two processes.

Only the first steps are compared: rounding differs between device counts, and
training amplifies it.
"""

import socket
import subprocess

import numpy as np
import pytest

from cvgl_jax import writer
from tests import tiny_world

# Plain SGD: Adam turns rounding of zero gradients into full steps.
OPTIONS = {
  'optim.name': 'sgd',
  'optim.lr': 1e-4,
  # A gentle loss: a sharp one on random weights amplifies rounding at once.
  'method.temperature': 1.0,
  'method.pool': 'avg',
  'train.epochs': 1,
  'train.eval_every_epochs': 0,
  'train.batch_size': 16,
  'train.save_every_steps': 0,
}


def losses(workdir) -> np.ndarray:
  """Losses and gradient norms of the first three steps."""
  rows = [row for row in writer.read(workdir) if 'train/loss' in row][:3]
  return np.array([[r['train/loss'], r['train/grad_norm']] for r in rows])


def start(arguments, devices):
  return subprocess.Popen(
    arguments,
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(devices),
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, log = process.communicate(timeout=300)
  assert process.returncode == 0, log[-3000:]


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('devices') / 'one'
  finish(start(tiny_world.train_arguments(workdir, **OPTIONS), 1))
  return losses(workdir)


@pytest.mark.parametrize('fsdp', [False, True])
def test_eight_devices_equal_one(tmp_path, one_device, fsdp):
  options = OPTIONS | {'train.fsdp': fsdp, 'train.fsdp_min_size': 64}
  finish(start(tiny_world.train_arguments(tmp_path, **options), 8))
  np.testing.assert_allclose(losses(tmp_path), one_device, rtol=2e-4)


def test_two_processes_equal_one(tmp_path, one_device):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  arguments = tiny_world.train_arguments(
    tmp_path, **OPTIONS | {'train.eval_every_epochs': 1}
  )
  processes = [
    start(
      [
        *arguments,
        f'--coordinator=localhost:{port}',
        '--num_processes=2',
        f'--process_id={i}',
      ],
      4,
    )
    for i in range(2)
  ]
  for process in processes:
    finish(process)
  np.testing.assert_allclose(losses(tmp_path), one_device, rtol=2e-4)
  assert (tmp_path / 'eval' / 'drone_to_satellite.json').exists()
