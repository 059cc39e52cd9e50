"""A stopped and resumed run equals the uninterrupted one, bit for bit."""

import random
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from cvgl_jax import checkpoint, writer
from tests import tiny_world


def finish(arguments: list[str]) -> str:
  """Runs a command to its end; its log."""
  done = subprocess.run(
    arguments,
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stderr


def interrupt(arguments: list[str], workdir, after_step: int, how: int) -> int:
  """Sends a signal once metrics of `after_step` are on disk; exit code."""
  process = subprocess.Popen(
    arguments,
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(),
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 240
  while process.poll() is None and time.monotonic() < deadline:
    rows = writer.read(workdir) if workdir.exists() else []
    if rows and rows[-1]['step'] >= after_step:
      break
    time.sleep(0.02)
  assert process.poll() is None, 'it ended before it could be stopped'
  process.send_signal(how)
  return process.wait(timeout=120)


def parameters(workdir) -> dict:
  """Every array of the last checkpoint, by path."""
  import orbax.checkpoint as ocp

  step = checkpoint.choose(workdir, 'latest')
  path = workdir.absolute() / 'checkpoints' / str(step) / 'state'
  tree = ocp.PyTreeCheckpointer().restore(path)
  return {
    jax.tree_util.keystr(key): np.asarray(value)
    for key, value in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  finish(tiny_world.train_arguments(workdir))
  return workdir


def assert_equal_runs(found, expected):
  found_arrays, expected_arrays = parameters(found), parameters(expected)
  assert found_arrays.keys() == expected_arrays.keys()
  for name, value in expected_arrays.items():
    np.testing.assert_array_equal(found_arrays[name], value, err_msg=name)
  # The log has every step once, with the same losses.
  rows, wanted = writer.read(found), writer.read(expected)
  losses = lambda rows: {
    row['step']: row['train/loss'] for row in rows if 'train/loss' in row
  }
  assert losses(rows) == losses(wanted)
  assert len(rows) == len(wanted)


@pytest.mark.parametrize('seed', range(2))
def test_kill_9_at_a_random_step_then_resume(tmp_path, uninterrupted, seed):
  workdir = tmp_path / 'run'
  arguments = tiny_world.train_arguments(workdir)
  total = max(row['step'] for row in writer.read(uninterrupted))
  step = random.Random(seed).randint(1, total // 2)
  assert interrupt(arguments, workdir, step, signal.SIGKILL) == -signal.SIGKILL
  finish(arguments)
  assert_equal_runs(workdir, uninterrupted)


def test_sigterm_saves_says_so_and_resumes(tmp_path, uninterrupted):
  workdir = tmp_path / 'run'
  # Without checkpoints between epochs: what is resumed was saved by SIGTERM.
  arguments = tiny_world.train_arguments(workdir)
  total = max(row['step'] for row in writer.read(uninterrupted))
  step = random.Random(7).randint(1, total // 2)
  assert interrupt(arguments, workdir, step, signal.SIGTERM) == 143
  saved = checkpoint.choose(workdir, 'latest')
  assert saved >= step
  log = finish(arguments)
  assert f'resumed at step {saved}' in log
  assert_equal_runs(workdir, uninterrupted)


def test_a_finished_run_says_that_there_is_nothing_to_do(uninterrupted):
  log = finish(tiny_world.train_arguments(uninterrupted))
  assert 'nothing to do' in log


def test_resuming_with_another_config_lists_what_changed(uninterrupted):
  arguments = tiny_world.train_arguments(uninterrupted, optim__lr=0.5)
  done = subprocess.run(
    arguments,
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert re.search(r'optim\.lr: \S+ -> 0\.5', done.stderr)
  assert 'Traceback' not in done.stderr
