"""A run that learns from another one: PLCD's generations, on the tiny world."""

import os

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import plcd_g2d
from cvgl_jax import (
  checkpoint,
  experiment,
  initial_state,
  mining,
  sharding,
  stop,
  teacher,
)
from cvgl_jax import train as train_lib
from tests import tiny_world, torch_names
from tests.train import loop_test

# Every array is split that can be.
SPLIT = {'train__fsdp': True, 'train__fsdp_min_size': 1}


def options(**overrides):
  """What a run of seconds changes in the recipe, by key; '__' stands for '.'."""
  return {
    'init.weights': '',
    'data.dir': str(tiny_world.data_dir()),
    'data.names': (tiny_world.NAME,),
    'data.image_size': (64, 64),
    'data.train_resize': 'area',
    'method.backbone': 'small_cnn',
    'method.backbone_width': 4,
    'method.dim': 16,
    'plan.groups': 3,
    'plan.rounds': 1,
    'augment.pad': 2,
    'evals.ground_to_drone.gallery_split': 'test_gallery_drone',
    'train.epochs': 2,
    'train.log_every_steps': 1,
    'train.eval_every_epochs': 0,
    'train.eval_at_start': False,
    'train.save_every_steps': 1,
  } | {key.replace('__', '.'): value for key, value in overrides.items()}


def recipe(option='gen=0', **overrides):
  config = plcd_g2d.get_config(option)
  config.update_from_flattened_dict(options(**overrides))
  return config.to_dict()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Generations 0 and 1, one after the other."""
  folder = tmp_path_factory.mktemp('generations')
  train_lib.train(recipe(), str(folder / 'g_0'))
  train_lib.train(second(folder), str(folder / 'g_1'))
  return folder


def learning(folder, **overrides):
  """Overrides of a generation that learns from the run in a folder's `g_0`."""
  return {
    'method__regions': 4,
    'method__record_parts': False,  # four regions compile sooner than 29
    'teacher__workdir': str(folder / 'g_0'),
  } | overrides


def second(folder, **overrides):
  return recipe('gen=1', **learning(folder, **overrides))


def test_the_teacher_is_used_and_in_no_checkpoint(runs):
  alone, taught = (
    tiny_world.saved_arrays(runs / name) for name in ('g_0', 'g_1')
  )
  assert alone.keys() == taught.keys()
  assert not any('teacher' in name for name in taught)
  # Both started from the same weights and saw the same pictures.
  name = next(n for n in alone if n.endswith('model_2/model/conv1/kernel'))
  assert (alone[name] != taught[name]).any()


def test_a_stopped_generation_resumes_bit_for_bit(runs, tmp_path):
  workdir = tmp_path / 'stopped'
  with loop_test.sigterm_at(2), pytest.raises(stop.Stopped):
    train_lib.train(second(runs), str(workdir))
  assert checkpoint.choose(str(workdir), 'latest') == 3
  train_lib.train(second(runs), str(workdir))
  whole, resumed = (
    tiny_world.saved_arrays(path) for path in (runs / 'g_1', workdir)
  )
  for name, value in whole.items():
    np.testing.assert_array_equal(value, resumed[name], err_msg=name)


def test_a_teacher_split_over_the_devices_gives_the_same(runs, tmp_path):
  workdir = tmp_path / 'split'
  train_lib.train(second(runs, train__epochs=1, **SPLIT), str(workdir))
  step = checkpoint.choose(str(workdir), 'latest')
  apart = tiny_world.saved_arrays(workdir)
  train_lib.train(second(runs, train__epochs=1), str(tmp_path / 'together'))
  together = tiny_world.saved_arrays(tmp_path / 'together', step)
  for name, value in together.items():
    np.testing.assert_allclose(
      apart[name], value, rtol=1e-3, atol=1e-4, err_msg=name
    )


def test_a_teacher_lies_on_the_devices_as_its_student_does(runs):
  checked = experiment.check(second(runs, **SPLIT))
  method = experiment.make_method(checked, num_classes=16)
  miner = mining.Miner(
    experiment.make_plan(checked), {}, batch_size=8, seed=checked.seed
  )
  _, shapes, shardings = initial_state.maker(
    method, optax.sgd(0.1), checked, sharding.make_mesh(), miner=miner
  )
  student = {'params': shardings.params, **shardings.mutable}
  assert shardings.teacher == student
  placed = teacher.place(teacher.load(method, checked), shardings.teacher)

  def as_wanted(x, shape, where):
    return x.shape == shape.shape and x.sharding.is_equivalent_to(where, x.ndim)

  alike = jax.tree.map(as_wanted, placed, shapes.teacher, student)
  assert all(jax.tree.leaves(alike))
  split = [
    x for x in jax.tree.leaves(placed['params']) if not x.is_fully_replicated
  ]
  assert split
  for x in split:
    assert x.addressable_shards[0].data.size * jax.device_count() == x.size


def test_a_run_that_goes_on_with_another_teacher_is_refused(runs, tmp_path):
  workdir = tmp_path / 'other'
  with loop_test.sigterm_at(1), pytest.raises(stop.Stopped):
    train_lib.train(second(runs), str(workdir))
  with pytest.raises(ValueError, match='not those that this run learnt from'):
    train_lib.train(second(runs, teacher__checkpoint='3'), str(workdir))
  # The same weights may lie elsewhere.
  moved = tmp_path / 'moved'
  os.symlink(runs / 'g_0', moved)
  train_lib.train(second(runs, teacher__workdir=str(moved)), str(workdir))


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'teacher__workdir': ''}, r'config\.teacher\.workdir: .* name the run'),
    ({'plan__groups': 2}, 'a multiple of 2.*change config.plan.groups'),
    ({'teacher__workdir': 'nowhere'}, 'nowhere does not exist; train'),
    ({'teacher__checkpoint': '77'}, '--checkpoint=77: use latest, best'),
    ({'method__dim': 8}, 'is of another network(.|\n)*add_block_0'),
    ({'method__backbone_width': 8}, 'is of another network'),
    ({'method__share_trunks': True}, 'not in the checkpoint|another network'),
    ({'method__generation': 0, 'method__regions': 0}, 'learns from no teacher'),
    (
      {'teacher__weights': 'net_119.pth'},
      r'config\.teacher: give weights or workdir, not both',
    ),
  ],
)
def test_a_teacher_that_does_not_fit_is_named(
  runs, tmp_path, overrides, message
):
  with pytest.raises(ValueError, match=message):
    train_lib.train(second(runs, **overrides), str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_teacher_that_is_not_finished_is_named(runs, tmp_path):
  workdir = tmp_path / 'unfinished'
  with loop_test.sigterm_at(1), pytest.raises(stop.Stopped):
    train_lib.train(recipe(), str(workdir))
  options = {'teacher__workdir': str(workdir), 'train__epochs': 1}
  with pytest.raises(ValueError, match=r'step 2 of 4.*teacher\.checkpoint=2'):
    train_lib.train(second(runs, **options), str(tmp_path / 'run'))
  options['teacher__checkpoint'] = '2'
  train_lib.train(second(runs, **options), str(tmp_path / 'run'))


def test_weights_of_a_backbone_are_no_teacher(tmp_path):
  path = tmp_path / 'resnet50.safetensors'
  safetensors.numpy.save_file({'conv1.weight': np.zeros((4, 3, 3, 3))}, path)
  config = recipe('gen=1', teacher__workdir='')
  config['teacher']['weights'] = str(path)
  with pytest.raises(ValueError, match='has no classifier: it holds weights'):
    train_lib.train(config, str(tmp_path / 'run'))


def test_a_teacher_of_another_pair_of_views_is_named(runs, tmp_path):
  config = second(runs)
  for section in ('method', 'plan'):
    config[section]['views'] = ('satellite', 'drone')
  with pytest.raises(
    ValueError, match=r"trained on views \('street', 'drone'\)"
  ):
    train_lib.train(config, str(tmp_path / 'run'))


def test_a_folder_without_checkpoints_is_named(runs, tmp_path):
  empty = tmp_path / 'empty'
  empty.mkdir()
  (empty / 'config.json').write_text((runs / 'g_0/config.json').read_text())
  with pytest.raises(ValueError, match='nothing was trained there yet'):
    train_lib.train(
      second(runs, teacher__workdir=str(empty)), str(tmp_path / 'run')
    )


def test_a_released_checkpoint_can_be_the_teacher(tmp_path):
  """Its torch file, in the release's names, read without running it."""
  options = {
    'method__backbone': 'resnet18',
    'data__image_size': (128, 128),
    'train__epochs': 1,
  }
  checked = experiment.check(recipe(**options))
  method = experiment.make_method(checked, num_classes=16)
  variables = experiment.init_variables(method, checked)
  path = tmp_path / 'net_119.safetensors'
  safetensors.numpy.save_file(
    torch_names.state_dict(jax.device_get(variables)), path
  )
  config = recipe(
    'gen=1', teacher__workdir='', method__record_parts=False, **options
  )
  config['teacher']['weights'] = str(path)
  train_lib.train(config, str(tmp_path / 'run'))
  assert checkpoint.choose(str(tmp_path / 'run'), 'latest') == 2
