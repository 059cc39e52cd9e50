"""A killed or stopped run, resumed, equals the uninterrupted one, bit for bit.

Whole processes, as a user runs them, interrupted at exact points (`interrupt`).
`loop_test.py` does the same in this process for more kinds of runs.
"""

import pathlib
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from cvgl_jax import writer
from tests import tiny_world

APPEND = "metrics.jsonl', 'a'"  # as the arguments of 'open' show it
STEPS = 24
OPTIONS = {'train.epochs': 4}  # evaluations at steps 12 and 24
# Then nothing but the signal saves before the end.
NO_OTHER_SAVE = {
  'train.save_every_steps': 0,
  'train.save_every_epochs': 0,
  'train.eval_every_epochs': 0,
}


def run(arguments: list[str]) -> subprocess.CompletedProcess:
  return subprocess.run(
    arguments,
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


def finish(arguments: list[str]) -> str:
  """Runs a command to its end; its log."""
  done = run(arguments)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stderr


def interrupt(arguments: list[str], number: int, *point: object) -> int:
  """Runs a command that gets a signal at (event, text, count); exit code."""
  python, *command = arguments
  trap = [python, '-m', 'tests.train.interrupt', int(number), *point, *command]
  done = run([str(word) for word in trap])
  assert done.returncode in (-signal.SIGKILL, 143), done.stderr[-3000:]
  return done.returncode


def rows_of(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The log but for the speed, which no two runs share."""
  return [
    {name: x for name, x in row.items() if name != 'train/pictures_per_s'}
    for row in writer.read(workdir)
  ]


def assert_equal_runs(found: pathlib.Path, expected: pathlib.Path):
  """The same arrays in the last checkpoint, the same numbers in the log."""
  arrays = tiny_world.saved_arrays(found)
  wanted = tiny_world.saved_arrays(expected)
  assert arrays.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(arrays[name], value, err_msg=name)
  assert rows_of(found) == rows_of(expected)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  finish(tiny_world.train_arguments(workdir, **OPTIONS))
  assert rows_of(workdir)[-1]['step'] == STEPS
  return workdir


@pytest.mark.parametrize(
  'point',
  [
    ('open', APPEND, random.Random(0).randint(4, STEPS)),
    ('open', APPEND, 2),
    ('os.rename', '/6.orbax-checkpoint-tmp', 1),
    ('open', '.satellite_to_drone.json', 1),
  ],
  ids=['random', 'before_the_first_save', 'during_a_save', 'in_an_evaluation'],
)
def test_killed_by_kill_9_a_run_resumes(
  tmp_path, uninterrupted, request, point
):
  workdir = tmp_path / 'run'
  arguments = tiny_world.train_arguments(workdir, **OPTIONS)
  assert interrupt(arguments, signal.SIGKILL, *point) == -signal.SIGKILL
  # The point was what its name says.
  case = request.node.callspec.id
  names = {path.name for path in (workdir / 'checkpoints').iterdir()}
  complete = sorted(int(name) for name in names if name.isdigit())
  if case == 'before_the_first_save':
    assert complete == [] and len(rows_of(workdir)) == 1
  elif case == 'during_a_save':
    assert complete == [3]
    assert any(name.startswith('6.orbax-checkpoint-tmp') for name in names)
  elif case == 'in_an_evaluation':
    assert (workdir / 'eval' / 'drone_to_satellite.json').exists()
    assert not (workdir / 'eval' / 'satellite_to_drone.json').exists()
    assert 12 not in complete
  log = finish(arguments)
  assert ('resumed at step' in log) == bool(complete)
  assert_equal_runs(workdir, uninterrupted)


def test_sigterm_itself_saves_says_so_and_the_run_resumes(
  tmp_path, uninterrupted
):
  workdir = tmp_path / 'run'
  arguments = tiny_world.train_arguments(workdir, **OPTIONS, **NO_OTHER_SAVE)
  step = random.Random(7).randint(1, STEPS - 2)
  # The signal comes while the row of `step` is written, after the question
  # whether to stop: the run makes one more step.
  assert interrupt(arguments, signal.SIGTERM, 'open', APPEND, step) == 143
  folders = [path.name for path in (workdir / 'checkpoints').iterdir()]
  assert folders == [str(step + 1)]
  assert f'resumed at step {step + 1}' in finish(arguments)
  found, wanted = map(tiny_world.saved_arrays, (workdir, uninterrupted))
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  trained = [row for row in rows_of(uninterrupted) if 'train/loss' in row]
  assert rows_of(workdir) == trained


def test_a_second_sigterm_ends_the_run_at_once():
  code = (
    'import os, signal\n'
    'from cvgl_jax import stop\n'
    'asked = stop.StopSignal()\n'
    'os.kill(os.getpid(), signal.SIGTERM)\n'
    'assert asked.requested(1)\n'
    'os.kill(os.getpid(), signal.SIGTERM)\n'
    'raise SystemExit("still there")'
  )
  done = run([sys.executable, '-c', code])
  assert done.returncode == -signal.SIGTERM, done.stderr


def test_a_finished_run_says_that_there_is_nothing_to_do(uninterrupted):
  before = rows_of(uninterrupted)
  log = finish(tiny_world.train_arguments(uninterrupted, **OPTIONS))
  assert 'nothing to do' in log
  assert rows_of(uninterrupted) == before


def test_resuming_with_another_config_lists_what_changed(uninterrupted):
  arguments = tiny_world.train_arguments(
    uninterrupted, **OPTIONS, **{'optim.lr': 0.5}
  )
  done = run(arguments)
  assert done.returncode == 1
  assert re.search(r'optim\.lr: \S+ -> 0\.5', done.stderr)
  assert 'Traceback' not in done.stderr
