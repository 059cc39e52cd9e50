"""Properties of the whole loop, run in this process on its eight devices."""

import contextlib
import logging as std_logging
import pathlib
import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy
from absl import logging

from cvgl_jax import (
  checkpoint,
  evaluate,
  experiment,
  settings,
  sharding,
  stop,
  writer,
)
from tests import tiny_world
from tests.train import resume_test

# Two epochs of six steps, each with an evaluation; no other checkpoint.
OPTIONS = {
  'train.epochs': 2,
  'train.eval_every_epochs': 1,
  'train.save_every_steps': 0,
  'train.save_every_epochs': 0,
}
NO_EVALUATION = {'train.eval_every_epochs': 0}


class SignalAt(std_logging.Handler):
  """Sends SIGTERM to this process while a step is logged."""

  def __init__(self, step: int):
    super().__init__()
    self._text = f'step {step}/'

  def emit(self, record):
    if record.getMessage().startswith(self._text):
      signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def sigterm_at(step: int):
  """The run in here gets SIGTERM in step `step`, so that it ends one later."""
  logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
  handler = SignalAt(step)

  def unexpected(number, frame):
    raise AssertionError('the loop did not listen to SIGTERM')

  previous = signal.signal(signal.SIGTERM, unexpected)
  logging.set_verbosity(logging.INFO)
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logging.set_verbosity(verbosity)
    signal.signal(signal.SIGTERM, previous)


def stopped(workdir: pathlib.Path, step: int, **options) -> None:
  """Trains until SIGTERM; the last checkpoint is that of `step`."""
  with sigterm_at(step - 1), pytest.raises(stop.Stopped):
    tiny_world.train(workdir, **options)
  assert checkpoint.choose(workdir, 'latest') == step


def metrics_of(workdir: pathlib.Path, kind: str) -> list[dict[str, float]]:
  """Rows with metrics of a kind, 'train' or 'eval'."""
  return [
    row
    for row in writer.read(workdir)
    if any(name.startswith(f'{kind}/') for name in row)
  ]


AVERAGED = {'train.ema_decay': 0.9, 'train.eval_at_start': True}


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
  """A run with a moving average of the parameters."""
  workdir = tmp_path_factory.mktemp('averaged') / 'whole'
  tiny_world.train(workdir, **OPTIONS, **AVERAGED)
  return workdir


def test_a_run_with_an_average_resumes_bit_for_bit(tmp_path, averaged):
  stopped(tmp_path, 4, **OPTIONS, **AVERAGED)
  tiny_world.train(tmp_path, **OPTIONS, **AVERAGED)
  resume_test.assert_equal_runs(tmp_path, averaged)
  # The evaluation at the start took place once.
  assert [row['step'] for row in metrics_of(tmp_path, 'eval')] == [0, 6, 12]


def test_the_average_is_what_is_evaluated(averaged):
  checked = experiment.check(tiny_world.config(**OPTIONS, **AVERAGED))
  classes = settings.load_config(averaged)['method']['num_classes']
  method = experiment.make_method(checked, num_classes=classes)
  shapes, mesh = experiment.init_shapes(method, checked), sharding.make_mesh()
  saved = np.load(averaged / 'eval' / 'drone_to_satellite.npz')

  def features(use_ema: bool) -> np.ndarray:
    variables = checkpoint.restore_variables(
      averaged, 12, shapes, use_ema=use_ema
    )
    embedder = evaluate.make_embedder(checked, method, variables, mesh)
    split = experiment.open_split(checked, (), 'test_query_drone')
    return embedder(split)[saved['query_sample']]

  np.testing.assert_array_equal(features(True), saved['query_sample_features'])
  distance = np.abs(features(False) - saved['query_sample_features']).max()
  assert distance > 1e-3


@pytest.mark.parametrize(
  'options',
  [
    {'optim.sam': 'sam', 'optim.sam_rho': 0.05},
    {
      'optim.sam': 'asam',
      'optim.sam_rho': 0.5,
      'train.micro_batches': 2,
      'train.batch_size': 16,
      'train.epochs': 3,
    },
  ],
  ids=['sam', 'asam_in_micro_batches'],
)
def test_a_sharpness_aware_run_resumes_bit_for_bit(tmp_path, options):
  options = OPTIONS | NO_EVALUATION | options
  tiny_world.train(tmp_path / 'whole', **options)
  stopped(tmp_path / 'cut', 4, **options)
  tiny_world.train(tmp_path / 'cut', **options)
  resume_test.assert_equal_runs(tmp_path / 'cut', tmp_path / 'whole')


@pytest.mark.parametrize('step', [6, 12])
def test_an_evaluation_that_a_stop_prevented_is_made_up_for(
  tmp_path, averaged, step
):
  """Step 6 ends an epoch, step 12 the run."""
  stopped(tmp_path, step, **OPTIONS, **AVERAGED)
  assert metrics_of(tmp_path, 'eval')[-1]['step'] < step
  tiny_world.train(tmp_path, **OPTIONS, **AVERAGED)
  resume_test.assert_equal_runs(tmp_path, averaged)


def test_an_evaluation_made_up_for_is_logged_once_whatever_is_killed(
  tmp_path, averaged
):
  stopped(tmp_path / 'run', 12, **OPTIONS, **AVERAGED)
  # Killed after that evaluation, the run finds the same checkpoint again.
  shutil.copytree(tmp_path / 'run', tmp_path / 'killed')
  tiny_world.train(tmp_path / 'run', **OPTIONS, **AVERAGED)
  shutil.copy(tmp_path / 'run' / 'metrics.jsonl', tmp_path / 'killed')
  tiny_world.train(tmp_path / 'killed', **OPTIONS, **AVERAGED)
  resume_test.assert_equal_runs(tmp_path / 'killed', averaged)


# A learning rate of zero: parameters stay where they started.
FROZEN = {'train.epochs': 1, 'optim.lr': 0.0}


def test_a_run_starts_from_the_best_weights_of_another(tmp_path, averaged):
  options = OPTIONS | NO_EVALUATION | FROZEN
  tiny_world.train(tmp_path, **options, **{'init.workdir': str(averaged)})
  found = tiny_world.saved_arrays(tmp_path)
  best = checkpoint.choose(averaged, 'best')
  expected = tiny_world.saved_arrays(averaged, step=best)
  names = [name for name in found if name.startswith('params/')]
  assert names
  for name in names:
    average = expected[name.replace('params/', 'ema/', 1)]
    np.testing.assert_array_equal(found[name], average, err_msg=name)
  assert found['step'] == 6  # its own count


def test_a_run_starts_from_the_weights_of_a_torch_file(tmp_path):
  options = OPTIONS | NO_EVALUATION | FROZEN
  trunk = 'params/model_1/model/'
  tiny_world.train(tmp_path / 'random', **options)
  found = tiny_world.saved_arrays(tmp_path / 'random')
  rng = np.random.default_rng(0)
  source = {}
  for name, value in found.items():
    if not name.startswith(trunk) or name.endswith('gem2/p'):
      continue
    module, leaf = name.removeprefix(trunk).rsplit('/', 1)
    value = rng.uniform(0.5, 1, value.shape).astype(np.float32)
    if leaf == 'kernel':
      source[f'{module}.weight'] = value.transpose(3, 2, 0, 1).copy()
    else:
      source[f'{module}.{"weight" if leaf == "scale" else leaf}'] = value
    if leaf == 'scale':
      source[f'{module}.running_mean'] = np.zeros_like(value)
      source[f'{module}.running_var'] = np.ones_like(value)
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(source, path)
  workdir = tmp_path / 'pretrained'
  tiny_world.train(workdir, **options, **{'init.weights': str(path)})
  started = tiny_world.saved_arrays(workdir)
  np.testing.assert_array_equal(
    started[f'{trunk}conv1/kernel'].transpose(3, 2, 0, 1),
    source['conv1.weight'],
  )
  np.testing.assert_array_equal(started[f'{trunk}bn4/bias'], source['bn4.bias'])
  head = 'params/classifier/add_block_0/kernel'
  np.testing.assert_array_equal(started[head], found[head])
