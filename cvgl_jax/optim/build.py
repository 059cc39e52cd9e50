"""From a config section to an optimiser with torch's semantics.

Every part acts on the full parameter tree with one number per leaf, instead of
splitting the tree by group: the optimiser state mirrors the parameters, so one
sharding rule fits both, and clipping and SAM see one global norm.

Order of one update: gradients of frozen groups to zero, (SAM's climb and second
gradient), loss warm-up, clipping, coupled decay, momentum or moments, decoupled
decay, learning rate of the group.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging

from cvgl_jax.optim import sam as sam_lib
from cvgl_jax.optim import schedules

OPTIMIZERS = ('sgd', 'adamw', 'adam')
SHARPNESS = ('none', 'sam', 'asam')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """The config section `optim`; see `make`."""

  name: str = 'sgd'
  """'sgd' (decay coupled), 'adam' (decay coupled: L2), 'adamw' (decoupled)."""
  lr: float = 0.01
  momentum: float = 0.9
  """Of sgd."""
  nesterov: bool = True
  """Of sgd."""
  betas: tuple[float, float] = (0.9, 0.999)
  """Of adam and adamw."""
  eps: float = 1e-8
  """Of adam and adamw."""
  weight_decay: float = 5e-4
  """On every parameter, norms and biases too, but for `no_decay`."""
  no_decay: tuple[str, ...] = ()
  """Regular expressions, searched in the parameter path ('head/conv1/bias')."""
  groups: Mapping[str, float] = dataclasses.field(default_factory=dict)
  """Label of the method -> factor of the learning rate; 0 freezes the group:
  no update, no decay, no part in the gradient norm, as a torch parameter that
  has no gradient. Empty: one group with factor 1, whatever the labels."""
  schedule: str = 'constant'
  """'constant', 'step', 'cosine', 'linear', 'polynomial'; this and the fields
  up to warmup_counts_from, but for the third: schedules.learning_rate."""
  schedule_unit: str = 'epoch'
  count_partial_batch: bool = False
  """The schedule counts one step more an epoch than the plan makes, for code
  that counts ceil(samples / batch) and leaves the incomplete batch out. The
  decay then ends a little after the training. Needs schedule_unit 'step'."""
  end_lr: float = 0.0
  """Absolute and the same for all groups, as torch's eta_min."""
  decay_epochs: float = 0.0
  step_every_epochs: float = 0.0
  step_at_epochs: tuple[float, ...] = ()
  gamma: float = 0.1
  power: float = 1.0
  warmup_epochs: float = 0.0
  warmup_start: float = 0.0
  warmup_counts_from: int = 0
  loss_warmup_epochs: int = 0
  """Epochs in which the loss, not the learning rate, rises from 0.1 to 1."""
  clip_value: float = 0.0
  """Gradient entries are clipped to +-this; 0 is off."""
  clip_norm: float = 0.0
  """The global gradient norm is clipped to this, after clip_value; 0 is off."""
  sam: str = 'none'
  """'none', 'sam' or 'asam'. Clipping acts on the second gradient."""
  sam_rho: float = 0.05
  """Length of the climb; the references use 0.05 for sam and 2.5 for asam."""

  def __post_init__(self):
    for key, choices in (
      ('name', OPTIMIZERS),
      ('schedule', schedules.SCHEDULES),
      ('schedule_unit', schedules.UNITS),
      ('sam', SHARPNESS),
    ):
      if getattr(self, key) not in choices:
        raise ValueError(
          f'{key} is {getattr(self, key)!r}, expected one of {list(choices)}'
        )
    for key in (
      'lr',
      'weight_decay',
      'eps',
      'end_lr',
      'decay_epochs',
      'step_every_epochs',
      'warmup_epochs',
      'loss_warmup_epochs',
      'clip_value',
      'clip_norm',
      'sam_rho',
    ):
      if not getattr(self, key) >= 0:
        raise ValueError(f'{key} is {getattr(self, key)}, expected >= 0')
    if not 0 <= self.momentum < 1:
      raise ValueError(f'momentum is {self.momentum}, expected 0 <= m < 1')
    if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
      raise ValueError(f'betas are {self.betas}, expected two in [0, 1)')
    if self.name == 'sgd' and self.nesterov and not self.momentum:
      raise ValueError('nesterov needs a momentum above 0; set nesterov=False')
    if self.count_partial_batch and self.schedule_unit != 'step':
      raise ValueError("count_partial_batch needs schedule_unit='step'")
    if self.warmup_counts_from not in (0, 1):
      raise ValueError(
        f'warmup_counts_from is {self.warmup_counts_from}, expected 0 or 1'
      )
    negative = {k: v for k, v in self.groups.items() if not v >= 0}
    if negative:
      raise ValueError(f'groups: factors {negative}, expected >= 0')
    for pattern in self.no_decay:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f'no_decay: {pattern!r} is not a regular expression: {error}'
        ) from error


class ScheduleState(NamedTuple):
  count: jax.Array  # [] int32, updates done


def make(
  config: Optimizer,
  *,
  steps_per_epoch: int,
  total_epochs: float,
  labels: Callable[[str], str] | None = None,
  samples_per_epoch: int = 0,
  batch_size: int = 0,
) -> tuple[optax.GradientTransformationExtraArgs, schedules.Schedule]:
  """Builds the optimiser and the learning-rate schedule of factor 1.

  Args:
    config: the section `optim`.
    steps_per_epoch: updates in an epoch.
    total_epochs: length of the training.
    labels: parameter path such as 'model_1/model/conv1/kernel' -> label
      (`Method.label`). Needed when `config.groups` is not empty.
    samples_per_epoch: pictures of the reference view, and
    batch_size: global batch; both only for the exact loss warm-up, see
      schedules.loss_warmup.

  Returns:
    (tx, schedule). `tx.update(grads, state, params, grad_fn=f)` works for
    every optimiser, f: params -> gradients is called by SAM only. `tx.init`
    checks the groups against the parameters. `schedule(step)` is the learning
    rate of a group with factor 1.

  Raises:
    ValueError: options that contradict each other; from `tx.init`, a parameter
      whose label is not in `groups`, or a group without parameters.
  """
  if config.groups and labels is None:
    raise ValueError(
      f'groups {dict(config.groups)} need the labels of the method'
    )

  starts_at_zero = not (config.warmup_start or config.warmup_counts_from)
  per_epoch = config.schedule_unit == 'epoch'
  if config.warmup_epochs and per_epoch and starts_at_zero:
    logging.warning(
      'optim: the warm-up starts at learning rate 0 and changes per epoch, so '
      "the first epoch learns nothing; schedule_unit='step', warmup_start or "
      'warmup_counts_from=1 avoid it'
    )

  def rate(factor: float) -> schedules.Schedule:
    return schedules.learning_rate(
      config.schedule,
      config.lr * factor,
      steps_per_epoch=steps_per_epoch + config.count_partial_batch,
      total_epochs=total_epochs,
      unit=config.schedule_unit,
      end_lr=config.end_lr,
      decay_epochs=config.decay_epochs,
      step_every_epochs=config.step_every_epochs,
      step_at_epochs=config.step_at_epochs,
      gamma=config.gamma,
      power=config.power,
      warmup_epochs=config.warmup_epochs,
      warmup_start=config.warmup_start,
      warmup_counts_from=config.warmup_counts_from,
    )

  factors = {key: float(value) for key, value in config.groups.items()}
  rates = {factor: rate(factor) for factor in {1.0, *factors.values()}}

  def factor_of(path: str) -> float:
    return factors[labels(path)] if factors else 1.0

  steps = []
  if config.loss_warmup_epochs:
    warmup = schedules.loss_warmup(
      config.loss_warmup_epochs,
      steps_per_epoch=steps_per_epoch,
      samples_per_epoch=samples_per_epoch,
      batch_size=batch_size,
    )
    steps.append(_scale_by_step(lambda step, path: warmup(step)))
  if config.clip_value:
    steps.append(optax.clip(config.clip_value))
  if config.clip_norm:
    steps.append(clip_by_global_norm(config.clip_norm))
  decay = _add_decay(config.weight_decay, config.no_decay)
  if config.weight_decay and config.name != 'adamw':
    steps.append(decay)
  if config.name == 'sgd':
    if config.momentum:
      steps.append(optax.trace(config.momentum, nesterov=config.nesterov))
  else:
    b1, b2 = config.betas
    steps.append(optax.scale_by_adam(b1=b1, b2=b2, eps=config.eps))
  if config.weight_decay and config.name == 'adamw':
    steps.append(decay)
  steps.append(_scale_by_step(lambda step, path: -rates[factor_of(path)](step)))
  frozen = _zero_where(lambda path: not factor_of(path))
  tx = optax.chain(frozen, *steps, frozen)
  if config.sam != 'none':
    # `frozen` first again: frozen weights take no part in the climb.
    adaptive = config.sam == 'asam'
    tx = optax.chain(
      frozen, sam_lib.sharpness_aware(tx, rho=config.sam_rho, adaptive=adaptive)
    )
  tx = optax.with_extra_args_support(tx)

  def init(params):
    paths = [path_name(p) for p, _ in jax.tree.leaves_with_path(params)]
    _check_groups(factors, labels, paths)
    for pattern in config.no_decay:
      if not any(re.search(pattern, path) for path in paths):
        logging.warning('optim.no_decay: %r matches no parameter', pattern)
    return tx.init(params)

  return optax.GradientTransformationExtraArgs(init, tx.update), rates[1.0]


def path_name(path: tuple) -> str:
  """A tree path as 'model_1/model/conv1/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def group_of_paths(
  labels: Callable[[str], str], paths: list[str]
) -> dict[str, list[str]]:
  """Label -> the parameter paths that carry it, in the order of `paths`."""
  groups = {}
  for path in paths:
    groups.setdefault(labels(path), []).append(path)
  return groups


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """g * min(1, max_norm / (||g|| + 1e-6)), the norm over all leaves.

  Source: torch.nn.utils.clip_grad_norm_, with its 1e-6 (optax has none).
  """

  def update(updates, state, params=None):
    del params
    scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def _check_groups(
  factors: Mapping[str, float],
  labels: Callable[[str], str] | None,
  paths: list[str],
) -> None:
  """Every parameter in a group, every group with a parameter."""
  if not factors:
    return
  found = group_of_paths(labels, paths)
  for label, members in found.items():
    if label not in factors:
      raise ValueError(
        f'optim.groups: parameter {members[0]!r} (and {len(members) - 1} more) '
        f'has the label {label!r}, the groups are {sorted(factors)}; add '
        f'{label!r} with its learning-rate factor (0 freezes)'
      )
  empty = sorted(set(factors) - set(found))
  if empty:
    raise ValueError(
      f'optim.groups: no parameter has the label {empty[0]!r}; the labels of '
      f'this method are {sorted(found)}'
    )


def _scale_by_step(
  scale: Callable[[jax.Array, str], jax.Array],
) -> optax.GradientTransformation:
  """Multiplies each leaf by scale(updates done so far, path)."""

  def init(params):
    del params
    return ScheduleState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None):
    del params
    updates = jax.tree_util.tree_map_with_path(
      lambda path, u: u * scale(state.count, path_name(path)).astype(u.dtype),
      updates,
    )
    return updates, ScheduleState(optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _add_decay(
  weight_decay: float, no_decay: tuple[str, ...]
) -> optax.GradientTransformation:
  """Adds weight_decay * parameter, but where a pattern is found in the path."""

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('weight decay needs tx.update(grads, state, params)')

    def add(path, u, w):
      if any(re.search(pattern, path_name(path)) for pattern in no_decay):
        return u
      return u + weight_decay * w.astype(u.dtype)

    return jax.tree_util.tree_map_with_path(add, updates, params), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def _zero_where(
  is_frozen: Callable[[str], bool],
) -> optax.GradientTransformation:
  """Frozen leaves become zero, whatever they hold."""

  def update(updates, state, params=None):
    del params
    updates = jax.tree_util.tree_map_with_path(
      lambda path, u: jnp.zeros_like(u) if is_frozen(path_name(path)) else u,
      updates,
    )
    return updates, state

  return optax.GradientTransformation(optax.init_empty_state, update)
