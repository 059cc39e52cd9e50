"""Every recipe builds: all keys known, networks shaped, losses traced."""

import dataclasses
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

import main
from configs import base, university1652
from cvgl_jax import experiment, settings, strict
from cvgl_jax.chain import recipe as chain_recipe
from cvgl_jax.optim import build
from cvgl_jax.retrieval.diffusion import cross

FOLDER = pathlib.Path(__file__).parents[1] / 'configs'
RECIPES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if path.stem not in ('__init__', 'base')
  and not path.stem.endswith('_chain')  # of several runs
)
CHAINS = sorted(
  (path.stem, option)
  for path in FOLDER.glob('*_chain.py')
  for option in importlib.import_module(f'configs.{path.stem}').OPTIONS
)


def recipe(name: str) -> dict:
  return importlib.import_module(f'configs.{name}').get_config().to_dict()


@functools.cache
def chain(name: str, option: str):
  return importlib.import_module(f'configs.{name}').get_config(option)


def fields(cls) -> set[str]:
  return {field.name for field in dataclasses.fields(cls)}


def test_the_base_lists_every_shared_key_with_the_default_of_the_code():
  config = base.base().to_dict()
  assert set(config) == fields(settings.Settings)
  for name, cls in (
    ('data', settings.Data),
    ('init', settings.Init),
    ('train', settings.Train),
  ):
    assert set(config[name]) == fields(cls), name
    made = strict.make(cls, config[name], name)
    expected = cls(names=()) if name == 'data' else cls()
    assert made == expected, name


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_is_checked_whole(name):
  checked = experiment.check(recipe(name))
  assert checked.evals
  docstring = importlib.import_module(f'configs.{name}').__doc__
  assert 'python main.py train' in docstring


@pytest.mark.parametrize('name', RECIPES)
def test_every_option_of_a_component_can_be_overridden(name):
  """ml_collections overrides only keys that the recipe lists."""
  check_options(recipe(name))


def check_options(config: dict) -> None:
  checked = experiment.check(config)
  for section, made in (
    ('method', experiment.make_method(checked)),
    ('augment', experiment.make_augment(checked).augment),
    ('plan', experiment.make_plan(checked)),
  ):
    missing = fields(type(made)) - set(config[section])
    assert not missing, f'{section}: {sorted(missing)}'
  assert set(config['optim']) == fields(build.Optimizer)
  for name, evaluator in experiment.make_evaluators(checked).items():
    assert set(config['evals'][name]) - {'type'} == fields(type(evaluator))


@pytest.mark.parametrize(('name', 'option'), CHAINS)
def test_a_chain_is_checked_whole_and_every_option_of_it_can_be_overridden(
  name, option
):
  config = chain(name, option).to_dict()
  plan = chain_recipe.check(config, 'W')
  for stage in plan.stages:
    assert stage.checked.evals
    check_options(config['stages'][stage.name])
  assert set(config['joint']) == fields(chain_recipe.Joint)
  assert set(config['joint']['diffusion']) == fields(cross.Options)
  assert bool(plan.joint.direct_stage) == (option == 'direct')
  docstring = importlib.import_module(f'configs.{name}').__doc__
  assert f'main.py chain --config=configs/{name}.py' in docstring
  assert not option or f'{name}.py:{option}' in docstring


@pytest.mark.parametrize(('name', 'option'), CHAINS)
def test_the_command_line_sets_a_chain_at_once_or_one_stage(name, option):
  path = f'--config=configs/{name}.py' + (f':{option}' if option else '')
  arguments = ['chain', '--workdir=none', path]
  first, second, *_ = chain(name, option).order
  overrides = (
    '--config.data.dir=D',
    '--config.seed=3',
    f'--config.stages.{first}.train.epochs=1',
    '--config.joint.diffusion.hiera=4',
  )
  loaded = main.load_config(
    *main.parser().parse_known_args([*arguments, *overrides])
  )
  stages = loaded['stages']
  assert {stage['data']['dir'] for stage in stages.values()} == {'D'}
  assert {stage['seed'] for stage in stages.values()} == {3}
  assert (
    stages[first]['train']['epochs'] == 1 < stages[second]['train']['epochs']
  )
  assert loaded['joint']['diffusion']['hiera'] == 4
  chain_recipe.check(loaded, 'W')  # PLCD's network describes regions


@pytest.mark.parametrize('name', sorted({name for name, _ in CHAINS}))
def test_an_option_that_a_chain_does_not_have_lists_those_it_has(name):
  args = main.parser().parse_args(
    ['chain', '--workdir=none', f'--config=configs/{name}.py:directly']
  )
  with pytest.raises(ValueError, match=r"no option 'directly'.*'direct'"):
    main.load_config(args, [])


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_traces_through_init_loss_and_embed(name):
  checked = experiment.check(recipe(name))
  method = experiment.make_method(checked, num_classes=7)
  shapes = experiment.init_shapes(method, checked)
  load = experiment.make_loader(checked, train=True)
  size = checked.train.batch_size
  label = jax.ShapeDtypeStruct((size,), jnp.int32)
  batch = {
    view: {
      'image': jax.ShapeDtypeStruct((size, *load.size(view), 3), jnp.uint8),
      'label': label,
      'place': label,
      'row': label,
    }
    for view in method.views
  }
  augment = experiment.make_augment(checked)
  mutable = {k: v for k, v in shapes.items() if k != 'params'}

  def loss(params, mutable, batch):
    rng = jax.random.key(0)
    batch = {
      view: slot | {'image': augment(rng, slot['image'], view)}
      for view, slot in batch.items()
    }
    return method.loss(params, mutable, batch, rng, 0)

  value, aux = jax.eval_shape(loss, shapes['params'], mutable, batch)
  assert value.shape == () and value.dtype == jnp.float32
  assert jax.tree.structure(aux.mutable) == jax.tree.structure(mutable)
  ready = experiment.make_prepare(checked)
  for view in method.views:
    features = jax.eval_shape(
      lambda v, x, rows, view=view: method.embed(
        v, ready.fixed(x, view, rows), view
      ),
      shapes,
      batch[view]['image'],
      label,
    )
    assert features.shape[0] == size and features.dtype == jnp.float32


def test_extra_tasks_are_evaluators_of_their_own_splits():
  config = university1652.get_config('+'.join(university1652.EXTRA_TASKS))
  checked = experiment.check(config.to_dict())
  evaluators = experiment.make_evaluators(checked)
  assert len(evaluators) == 6 + len(university1652.EXTRA_TASKS)
  real = evaluators['drone_4k_to_satellite']
  assert (real.query_split, real.query_view) == ('test_4k_drone', 'satellite')
  assert evaluators['multi_query_drone_to_satellite'].multi_query
  assert evaluators['satellite_to_street_average'].average_street
  with pytest.raises(ValueError, match='drone_4k_to_satellite'):
    university1652.get_config('drone_4k')


def test_the_command_line_takes_extra_tasks():
  args = main.parser().parse_args(
    [
      *('evaluate', '--workdir=none'),
      '--config=configs/university1652_no_street.py:drone_4k_to_satellite',
    ]
  )
  override = '--config.evals.drone_4k_to_satellite.flip=False'
  config = main.load_config(args, [override])
  assert set(config['evals']) == {
    'drone_to_satellite',
    'satellite_to_drone',
    'drone_4k_to_satellite',
  }
  assert config['evals']['drone_4k_to_satellite']['flip'] is False


def test_what_a_recipe_says_of_its_options_comes_without_a_traceback():
  config = '--config=configs/transgeo_cvact.py:stge2'
  args = main.parser().parse_args(['train', '--workdir=none', config])
  with pytest.raises(ValueError, match="did you mean 'stage2'") as caught:
    main.load_config(args, [])
  assert 'Traceback' not in str(caught.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'metod': {}}, "did you mean ['method']"),
    ({'optim': {'lrr': 0.1}}, "config.optim: unknown key 'lrr'"),
    ({'plan': {'name': 'Pair', 'views': ()}}, "did you mean ['Pairs']"),
    ({'method': {'name': 'university'}}, 'there are'),
    ({'train': {'batch_size': 0}}, 'batch_size'),
    ({'evals': {'x': {'type': 'retrieval'}}}, 'config.evals.x: missing'),
    ({'evals': {'x': {}}}, "config.evals.x: missing key 'type'"),
  ],
)
def test_a_bad_config_names_the_key(change, message):
  with pytest.raises(ValueError) as error:
    experiment.check(recipe('quickstart') | change)
  assert message in str(error.value)


def test_the_plan_and_the_method_must_have_the_same_views():
  config = recipe('quickstart')
  config['plan']['views'] = ('satellite', 'street')
  config['plan'].pop('view', None)
  config['plan']['name'] = 'Pairs'
  with pytest.raises(ValueError, match='same views'):
    experiment.check(config)


def test_a_loss_on_pairs_refuses_a_plan_without_pairs():
  config = recipe('quickstart')
  config['plan'] = {
    'name': 'IndependentViews',
    'views': config['plan']['views'],
  }
  with pytest.raises(ValueError, match='AllViews'):
    experiment.check(config)


def test_a_misspelt_best_metric_is_refused_at_once():
  config = recipe('quickstart')
  config['train']['best_metric'] = 'drone_to_satelite/R@1'
  with pytest.raises(ValueError, match='drone_to_satellite/R@1'):
    experiment.check(config)


@pytest.mark.parametrize(
  'change',
  [{'image_size': (384,)}, {'train_resize': 'best'}, {'eval_batch_size': 0}],
)
def test_a_bad_data_option_is_refused_at_once(change):
  config = recipe('quickstart')
  config['data'] |= change
  with pytest.raises(ValueError, match=next(iter(change)).split('_')[-1]):
    experiment.check(config)
