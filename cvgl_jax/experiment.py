"""From a config to the objects of a run: the only place that reads one.

`check` checks the whole config at once; the `make_*` functions build one
component each. Training, evaluation and embedding all start here, so they can
not disagree about a network, a data set or a transform.
"""

import contextlib
import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cvgl_jax import checkpoint, settings, sharding, strict
from cvgl_jax.data import (
  augment,
  augment_sample4geo,
  flight,
  global_mining,
  neighbour_batches,
  peer_batches,
  plans,
  prepare,
  sources,
  transforms,
)
from cvgl_jax.methods import contract

# Where the sections `plan` and `augment` find the class that they name.
PLANS = (plans, global_mining, neighbour_batches, peer_batches)
AUGMENTS = (augment, augment_sample4geo)


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """Splits of the method's views, and the class index of every place."""

  splits: dict[str, sources.Split]
  labels: dict[int, int]


def check(config: Mapping[str, Any]) -> settings.Settings:
  """Checks a config, every section of it.

  Raises:
    ValueError: names the key, the nearest valid one and the valid list.
  """
  checked = strict.make(settings.Settings, config, 'config')
  method, plan = make_method(checked), make_plan(checked)
  if len(set(plan.views)) != len(plan.views):
    raise ValueError(f'config.plan.views {plan.views} repeats a view')
  if set(plan.views) != set(method.views):
    raise ValueError(
      f'config.plan.views {plan.views} and config.method.views {method.views} '
      'must be the same views'
    )
  if plans.slots(plan) != plan.views:
    if not getattr(method, 'takes_peers', False):
      raise ValueError(
        f'config.plan.name: {checked.plan["name"]!r} gives several pictures of a '
        f'view in a row, which config.method {checked.method["name"]!r} does not '
        'take'
      )
    if plan.views != method.views:
      raise ValueError(
        f'config.plan.views {plan.views} must be in the order of '
        f'config.method.views {method.views}: the first is that of the anchors'
      )
  if getattr(method, 'needs_pairs', False) and not plan.paired:
    raise ValueError(
      f'config.plan.name: {checked.plan["name"]!r} draws the views of a row '
      'independently, but a loss of config.method compares the views of one '
      "place; use 'Pairs' or 'AllViews'"
    )
  _check_pictures(checked, method)
  if checked.seed < 0:
    raise ValueError(f'config.seed: got {checked.seed}, expected >= 0')
  best_metric(checked)
  return checked


def best_metric(checked: settings.Settings) -> str:
  """'<evaluator>/<metric>' that picks the best checkpoint; '' without any.

  Raises:
    ValueError: no such evaluator or metric, or none said and several there.
  """
  choices = [
    f'{name}/{metric}'
    for name, evaluator in make_evaluators(checked).items()
    for metric in evaluator.metric_names
  ]
  wanted = checked.train.best_metric
  if not wanted and len(checked.evals) <= 1:
    return choices[0] if choices else ''
  if wanted not in choices:
    raise ValueError(
      f'config.train.best_metric: got {wanted!r}, expected one of {choices}'
    )
  return wanted


def make_method(checked: settings.Settings, num_classes: int = 0) -> Any:
  """The method, told the number of training places where it asks for it."""
  section = _without(checked.method, 'name', 'config.method')
  cls = strict.load('cvgl_jax.methods', checked.method['name'], 'Method')
  method = strict.make(cls, section, 'config.method')
  if num_classes and getattr(method, 'num_classes', None) == 0:
    method = dataclasses.replace(method, num_classes=num_classes)
  return method


def make_plan(checked: settings.Settings) -> Any:
  """The plan: who meets whom in a batch."""
  return _member(PLANS, checked.plan, 'config.plan')


def make_augment(checked: settings.Settings) -> prepare.Chain:
  """What the train step does to pictures: augmentation, then `make_prepare`."""
  return prepare.Chain(
    augment=_member(AUGMENTS, checked.augment, 'config.augment'),
    prepare=make_prepare(checked),
  )


def make_prepare(checked: settings.Settings) -> prepare.Prepare:
  """What happens to pictures on the device in training and evaluation."""
  data = checked.data
  with _named('config.data'):
    return prepare.Prepare(
      polar_size=data.polar_size, fov_deg=data.fov_deg, fov_seed=data.fov_seed
    )


def make_evaluators(checked: settings.Settings) -> dict[str, Any]:
  """Evaluators by name (ml_collections sorts them)."""
  evaluators = {}
  for name, section in checked.evals.items():
    where = f'config.evals.{name}'
    options = _without(section, 'type', where)
    cls = strict.load('cvgl_jax.evaluators', section['type'], 'Evaluator')
    evaluators[name] = strict.make(cls, options, where)
  return evaluators


def check_splits(
  checked: settings.Settings, evaluators: Mapping[str, Any]
) -> None:
  """Opens what the evaluators will read, before hours are spent.

  Raises:
    ValueError: a data set or split is missing, or does not know what is to be
      measured on it; names the evaluator.
  """
  best_evaluator, _, best = best_metric(checked).partition('/')
  for name, evaluator in evaluators.items():
    try:
      evaluator.check(
        functools.partial(open_split, checked),
        metric=best if name == best_evaluator else '',
      )
    except ValueError as error:
      raise ValueError(f'config.evals.{name}: {error}') from error


def make_loader(
  checked: settings.Settings, *, train: bool
) -> transforms.Loader:
  """Decoding and resizing on the CPU; evaluation always as the references."""
  data = checked.data
  with _named('config.data'):
    return transforms.Loader(
      image_size=data.image_size,
      view_sizes=data.view_sizes,
      view_aspects=data.view_aspects,
      middle_half=data.middle_half,
      cut_rows=data.cut_rows,
      resize=(train and data.train_resize) or data.resize,
      autoaugment=data.autoaugment if train else 'none',
      jpeg_p=data.jpeg_p if train else 0.0,
      jpeg_quality=data.jpeg_quality,
    )


def network_sizes(
  checked: settings.Settings, views: Iterable[str]
) -> dict[str, tuple[int, int]]:
  """View -> (height, width) of the pictures that the network sees.

  Raises:
    ValueError: a size that `config.data.polar_size` or `fov_deg` cannot take.
  """
  load, ready = make_loader(checked, train=False), make_prepare(checked)
  with _named('config.data'):
    return {view: ready.size(view, load.size(view)) for view in views}


def open_split(
  checked: settings.Settings, names: tuple[str, ...], split: str
) -> sources.Split:
  """A split of data sets below `data.dir`; names () are the run's own."""
  return sources.open_split(
    checked.data.dir, tuple(names) or tuple(checked.data.names), split
  )


def training_data(
  checked: settings.Settings, views: tuple[str, ...]
) -> TrainingData:
  """Opens `<train_split>_<view>` of every view of the method."""
  splits = {}
  for view in dict.fromkeys(views):
    split = open_split(checked, (), f'{checked.data.train_split}_{view}')
    if view == 'drone' and checked.data.drone_views_per_place:
      split = plans.limit_views(split, checked.data.drone_views_per_place)
    splits[view] = split
  return TrainingData(splits, sources.class_labels(list(splits.values())))


def init_shapes(method: Any, checked: settings.Settings) -> Any:
  """Shapes of the method's variables, nothing computed."""
  return jax.eval_shape(lambda: init_variables(method, checked))


def init_variables(method: Any, checked: settings.Settings) -> Any:
  """Random variables of the method; call under jit or eval_shape."""
  label = np.zeros((2,), np.int32)
  batch = {
    view: {
      'image': np.zeros((2, *size_hw, 3), np.uint8),
      'label': label,
      'place': label,
    }
    for view, size_hw in network_sizes(checked, method.views).items()
  }
  return method.init(jax.random.key(checked.seed), batch)


def variables_before_training(
  method: Any, checked: settings.Settings, mesh: Any
) -> Any:
  """Variables of the method as `config.init` says, replicated on the mesh."""
  init = checked.init
  variables = jax.jit(
    lambda: init_variables(method, checked),
    out_shardings=sharding.replicated(mesh),
  )()
  if init.weights:
    variables = contract.load_pretrained(method, variables, init.weights)
  if init.workdir:
    variables = _from_run(method, variables, checked)
  return variables


def _from_run(method: Any, variables: Any, checked: settings.Settings) -> Any:
  """Variables of the best checkpoint of the run `config.init.workdir`.

  A method with `variables_from_run` may continue a run whose variables have
  other shapes than its own; they are made after that run's config.
  """
  workdir = checked.init.workdir
  step = checkpoint.choose(workdir, 'best')
  if not hasattr(method, 'variables_from_run'):
    shapes = jax.eval_shape(lambda: variables)
    return checkpoint.restore_variables(workdir, step, shapes)
  config = settings.load_config(workdir)
  other = strict.make(settings.Settings, config, f'{workdir}/config.json')
  if other.method['name'] != method.__module__.rpartition('.')[2]:
    raise ValueError(
      f'config.init.workdir: {workdir} is a run of {other.method["name"]!r}, not '
      f'of {method.__module__.rpartition(".")[2]!r}'
    )
  shapes = init_shapes(make_method(other), other)
  if shapes.keys() != variables.keys():  # not more of the same: a next stage
    _check_same_pictures(checked.data, other.data, workdir)
  source = checkpoint.restore_variables(workdir, step, shapes)
  return method.variables_from_run(variables, source, where=workdir)


def _check_same_pictures(
  ours: settings.Data, theirs: settings.Data, workdir: str
) -> None:
  """A stage is of use to the next one on the pictures that it learnt from."""
  keys = ('fov_deg', 'polar_size')
  if ours.names == theirs.names:
    keys += ('middle_half',)  # goes with the data set
  else:
    logging.warning(
      'config.init.workdir: %s was trained on config.data.names %s, this stage '
      'is on %s',
      workdir,
      theirs.names,
      ours.names,
    )
  different = [
    f'config.data.{key} is {getattr(theirs, key)!r} there and '
    f'{getattr(ours, key)!r} here'
    for key in keys
    if getattr(ours, key) != getattr(theirs, key)
  ]
  if different:
    raise ValueError(
      f'config.init.workdir: {workdir} learnt from other pictures than this '
      f'stage: {"; ".join(different)}. Train both stages with the same options, '
      'or name the run of the matching first stage'
    )


def _without(section: Mapping, key: str, where: str) -> dict[str, Any]:
  if key not in section:
    raise ValueError(f'{where}: missing key {key!r}')
  return {k: v for k, v in section.items() if k != key}


def _check_pictures(checked: settings.Settings, method: Any) -> None:
  """Sizes, cuts and transforms fit each other and the views that there are."""
  data, augmentation = checked.data, make_augment(checked).augment
  for train in (True, False):
    load = make_loader(checked, train=train)
  with _named('config.augment'):
    for view in method.views:
      augmentation.check(view, load.size(view))
  views = dict.fromkeys(method.views)
  for evaluator in make_evaluators(checked).values():
    views |= dict.fromkeys(
      flight.view_of(split) for _, split in evaluator.splits
    )
  for name in ('view_sizes', 'view_aspects', 'cut_rows', 'middle_half'):
    for view in getattr(data, name):
      if view not in views:
        raise ValueError(
          f'config.data.{name}: no view {view!r} in this recipe; its views are '
          f'{list(views)}'
        )
  network_sizes(checked, views)
  for name, view in (('polar_size', 'satellite'), ('fov_deg', 'panorama')):
    if getattr(data, name) and not any(x.startswith(view) for x in views):
      raise ValueError(
        f'config.data.{name}: is about {view} pictures, but the views of this '
        f'recipe are {list(views)}'
      )
  if hasattr(method, 'check_pictures'):
    sizes = network_sizes(checked, method.views)
    method.check_pictures(sizes, polar=bool(data.polar_size))


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
  """Puts the section in front of what is wrong with its values."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _member(modules: tuple[Any, ...], section: Mapping, where: str) -> Any:
  """Builds the dataclass of the modules that section['name'] picks."""
  options = _without(section, 'name', where)
  choices = {
    name: cls
    for module in modules
    for name, cls in vars(module).items()
    if dataclasses.is_dataclass(cls)
    and cls.__module__ == module.__name__
    and not name.startswith('_')
  }
  name = section['name']
  if name not in choices:
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f'; did you mean {near}?' if near else ''
    raise ValueError(
      f'{where}.name: no {name!r}{hint}; there are {sorted(choices)}'
    )
  return strict.make(choices[name], options, where)
