"""Learning rates and loss factors as functions of the training step.

Step 0 is the first update. All functions take a Python int or a traced integer
and return a float scalar (float64 only under x64), inside and outside jit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SCHEDULES = ('constant', 'step', 'cosine', 'linear', 'polynomial')
UNITS = ('epoch', 'step')

Schedule = Callable[[int | jax.Array], jax.Array]


def learning_rate(
  name: str,
  base_lr: float,
  *,
  steps_per_epoch: int,
  total_epochs: float,
  unit: str = 'epoch',
  end_lr: float = 0.0,
  decay_epochs: float = 0.0,
  step_every_epochs: float = 0.0,
  step_at_epochs: tuple[float, ...] = (),
  gamma: float = 0.1,
  power: float = 1.0,
  warmup_epochs: float = 0.0,
  warmup_start: float = 0.0,
  warmup_counts_from: int = 0,
) -> Schedule:
  """A learning-rate schedule.

  With t = the epoch (unit 'epoch': constant inside an epoch) or the step (unit
  'step'), W the warm-up and T the end of the decay in the same unit, and
  p = (t - W) / (T - W) clipped to 0 .. 1:

    t < W        base * (s + (1 - s) * (t + warmup_counts_from) / max(1, W)),
                 s = warmup_start
    constant     base
    step         base * gamma ** (number of boundaries at or before t)
    cosine       end + (base - end) * (1 + cos(pi p)) / 2
    linear       end + (base - end) * (1 - p)
    polynomial   end + (base - end) * (1 - p) ** power

  Args:
    name: one of SCHEDULES.
    base_lr: the learning rate at its highest.
    steps_per_epoch: updates in an epoch.
    total_epochs: length of the training. A run that is shorter than its
      warm-up (a trial of one epoch) never gets to the decay.
    unit: 'epoch' (torch's schedulers stepped at the end of each epoch) or
      'step'.
    end_lr: absolute value that cosine, linear and polynomial end at.
    decay_epochs: T in epochs; 0 means total_epochs.
    step_every_epochs: 'step': a boundary every so many epochs (StepLR).
    step_at_epochs: 'step': boundaries at these epochs (MultiStepLR).
    gamma: 'step': factor at each boundary.
    power: 'polynomial': the exponent.
    warmup_epochs: W in epochs; may be fractional with unit 'step'. Boundaries
      of 'step' count from the start of the training, not from W.
    warmup_start: share of the learning rate at the start of the warm-up.
    warmup_counts_from: 0: the first value is exactly warmup_start; 1: the
      first value is one increment above it.

  Returns:
    step -> learning rate.

  Raises:
    ValueError: an unknown name or unit, or options that contradict each other.

  Source: torch.optim.lr_scheduler StepLR, MultiStepLR, CosineAnnealingLR; the
    warm-up and the polynomial of transformers' optimization.py, as
    Skyy93/Sample4Geo uses them.
  Differs: stays at the end value after T, where the originals may rise again.
  """
  _check_choice('schedule', name, SCHEDULES)
  _check_choice('schedule unit', unit, UNITS)
  if steps_per_epoch < 1:
    raise ValueError(f'steps_per_epoch is {steps_per_epoch}, expected >= 1')
  if name == 'step' and bool(step_every_epochs) == bool(step_at_epochs):
    raise ValueError(
      "schedule 'step' needs either step_every_epochs (such as 80) or "
      f'step_at_epochs (such as (40, 60)); got {step_every_epochs} and '
      f'{tuple(step_at_epochs)}'
    )
  uneven = [e for e in (step_every_epochs, *step_at_epochs) if e != int(e)]
  if uneven and unit == 'epoch':
    raise ValueError(
      f"boundaries at epochs {uneven} need schedule unit 'step'; with 'epoch' "
      'the learning rate changes only between epochs'
    )
  per_epoch = steps_per_epoch if unit == 'step' else 1
  warm = warmup_epochs * per_epoch
  last = (decay_epochs or total_epochs) * per_epoch
  if decay_epochs and decay_epochs <= warmup_epochs:
    raise ValueError(
      f'decay_epochs {decay_epochs} must be above warmup_epochs '
      f'{warmup_epochs}; use 0 to decay until the end of the training'
    )
  boundaries = tuple(round(epoch * per_epoch) for epoch in step_at_epochs)
  every = max(1, round(step_every_epochs * per_epoch))

  def schedule(step):
    step = jnp.asarray(step)
    t = step if unit == 'step' else step // steps_per_epoch
    time = t.astype(float)
    left = jnp.clip((last - time) / max(last - warm, 1e-9), 0.0, 1.0)  # 1 - p
    if name == 'constant':
      lr = base_lr
    elif name == 'step':
      passed = sum(t >= b for b in boundaries) if boundaries else t // every
      lr = base_lr * jnp.asarray(gamma, float) ** passed
    else:
      if name == 'cosine':
        # (1 + cos(pi p)) / 2, without the cancellation near p = 1.
        left = jnp.square(jnp.sin(jnp.pi / 2 * left))
      elif name == 'polynomial':
        left = left**power
      lr = end_lr + (base_lr - end_lr) * left
    if warm:
      rise = (time + warmup_counts_from) / max(1.0, warm)
      share = warmup_start + (1 - warmup_start) * rise
      lr = jnp.where(time < warm, base_lr * share, lr)
    return jnp.asarray(lr, float)

  return schedule


def loss_warmup(
  warmup_epochs: int,
  *,
  steps_per_epoch: int,
  samples_per_epoch: int = 0,
  batch_size: int = 0,
) -> Schedule:
  """The factor of the loss in a warm-up of the loss.

  In epochs < W the factor rises by 0.9 / (round(n / B) * W) before every step,
  from 0.1 and never above 1; from epoch W on it is 1. Weight decay is not
  scaled by it.

  Args:
    warmup_epochs: W; 0 gives the factor 1.
    steps_per_epoch: updates in an epoch, usually floor(n / B). When that is
      below round(n / B) the ramp ends a little under 1 and jumps at epoch W.
    samples_per_epoch: n, pictures of the reference view; 0 means
      steps_per_epoch batches.
    batch_size: B; needed with samples_per_epoch.

  Returns:
    step -> factor.

  Source: layumi/University1652-Baseline, train.py (--warm_epoch). `round` is
    Python's, half to even, as there.
  """
  if bool(samples_per_epoch) != bool(batch_size):
    raise ValueError(
      'loss_warmup needs samples_per_epoch and batch_size together; got '
      f'{samples_per_epoch} and {batch_size}'
    )
  per_epoch = steps_per_epoch
  if samples_per_epoch:
    per_epoch = max(1, round(samples_per_epoch / batch_size))
  ramp = per_epoch * warmup_epochs

  def factor(step):
    step = jnp.asarray(step)
    if not warmup_epochs:
      return jnp.ones(step.shape)
    rising = 0.1 + 0.9 * (step + 1).astype(float) / ramp
    warm = step < warmup_epochs * steps_per_epoch
    return jnp.where(warm, jnp.minimum(rising, 1.0), 1.0)

  return factor


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f'unknown {what} {value!r}; there are {list(choices)}')
