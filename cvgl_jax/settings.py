"""The checked form of a config, and `config.json` of a run.

`configs/base.py` lists the same keys with the same defaults, as plain values;
a test keeps the two equal.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from cvgl_jax import writer
from cvgl_jax.optim import build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Which pictures, and how they are read.

  Attributes:
    dir: folder of the built data sets.
    names: data sets below `dir`; several are joined (disjoint place ids).
    train_split: prefix of the training splits (`<train_split>_<view>`).
    image_size: (height, width) in pixels that pictures are resized to; what the
      network sees unless `polar_size` or `fov_deg` change it.
    view_sizes: view -> (height, width) instead of `image_size`.
    view_aspects: view -> width / height that the stored pictures must have
      (within a tenth); a picture that is no whole panorama is refused. 0, or a
      view that is not named: any.
    middle_half: views of which only the rows H//4 : 3 (H//4) are used (the
      panoramas of CVACT, which reach from straight down to straight up).
    cut_rows: view -> pixels that are cut off at the top and at the bottom.
    resize: 'pillow_bicubic', 'pillow_bilinear' or 'opencv_linear' (half-pixel
      centres, no antialiasing), each bit for bit what a reference does.
    train_resize: '' for the same in training, or 'area' (faster), or any of
      `resize`.
    autoaugment: 'none', 'imagenet' or 'reid', on the CPU before the resize.
    jpeg_p: probability that a training picture is compressed as JPEG and read
      again before the resize.
    jpeg_quality: (least, most) quality of that.
    polar_size: (height, width) of the polar transform of satellite pictures, in
      training and evaluation; () for none.
    fov_deg: field of view that is left of a panorama of unknown orientation, in
      training and evaluation; 360: only the orientation is unknown; 0: off.
    fov_seed: of the orientation that every query has in evaluation.
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
  view_sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  view_aspects: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  middle_half: tuple[str, ...] = ()
  cut_rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  resize: str = 'pillow_bicubic'
  train_resize: str = ''
  autoaugment: str = 'none'
  jpeg_p: float = 0.0
  jpeg_quality: tuple[int, int] = (90, 100)
  polar_size: tuple[int, ...] = ()
  fov_deg: float = 0.0
  fov_seed: int = 0
  drone_views_per_place: int = 0
  threads: int = 0
  eval_batch_size: int = 64

  def __post_init__(self):
    if len(self.image_size) != 2 or min(self.image_size) < 1:
      raise ValueError(
        f'image_size: got {self.image_size}, expected (height, width), on the '
        "command line --config.data.image_size='(256, 256)'"
      )
    if self.threads < 0 or self.eval_batch_size < 1:
      raise ValueError(
        f'threads {self.threads} must be >= 0, eval_batch_size '
        f'{self.eval_batch_size} >= 1'
      )


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
class Teacher:
  """Another network of the same shape that a method learns from, if it does.

  Attributes:
    workdir: its run.
    checkpoint: of that run: 'latest', 'best' or a step.
    weights: or a torch file of it, in the reference's names, as in `Init`.
  """

  workdir: str = ''
  checkpoint: str = 'latest'
  weights: str = ''

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
    best_metric: '<evaluator>/<metric>', higher is better, that picks the best
      checkpoint; '' where there is one evaluator: its first metric.
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
    for name, least in (
      ('batch_size', 1),
      ('micro_batches', 1),
      ('log_every_steps', 1),
      ('eval_every_epochs', 0),
      ('save_every_steps', 0),
      ('save_every_epochs', 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(f'{name}: {getattr(self, name)} must be >= {least}')
    if self.epochs < 0 or not 0 <= self.ema_decay < 1:
      raise ValueError(
        f'epochs {self.epochs} must be >= 0, ema_decay {self.ema_decay} in [0, 1)'
      )

  def due(self, step: int, steps_per_epoch: int) -> set[str]:
    """What follows step `step` (from 1): of 'log', 'evaluate', 'save'."""
    last = step == self.epochs * steps_per_epoch
    every = lambda n: last or (n > 0 and step % n == 0)
    events = set()
    if every(self.log_every_steps):
      events.add('log')
    if self.eval_every_epochs and every(
      self.eval_every_epochs * steps_per_epoch
    ):
      events |= {'evaluate', 'save'}
    by_epoch = every(self.save_every_epochs * steps_per_epoch)
    if by_epoch or every(self.save_every_steps):
      events.add('save')
    return events


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
  teacher: Teacher = dataclasses.field(default_factory=Teacher)
  optim: build.Optimizer
  train: Train = dataclasses.field(default_factory=Train)
  evals: Mapping[str, Any]


# What may differ when a run is resumed: it cannot change the parameters.
NEUTRAL = (
  'evals.',
  'data.dir',
  'data.threads',
  'data.eval_batch_size',
  'data.view_aspects.',
  'init.',
  'teacher.',  # a resumed run compares the teacher's weights, not its place
  'train.log_every_steps',
  'train.eval_',
  'train.save_',
  'train.best_metric',
)


def check_config(workdir: str, config: Mapping[str, Any]) -> None:
  """Compares a config with `config.json`, where there is one; writes nothing.

  Args:
    workdir: of the run.
    config: of `with_classes`.

  Raises:
    ValueError: the run was started with another config (lists the keys).
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    return
  before, now = (
    traverse_util.flatten_dict(tree, sep='.')
    for tree in (load_config(workdir), _tuples(config))
  )
  changed = sorted(
    key
    for key in before.keys() | now.keys()
    if before.get(key) != now.get(key) and not key.startswith(NEUTRAL)
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


def save_config(workdir: str, config: Mapping[str, Any]) -> None:
  """`check_config`, then writes `config.json`."""
  check_config(workdir, config)
  if jax.process_index() == 0:
    path = pathlib.Path(workdir) / 'config.json'
    writer.replace_text(path, json.dumps(config, indent=2) + '\n')


def with_classes(config: Mapping[str, Any], method: Any) -> dict[str, Any]:
  """A config with the number of training places that the data gave.

  Args:
    config: of a run.
    method: of it, told that number where it asks for one.
  """
  if not hasattr(method, 'num_classes'):
    return dict(config)
  section = dict(config['method']) | {'num_classes': method.num_classes}
  return dict(config) | {'method': section}


def save_config_if_absent(workdir: str, config: Mapping[str, Any]) -> None:
  """For a workdir that only evaluates: the report and `embed` read it."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists() and jax.process_index() == 0:
    writer.replace_text(path, json.dumps(config, indent=2) + '\n')


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
    return _tuples(json.loads(path.read_text()))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def _tuples(tree: Any) -> Any:
  """Lists as tuples: JSON knows no tuples, a config no lists."""
  if isinstance(tree, Mapping):
    return {key: _tuples(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return tuple(_tuples(value) for value in tree)
  return tree
