"""One run in two processes, of which one is told to go."""

import re
import signal
import subprocess
import time

import pytest

from cvgl_jax import checkpoint, writer
from tests import tiny_world
from tests.train import resume_test

# Many short steps: the notice takes about a second to reach both. Nothing but
# the signal saves before the end.
OPTIONS = resume_test.NO_OTHER_SAVE | {'train.epochs': 30}
STEPS = 30 * 6


def start(workdir):
  return tiny_world.several_processes(
    tiny_world.train_arguments(workdir, **OPTIONS)
  )


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
  """(exit code, log) of all; none is left behind."""
  try:
    logs = [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(p.returncode, log) for p, log in zip(processes, logs, strict=True)]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('processes') / 'whole'
  for code, log in finish(start(workdir)):
    assert code == 0, log[-3000:]
  return workdir


def test_sigterm_to_one_of_two_processes_stops_both_and_they_resume(
  tmp_path, uninterrupted
):
  workdir = tmp_path / 'run'
  processes = start(workdir)
  # Process 0 writes the log; once it has a row, both are in the loop.
  while not writer.read(workdir):
    assert all(process.poll() is None for process in processes)
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  steps = set()
  for code, log in finish(processes):
    assert code == 143, log[-3000:]
    steps.add(int(re.search(r'stopped at step (\d+)', log)[1]))
  (step,) = steps
  assert 1 < step < STEPS
  assert checkpoint.choose(workdir, 'latest') == step
  for code, log in finish(start(workdir)):
    assert code == 0, log[-3000:]
    assert f'resumed at step {step}' in log
  resume_test.assert_equal_runs(workdir, uninterrupted)
