"""A stage that continues a run of other shapes: TransGeo's second stage."""

import jax
import numpy as np
import pytest

from configs import transgeo_cvusa
from cvgl_jax import checkpoint, experiment, settings, sharding
from cvgl_jax import state as state_lib
from cvgl_jax.optim import build

SMALL = {'width': 8, 'depth': 2, 'heads': 2, 'dim': 12, 'attend_size': (64, 64)}


def recipe(options='', satellite=(64, 64), workdir='', **data):
  config = transgeo_cvusa.get_config(options)
  config.method.update(SMALL)
  config.data.view_sizes = {'panorama': (32, 176), 'satellite': satellite}
  config.data.update(data)
  config.init.update({'weights': '', 'workdir': str(workdir)})
  return config.to_dict()


def start(config):
  """Variables before training, as the loop makes them."""
  checked = experiment.check(config)
  method = experiment.make_method(checked)
  mesh = sharding.make_mesh(jax.devices()[:1])
  return jax.device_get(
    experiment.variables_before_training(method, checked, mesh)
  )


def save(workdir, config, variables):
  """What a run of this config leaves behind."""
  checked = experiment.check(config)
  tx, _ = build.make(
    checked.optim,
    steps_per_epoch=1,
    total_epochs=1,
    labels=experiment.make_method(checked).label,
  )
  state = state_lib.make_state(variables, tx, ema=False)
  workdir.mkdir()
  settings.save_config(str(workdir), config)
  checkpoints = checkpoint.Checkpoints(str(workdir))
  checkpoints.save(1, state, {}, 50.0)
  checkpoints.close()


def test_stage_2_starts_from_the_best_checkpoint_of_stage_1(tmp_path):
  first_config, workdir = recipe(), tmp_path / 'first'
  first = start(first_config)
  save(workdir, first_config, first)
  second = start(recipe('stage2', (80, 80), workdir))
  jax.tree.map(
    np.testing.assert_array_equal,
    second['teacher']['reference_net'],
    first['params']['reference_net'],
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    second['params']['query_net'],
    first['params']['query_net'],
  )
  positions = second['params']['reference_net']['pos_embed']
  assert positions.shape == (1, 2 + 25, 8)


def test_a_run_of_another_method_is_named(tmp_path):
  workdir = tmp_path / 'other'
  first_config = recipe()
  save(workdir, first_config, start(first_config))
  path = workdir / 'config.json'
  path.write_text(path.read_text().replace('"transgeo"', '"frgeo"'))
  with pytest.raises(
    ValueError, match="is a run of 'frgeo', not of 'transgeo'"
  ):
    start(recipe('stage2', (80, 80), workdir))


@pytest.fixture(scope='module')
def first_stage(tmp_path_factory):
  """The workdir of a first stage on whole panoramas of CVUSA."""
  workdir, config = tmp_path_factory.mktemp('runs') / 'first', recipe()
  save(workdir, config, start(config))
  return workdir


@pytest.mark.parametrize(
  ('options', 'data', 'differs'),
  [
    ('stage2+fov90', {}, 'fov_deg is 0.0 there and 90.0 here'),
    ('stage2', {'polar_size': (64, 64)}, 'polar_size is () there and (64, 64)'),
    ('stage2', {'middle_half': ('panorama',)}, 'middle_half is () there'),
  ],
)
def test_a_first_stage_on_other_pictures_is_refused(
  first_stage, options, data, differs
):
  with pytest.raises(ValueError) as error:
    start(recipe(options, (80, 80), first_stage, **data))
  message = str(error.value)
  assert str(first_stage) in message and f'config.data.{differs}' in message


def test_a_first_stage_on_another_data_set_is_announced(first_stage, caplog):
  # The cut goes with the data set: both show the same band of the sphere.
  other = {'names': ('cvact',), 'middle_half': ('panorama',)}
  start(recipe('stage2', (80, 80), first_stage, **other))
  assert "('cvusa',), this stage is on ('cvact',)" in caplog.text


def test_the_same_stage_may_go_on_with_less_to_see(first_stage, caplog):
  start(recipe('fov180', workdir=first_stage))
  assert 'config.init.workdir' not in caplog.text
