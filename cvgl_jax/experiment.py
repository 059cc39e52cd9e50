"""From a config to the objects of a run: the only place that reads one.

`check` checks the whole config at once; the `make_*` functions build one
component each. Training, evaluation and embedding all start here, so they can
not disagree about a network, a data set or a transform.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cvgl_jax import checkpoint, settings, sharding, strict
from cvgl_jax.data import augment, plans, sources, transforms
from cvgl_jax.methods import contract


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """Splits of the method's views, and the class index of every place."""

  splits: dict[str, sources.Split]
  labels: dict[int, int]

  @property
  def places(self) -> dict[str, np.ndarray]:
    """View -> place of every picture, int64 [N]."""
    return {view: split.place for view, split in self.splits.items()}


def check(config: Mapping[str, Any]) -> settings.Settings:
  """Checks a config, every section of it.

  Raises:
    ValueError: names the key, the nearest valid one and the valid list.
  """
  checked = strict.make(settings.Settings, config, 'config')
  method, plan = make_method(checked), make_plan(checked)
  if set(plan.views) != set(method.views):
    raise ValueError(
      f'config.plan.views {plan.views} and config.method.views {method.views} '
      'must be the same views'
    )
  if getattr(method, 'needs_pairs', False) and not plan.paired:
    raise ValueError(
      f'config.plan.name: {checked.plan["name"]!r} draws the views of a row '
      'independently, but a loss of config.method compares the views of one '
      "place; use 'Pairs' or 'AllViews'"
    )
  make_augment(checked)
  for train in (True, False):
    make_loader(checked, train=train)
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
  return _member(plans, checked.plan, 'config.plan')


def make_augment(checked: settings.Settings) -> Any:
  """The augmentation that runs on the device."""
  return _member(augment, checked.augment, 'config.augment')


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
    ValueError: a data set or split is missing; names the evaluator.
  """
  for name, evaluator in evaluators.items():
    for names, split in evaluator.splits:
      try:
        open_split(checked, names, split)
      except ValueError as error:
        raise ValueError(f'config.evals.{name}: {error}') from error


def make_loader(
  checked: settings.Settings, *, train: bool
) -> transforms.Loader:
  """Decoding and resizing on the CPU; evaluation always as the references."""
  data = checked.data
  return transforms.Loader(
    image_size=tuple(data.image_size),
    resize=data.train_resize if train else 'pillow_bicubic',
    autoaugment=data.autoaugment if train else 'none',
  )


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
  height, width = checked.data.image_size
  image = np.zeros((2, height, width, 3), np.uint8)
  label = np.zeros((2,), np.int32)
  batch = {
    view: {'image': image, 'label': label, 'place': label}
    for view in method.views
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
    variables = checkpoint.restore_variables(
      init.workdir,
      checkpoint.choose(init.workdir, 'best'),
      jax.eval_shape(lambda: variables),
    )
  return variables


def _without(section: Mapping, key: str, where: str) -> dict[str, Any]:
  if key not in section:
    raise ValueError(f'{where}: missing key {key!r}')
  return {k: v for k, v in section.items() if k != key}


def _member(module: Any, section: Mapping, where: str) -> Any:
  """Builds the dataclass of `module` that section['name'] picks."""
  options = _without(section, 'name', where)
  choices = {
    name: cls
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
      f'{where}.name: no {name!r} in {module.__name__}{hint}; '
      f'there are {sorted(choices)}'
    )
  return strict.make(choices[name], options, where)
