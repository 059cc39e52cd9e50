"""Runs with more in the state than a student, in two processes and in one.

A teacher stands beside the student, a bank of features beside the parameters;
both are split over the devices of all processes here. What two processes compute
must be what one computes, as near as `devices_test.py` asks, and for its reasons
only a few steps of SGD are compared.
"""

import pathlib
import sys

import jax
import numpy as np
import pytest

from configs import plcd_g2d
from cvgl_jax import experiment, writer
from cvgl_jax import train as train_lib
from tests import tiny_world
from tests.train import devices_test, mined_recipe, mining_test, teacher_test

# Three steps in random order, then three in the order that mining found.
MINED = mining_test.SHARDED | {
  'optim.name': 'sgd',
  'optim.warmup_epochs': 0.0,
  'train.batch_size': 16,
  'train.epochs': 2,
  'train.eval_every_epochs': 0,
  'train.save_every_steps': 0,
  'train.save_every_epochs': 1,
}


def in_one(config, options: dict, workdir: pathlib.Path) -> np.ndarray:
  """Trains in this process, on its eight devices.

  Returns:
    All parameters before the first step in one row, as `parameters`.
  """
  config.update_from_flattened_dict(options)
  train_lib.train(config.to_dict(), str(workdir))
  checked = experiment.check(config.to_dict())
  method = experiment.make_method(checked, num_classes=16)
  variables = jax.jit(lambda: experiment.init_variables(method, checked))()
  return in_a_row(
    {
      jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
      for path, x in jax.tree_util.tree_leaves_with_path(variables)
    }
  )


def in_two(recipe: str, options: dict, workdir: pathlib.Path) -> None:
  """Trains in two processes of two devices each."""
  processes = tiny_world.several_processes(
    [
      *(sys.executable, 'main.py', 'train', f'--config={recipe}'),
      f'--workdir={workdir}',
      f'--compile_cache={tiny_world.ROOT / ".cache" / "jax_tests"}',
      *(f'--config.{key}={value}' for key, value in options.items()),
    ],
    devices=2,
  )
  try:
    logs = [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:  # one may wait for the other in vain
      process.kill()
  for process, log in zip(processes, logs, strict=True):
    assert process.returncode == 0, log[-3000:]


def in_a_row(arrays: dict[str, np.ndarray]) -> np.ndarray:
  """All parameters, by path, in one row, float64."""
  names = sorted(name for name in arrays if name.startswith('params/'))
  row = np.concatenate([arrays[name].ravel() for name in names])
  return row.astype(np.float64)


def losses(workdir: pathlib.Path) -> np.ndarray:
  rows = [row for row in writer.read(workdir) if 'train/loss' in row]
  return np.array([[row['train/loss'], row['train/grad_norm']] for row in rows])


def assert_same_training(
  found: dict, expected: dict, start: np.ndarray
) -> None:
  """The states of two checkpoints; `start` is `in_a_row` of the first."""
  assert found.keys() == expected.keys()
  moved = np.linalg.norm(in_a_row(expected) - start)
  assert moved > 1e-3 * np.linalg.norm(start)  # there is something to compare
  error = np.linalg.norm(in_a_row(found) - in_a_row(expected))
  assert error / moved < devices_test.RTOL


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_what_one_does(tmp_path):
  # The mean of a map: what its maximum chooses may be a matter of rounding.
  smooth = {'train__epochs': 1, 'method__pool': 'avg'}
  alone = teacher_test.options(**smooth)
  in_one(plcd_g2d.get_config('gen=0'), alone, tmp_path / 'g_0')
  options = teacher_test.options(
    **teacher_test.learning(tmp_path, **teacher_test.SPLIT, **smooth)
  )
  one, two = tmp_path / 'one', tmp_path / 'two'
  start = in_one(plcd_g2d.get_config('gen=1'), options, one)
  in_two('configs/plcd_g2d.py:gen=1', options, two)
  assert losses(one).shape == (2, 2)
  np.testing.assert_allclose(losses(two), losses(one), rtol=devices_test.RTOL)
  assert_same_training(
    tiny_world.saved_arrays(two), tiny_world.saved_arrays(one), start
  )


@pytest.mark.slow
def test_two_processes_mine_what_one_does(tmp_path):
  options = tiny_world.options() | MINED
  one, two = tmp_path / 'one', tmp_path / 'two'
  start = in_one(mined_recipe.get_config(), options, one)
  in_two('tests/train/mined_recipe.py', options, two)
  assert losses(one).shape == (6, 2)
  np.testing.assert_allclose(losses(two), losses(one), rtol=devices_test.RTOL)
  for step in (3, 6):
    expected, found = (
      tiny_world.saved_arrays(workdir, step) for workdir in (one, two)
    )
    assert_same_training(found, expected, start)
    near = 'mining/neighbours'
    assert (expected[near] >= 0).any() == (step == 6)
    np.testing.assert_array_equal(found[near], expected[near])
    for view in mining_test.VIEWS:
      bank = expected[f'mining/bank/{view}']
      assert bank.any()
      np.testing.assert_allclose(
        found[f'mining/bank/{view}'], bank, rtol=0, atol=1e-5
      )
