"""From a config to the objects of a run: the only place that reads one.

`settings` checks the whole config at once; the `make_*` functions build one
component each. Training, evaluation and embedding all start here, so they can
not disagree about a network, a data set or a transform.
"""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cvgl_jax import checkpoint, sharding, strict, writer
from cvgl_jax.data import augment, plans, sources, transforms
from cvgl_jax.methods import contract
from cvgl_jax.optim import build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Which pictures, and how they are read.

  Attributes:
    dir: folder of the built data sets.
    names: data sets below `dir`; several are joined (disjoint place ids).
    train_split: prefix of the training splits (`<train_split>_<view>`).
    image_size: (height, width) in pixels that the network sees.
    train_resize: 'pillow_bicubic' (as the references) or 'area' (faster).
    autoaugment: 'none', 'imagenet' or 'reid', on the CPU before the resize.
    drone_views_per_place: 54, 27, 18, 9, 3 or 1 of the drone pictures of
      University-1652; 0 for all there are.
    threads: that read and decode; 0 for one per core.
    eval_batch_size: pictures a step of embedding; features do not depend on
      it.
  """

  dir: str = 'data'
  names: tuple[str, ...] = ('university1652',)
  train_split: str = 'train'
  image_size: tuple[int, int] = (256, 256)
  train_resize: str = 'pillow_bicubic'
  autoaugment: str = 'none'
  drone_views_per_place: int = 0
  threads: int = 0
  eval_batch_size: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
  """Where the first weights come from; all empty: random.

  Attributes:
    weights: torch weights, a `.safetensors` or `.pth` path or
      'hf:owner/repository/file': of the backbone (torchvision names) or of the
      whole method (the reference's names).
    workdir: another run of the same method; its best checkpoint is used.
  """

  weights: str = ''
  workdir: str = ''

  def __post_init__(self):
    if self.weights and self.workdir:
      raise ValueError('give weights or workdir, not both')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """How long and how often.

  Attributes:
    batch_size: rows of the plan a step, over all devices.
    epochs: of the plan.
    micro_batches: passes that a batch is split into (GradCache); the loss
      still sees the whole batch.
    ema_decay: of the moving average of the parameters; 0 for none. Evaluators
      use the average where there is one.
    log_every_steps: a log line and metrics.
    eval_every_epochs: run the evaluators; also after the last epoch. 0: never.
    eval_at_start: run them before the first step too.
    save_every_steps: checkpoint within epochs; 0: only at evaluations, every
      `save_every_epochs` and at the end.
    save_every_epochs: 0: as above.
    best_metric: '<evaluator>/<metric>' that picks the best checkpoint; '': the
      first evaluator's R@1.
    fsdp: split large parameters over the devices.
    fsdp_min_size: elements of the smallest array that is split.
  """

  batch_size: int = 8
  epochs: int = 120
  micro_batches: int = 1
  ema_decay: float = 0.0
  log_every_steps: int = 50
  eval_every_epochs: int = 10
  eval_at_start: bool = True
  save_every_steps: int = 0
  save_every_epochs: int = 10
  best_metric: str = ''
  fsdp: bool = False
  fsdp_min_size: int = 2**16

  def __post_init__(self):
    for name in ('batch_size', 'micro_batches', 'log_every_steps'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: {getattr(self, name)} must be at least 1')
    if self.epochs < 0 or not 0 <= self.ema_decay < 1:
      raise ValueError(
        f'epochs {self.epochs} must be >= 0, ema_decay {self.ema_decay} in [0, 1)'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A checked config. `method`, `plan`, `augment` and each entry of `evals`
  are sections of a component that their `name` (`type`) picks."""

  seed: int = 0
  method: Mapping[str, Any]
  data: Data = dataclasses.field(default_factory=Data)
  plan: Mapping[str, Any]
  augment: Mapping[str, Any]
  init: Init = dataclasses.field(default_factory=Init)
  optim: build.Optimizer
  train: Train = dataclasses.field(default_factory=Train)
  evals: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """Splits of the method's views, and the class index of every place."""

  splits: dict[str, sources.Split]
  labels: dict[int, int]

  @property
  def places(self) -> dict[str, np.ndarray]:
    """View -> place of every picture, int64 [N]."""
    return {view: split.place for view, split in self.splits.items()}


def settings(config: Mapping[str, Any]) -> Settings:
  """Checks a config, every section of it.

  Raises:
    ValueError: names the key, the nearest valid one and the valid list.
  """
  checked = strict.make(Settings, config, 'config')
  method, plan = make_method(checked), make_plan(checked)
  if set(plan.views) != set(method.views):
    raise ValueError(
      f'config.plan.views {plan.views} and config.method.views {method.views} '
      'must be the same views'
    )
  make_augment(checked)
  make_evaluators(checked)
  return checked


def make_method(checked: Settings, num_classes: int = 0) -> Any:
  """The method, told the number of training places where it asks for it."""
  section = _without(checked.method, 'name', 'config.method')
  cls = strict.load('cvgl_jax.methods', checked.method['name'], 'Method')
  method = strict.make(cls, section, 'config.method')
  if num_classes and getattr(method, 'num_classes', None) == 0:
    method = dataclasses.replace(method, num_classes=num_classes)
  return method


def make_plan(checked: Settings) -> Any:
  """The plan: who meets whom in a batch."""
  return _member(plans, checked.plan, 'config.plan')


def make_augment(checked: Settings) -> Any:
  """The augmentation that runs on the device."""
  return _member(augment, checked.augment, 'config.augment')


def make_evaluators(checked: Settings) -> dict[str, Any]:
  """Evaluators by name, in the order of the config."""
  evaluators = {}
  for name, section in checked.evals.items():
    where = f'config.evals.{name}'
    options = _without(section, 'type', where)
    cls = strict.load('cvgl_jax.evaluators', section['type'], 'Evaluator')
    evaluators[name] = strict.make(cls, options, where)
  return evaluators


def make_loader(checked: Settings, *, train: bool) -> transforms.Loader:
  """Decoding and resizing on the CPU; evaluation always as the references."""
  data = checked.data
  return transforms.Loader(
    image_size=tuple(data.image_size),
    resize=data.train_resize if train else 'pillow_bicubic',
    autoaugment=data.autoaugment if train else 'none',
  )


def open_split(
  checked: Settings, names: tuple[str, ...], split: str
) -> sources.Split:
  """A split of data sets below `data.dir`; names () are the run's own."""
  return sources.open_split(
    checked.data.dir, tuple(names) or tuple(checked.data.names), split
  )


def training_data(checked: Settings, views: tuple[str, ...]) -> TrainingData:
  """Opens `<train_split>_<view>` of every view of the method."""
  splits = {}
  for view in dict.fromkeys(views):
    split = open_split(checked, (), f'{checked.data.train_split}_{view}')
    if view == 'drone' and checked.data.drone_views_per_place:
      split = plans.limit_views(split, checked.data.drone_views_per_place)
    splits[view] = split
  return TrainingData(splits, sources.class_labels(list(splits.values())))


def init_shapes(method: Any, checked: Settings) -> Any:
  """Shapes of the method's variables, nothing computed."""
  return jax.eval_shape(lambda: init_variables(method, checked))


def init_variables(method: Any, checked: Settings) -> Any:
  """Random variables of the method; call under jit or eval_shape."""
  height, width = checked.data.image_size
  image = np.zeros((2, height, width, 3), np.uint8)
  label = np.zeros((2,), np.int32)
  batch = {
    view: {'image': image, 'label': label, 'place': label}
    for view in method.views
  }
  return method.init(jax.random.key(checked.seed), batch)


def variables_before_training(method: Any, checked: Settings, mesh: Any) -> Any:
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


def save_config(workdir: str, config: Mapping[str, Any]) -> None:
  """Writes `config.json`, or checks that the one there is the same.

  Raises:
    ValueError: the run was started with another config (lists the keys).
  """
  path = pathlib.Path(workdir) / 'config.json'
  plain = json.loads(json.dumps(config))
  if path.exists():
    before, now = _flat(load_config(workdir)), _flat(plain)
    changed = sorted(
      key
      for key in before.keys() | now.keys()
      if before.get(key) != now.get(key) and not key.startswith('evals.')
    )
    if changed:
      differences = '; '.join(
        f'{key}: {before.get(key)!r} -> {now.get(key)!r}' for key in changed
      )
      raise ValueError(
        f'{path} is of a run with another config ({differences}). Resume with '
        'the same config, or use another --workdir (config.init.workdir starts '
        'from the weights of this one)'
      )
  if jax.process_index() == 0:
    writer.replace_text(path, json.dumps(plain, indent=2) + '\n')


def load_config(workdir: str) -> dict[str, Any]:
  """Reads `config.json` of a workdir.

  Raises:
    ValueError: there is none, or it is not JSON.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise ValueError(
      f'{path} does not exist: is --workdir the folder of a run?'
    )
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


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


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix[:-1]: tree}
  return {
    key: value
    for name, part in tree.items()
    for key, value in _flat(part, f'{prefix}{name}.').items()
  }
