"""One run in two processes, of which one is told to go."""

import pathlib
import re
import signal
import subprocess
import time

import pytest

from cvgl_jax import checkpoint
from tests import tiny_world
from tests.train import resume_test

# Nothing but the signal saves before the end.
OPTIONS = resume_test.NO_OTHER_SAVE | {'train.epochs': 10}
STEPS = 10 * 6


def start(workdir: pathlib.Path) -> list[subprocess.Popen]:
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


def stop(workdir: pathlib.Path, *, signalled: int) -> int:
  """Runs until SIGTERM to one process; the step that all saved."""
  # Replaced where a run is about to begin its loop: the notice, which travels
  # for a second, comes before the first step or a few steps later.
  path = workdir / 'metrics.jsonl'
  version = lambda: path.stat().st_ino if path.exists() else None
  before = version()
  processes = start(workdir)
  while version() == before:
    assert all(process.poll() is None for process in processes)
    time.sleep(0.01)
  processes[signalled].send_signal(signal.SIGTERM)
  steps = set()
  for code, log in finish(processes):
    assert code == 143, log[-3000:]
    steps.add(int(re.search(r'stopped at step (\d+)', log)[1]))
  (step,) = steps
  assert checkpoint.choose(workdir, 'latest') == step
  return step


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_and_they_resume(
  tmp_path, uninterrupted
):
  first = stop(tmp_path, signalled=1)
  second = stop(tmp_path, signalled=0)  # a resumed run stops as well
  assert 1 <= first < second < STEPS
  for code, log in finish(start(tmp_path)):
    assert code == 0, log[-3000:]
  assert f'resumed at step {second}' in log
  resume_test.assert_equal_runs(tmp_path, uninterrupted)
