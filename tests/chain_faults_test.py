"""What is wrong with a chain is said before its first stage starts."""

import argparse
import json
import re

import pytest

import main
from configs import plcd_chain
from cvgl_jax import commands, experiment, strict
from cvgl_jax.chain import preflight, recipe, run
from cvgl_jax.retrieval.diffusion import cross
from tests import tiny_chain, tiny_world


def refused(config, *words):
  """The message of a config that is refused before anything is written."""
  with pytest.raises(ValueError) as error:
    preflight.check(recipe.check(config, 'W'))
  message = str(error.value)
  for word in words:
    assert word in message, message
  return message


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'order': ('first', 'aerial')}, ('config.order', 'second')),
    (
      {'order': ('second', 'first', 'aerial')},
      ('config.stages.second.init.workdir', "no stage 'first' before 'second'"),
    ),
    (
      {'stages__second__init__workdir': 'stage:frist'},
      ('config.stages.second.init.workdir', "no stage 'frist'", "['first']"),
    ),
    (
      {'joint__query_stage': 'third'},
      ('config.joint.query_stage', "'third'", 'first'),
    ),
    ({'joint__direct_stage': 'x'}, ('config.joint.direct_stage', "'x'")),
    ({'joint__checkpoint': '12'}, ('config.joint', 'checkpoint', "'12'")),
    (
      {'joint__diffusion__hiera': 4},
      ('config.joint.diffusion.hiera', "'second'", "'university1652'"),
    ),
    (
      {'stages__second__init__workdir': 'W/../W/second'},
      ('config.stages.second.init.workdir', "'second', which is not trained"),
    ),
    (
      {'stages__second__init__workdir': 'W/aerial/'},
      ('config.stages.second.init.workdir', "'aerial', which is not trained"),
    ),
    (
      {'stages__first__method__dim': 12},
      ('config.stages.second.init.workdir', "'first' has another network"),
    ),
    ({'joint__diffusion__kd': 13}, ('config.joint.diffusion', 'kd=13')),
    ({'joint__diffusion__kq': 17}, ('config.joint.diffusion.kq', 'most 16')),
    (
      {'joint__diffusion__n_trunc': 25},
      ('config.joint.diffusion.n_trunc', 'most 24'),
    ),
    (
      {'joint__query_split': 'test_query_stret'},
      ('config.joint.query_split', 'test_query_street'),
    ),
    (
      {'joint__query_split': 'test_query_satellite'},
      ('config.joint.query_stage', "'second' embeds", "shows 'satellite'"),
    ),
    (
      {'joint__query_split': 'train_street'},
      ('config.joint.query_split', 'no place in common'),
    ),
    (
      {'stages__second__optim__lr': -1.0},
      ('config.stages.second.optim', 'lr'),
    ),
    (
      {'stages__aerial__train__best_metric': 'x/AP'},
      ('config.stages.aerial.train.best_metric', "'x/AP'"),
    ),
    (
      {'stages__aerial__data__names': ('nowhere',)},
      ('config.stages.aerial', "'nowhere'", 'python -m data_builders'),
    ),
    (
      {'stages__second__data__train_split': 'tain'},
      ('config.stages.second', 'tain_street', 'train_street'),
    ),
    (
      {'stages__first__train__epochs': 0},
      ('config.stages.first.train.epochs', 'got 0'),
    ),
    (
      {'stages__second__train__batch_size': 24},
      ('config.stages.second', '24', '16'),
    ),
  ],
)
def test_a_wrong_value_is_named_with_its_key(overrides, words):
  refused(tiny_chain.config(**overrides), *words)


def test_an_unknown_key_of_a_stage_is_named_in_full():
  config = tiny_chain.config()
  config['stages']['aerial']['train']['epoch'] = 3
  refused(
    config, 'config.stages.aerial.train', "'epoch'", "did you mean ['epochs']"
  )


def test_an_unknown_ranking_has_no_published_numbers():
  config = tiny_chain.config()
  config['joint']['published'] = {'two_hops': {'R@1': 1.0}}
  refused(config, 'config.joint', 'two_hops', 'one_hop')


def test_the_name_of_a_folder_of_the_chain_is_no_name_of_a_stage():
  config = tiny_chain.config()
  config['stages']['eval'] = config['stages'].pop('first')
  refused(config, 'config.stages', "'eval'")


def test_a_split_without_pictures_is_named(monkeypatch):
  # As the index of an empty folder would be: no rows.
  whole = experiment.open_split

  def empty(checked, names, split):
    opened = whole(checked, names, split)
    return opened.select([]) if split == 'test_query_street' else opened

  config = tiny_chain.config(stages__first__evals={}, stages__second__evals={})
  monkeypatch.setattr(experiment, 'open_split', empty)
  refused(config, 'config.joint.query_split', 'has no pictures')


def test_a_training_split_without_pictures_is_named(monkeypatch):
  whole = experiment.open_split

  def empty(checked, names, split):
    opened = whole(checked, names, split)
    return opened.select([]) if split == 'train_street' else opened

  monkeypatch.setattr(experiment, 'open_split', empty)
  refused(
    tiny_chain.config(),
    'config.stages.first.data.train_split',
    'train_street',
    'has no pictures',
  )


def test_different_lists_of_drone_pictures_are_refused(monkeypatch):
  whole = recipe.Stage.open_split

  def one_less(stage, name):
    opened = whole(stage, name)
    shorter = stage.name == 'aerial' and name == 'test_gallery_drone'
    return opened.select(range(1, len(opened))) if shorter else opened

  monkeypatch.setattr(recipe.Stage, 'open_split', one_less)
  refused(
    tiny_chain.config(),
    'config.joint.bridge_split',
    'second and aerial read different lists',
    '16 and 15',
  )


def test_stages_on_different_data_are_refused():
  config = tiny_chain.config()
  names = config['stages']['aerial']['data']['names']
  config['stages']['aerial']['data']['names'] = (f'{names[0]}/',)
  refused(config, 'config.stages.aerial.data.names', 'must be the same')


def teachers(**changes):
  """PLCD's small chain with changes of g2d0's method."""
  config = tiny_chain.plcd_config()
  config.stages.g2d0.method.update(changes)
  return config.to_dict()


def test_a_chain_of_generations_passes():
  preflight.check(recipe.check(teachers(), 'W'))


def test_a_teacher_of_another_network_is_refused():
  refused(
    teachers(dim=12),
    'config.stages.g2d1.teacher.workdir',
    "'g2d0' has another network",
    'of another shape',
  )


def test_a_teacher_may_be_named_by_the_folder_of_its_stage():
  config = tiny_chain.plcd_config()
  config.stages.g2d1.teacher.workdir = 'W/g2d1/../g2d0/'
  plan = recipe.check(config.to_dict(), 'W')
  preflight.check(plan)
  assert plan.stage('g2d1').sources == ('g2d0',)
  config.stages.g2d0.method.dim = 12
  refused(config.to_dict(), "stage 'g2d0' has another network")


def test_flights_that_do_not_fit_the_plan_are_refused_before_the_first_stage():
  config = tiny_chain.plcd_config()
  config.stages.d2s.plan.groups = 2  # two pictures in each of three rounds
  refused(
    config.to_dict(), 'train_drone', 'a multiple of 6', 'stages.d2s.plan.groups'
  )


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'joint__diffusion__hiera': 30}, ('describes 29 regions',)),
    (
      {
        'joint__diffusion__hiera': 4,
        'stages__first__data__image_size': (32, 64),
      },
      ('at least 4 x 4',),
    ),
  ],
)
def test_regions_that_the_network_cannot_describe_are_refused(overrides, words):
  config = tiny_chain.regions_config(**overrides)
  refused(config, 'config.joint.diffusion.hiera', "'first'", *words)


@pytest.mark.parametrize('text', [b'{"a": ', b'\xff'])
def test_an_error_that_is_not_made_of_a_text_names_its_stage(text):
  with (
    pytest.raises(ValueError, match=r'config\.stages\.first: ') as error,
    recipe.of_stage('first'),
  ):
    json.loads(text)
  assert type(error.value) is ValueError
  with (
    pytest.raises(FloatingPointError, match=r'stages\.first\.optim\.lr'),
    recipe.of_stage('first'),
  ):
    raise FloatingPointError('not finite: lower config.optim.lr')


def test_a_generation_without_a_teacher_is_refused():
  config = tiny_chain.plcd_config()
  config.stages.g2d1.teacher.workdir = ''
  refused(
    config.to_dict(), 'config.stages.g2d1.teacher.workdir', 'name the run'
  )


def test_nothing_is_written_for_a_chain_that_cannot_work(tmp_path):
  config = tiny_chain.config(joint__diffusion__kq=17)
  with pytest.raises(ValueError, match='kq'):
    run.run(config, str(tmp_path / 'W'))
  assert not (tmp_path / 'W').exists()


def test_a_chain_does_not_go_into_the_workdir_of_a_run(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": 0}')
  with pytest.raises(ValueError, match='of a single run, not of a chain'):
    run.run(tiny_chain.config(), str(tmp_path))


@pytest.mark.parametrize('command', ['train', 'evaluate', 'embed'])
def test_commands_about_one_run_name_the_stages_of_a_chain(command):
  arguments = argparse.Namespace(
    command=command, workdir='W', features=None, checkpoint='best'
  )
  for name in ('query', 'gallery'):
    setattr(arguments, f'{name}_features', None)
  with pytest.raises(ValueError, match=re.escape('--workdir=W/aerial')):
    commands.COMMANDS[command](arguments, tiny_chain.config())


def test_a_recipe_of_one_run_is_no_chain():
  with pytest.raises(ValueError, match=r'no stages in it: .*main\.py train'):
    run.run(tiny_world.config(), 'W')


def load(*overrides):
  """The config that a command line gives."""
  arguments = ['chain', '--config=tests/tiny_chain.py', '--workdir=W']
  return main.load_config(
    *main.parser().parse_known_args([*arguments, *overrides])
  )


def test_shared_values_reach_all_stages_and_others_one():
  config = load(
    '--config.seed=3',
    '--config.data.dir=D',
    '--config.stages.first.train.epochs=1',
    '--config.stages.second.seed=4',
  )
  stages = config['stages']
  assert [stages[s]['seed'] for s in tiny_chain.STAGES] == [3, 4, 3]
  assert {stages[s]['data']['dir'] for s in tiny_chain.STAGES} == {'D'}
  assert [stages[s]['train']['epochs'] for s in tiny_chain.STAGES] == [1, 2, 2]


def test_a_misspelt_override_names_the_nearest_key():
  with pytest.raises(ValueError, match='Did you mean "epochs"'):
    load('--config.stages.first.train.epoch=1')


def test_the_recipe_of_plcd_is_the_published_chain():
  config = plcd_chain.get_config().to_dict()
  plan = recipe.check(config, 'W')
  assert [stage.name for stage in plan.stages] == [
    'g2d0',
    'g2d1',
    'g2d2',
    'd2s',
  ]
  assert [stage.checked.teacher.workdir for stage in plan.stages] == [
    *('', 'W/g2d0', 'W/g2d1', '')
  ]
  made = strict.make(cross.Options, config['joint']['diffusion'], 'diffusion')
  assert made == cross.Options()
