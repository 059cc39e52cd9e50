"""The train loop. There is no second one, and it names no method.

Order: mesh -> data -> method -> state (born sharded, restored) -> step
function -> evaluators -> loop.
"""

import collections
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from cvgl_jax import checkpoint, evaluate, experiment, sharding, writer
from cvgl_jax import state as state_lib
from cvgl_jax.data import stream
from cvgl_jax.optim import build


class Stopped(Exception):
  """The run was asked to stop (SIGTERM, preemption) and saved its state."""


def train(config: Mapping[str, Any], workdir: str) -> dict[str, float]:
  """Trains, or resumes, the run of a config in a workdir.

  Args:
    config: see `configs/base.py`.
    workdir: folder of the run: config.json, checkpoints/, metrics.jsonl,
      events/, eval/.

  Returns:
    Metrics of the last evaluation.

  Raises:
    ValueError: a config that cannot work; before anything is compiled.
    FloatingPointError: the loss or a feature is not finite.
    OSError: a checkpoint could not be written.
    Stopped: SIGTERM or preemption; the run resumes with the same command.
  """
  checked = experiment.settings(config)
  options = checked.train
  method = experiment.make_method(checked)

  # Mesh, then data: everything that can be wrong is found before compiling.
  mesh = sharding.make_mesh()
  sharding.check_batch_size(
    options.batch_size, mesh, micro_batches=options.micro_batches
  )
  data = experiment.training_data(checked, method.views)
  plan = experiment.make_plan(checked)
  steps_per_epoch = plan.steps_per_epoch(data.places, options.batch_size)
  total_steps = steps_per_epoch * options.epochs
  method = experiment.make_method(checked, num_classes=len(data.labels))
  config = _with_classes(config, method)
  experiment.save_config(workdir, config)
  evaluators = experiment.make_evaluators(checked)

  # State, born sharded; restored where the workdir has checkpoints.
  tx, learning_rate = build.make(
    checked.optim,
    labels=method.label,
    steps_per_epoch=steps_per_epoch,
    total_epochs=options.epochs,
    samples_per_epoch=len(data.splits[plan.views[0]]),
    batch_size=options.batch_size,
  )
  state, shardings = make_state(method, tx, checked, mesh)
  checkpoints = checkpoint.Checkpoints(workdir)
  found = checkpoints.restore_latest(jax.eval_shape(lambda: state), shardings)
  loop = {'steps_per_epoch': steps_per_epoch}
  if found is not None:
    state = found[0]
    _check_same_data(found[1], loop)
    logging.info('resumed at step %d', int(state.step))
  first_step = int(state.step)

  # The step function, donated: one copy of the state in memory.
  train_step = jax.jit(
    state_lib.make_train_step(
      method,
      tx,
      augment=experiment.make_augment(checked),
      seed=checked.seed,
      micro_batches=options.micro_batches,
      ema_decay=options.ema_decay or None,
    ),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )

  embedder = evaluate.make_embedder(checked, method, _variables(state), mesh)
  log = writer.Writer(workdir, resume_step=first_step)
  progress = Progress(total_steps, options.batch_size * len(method.views))
  stop = StopSignal()
  metrics = {}

  def evaluate_now(state: state_lib.State) -> dict[str, float]:
    step = int(state.step)
    result = evaluate.run(
      evaluators,
      embedder.with_variables(_variables(state)),
      checked,
      workdir=workdir,
      step=step,
    )
    log.write(step, {f'eval/{name}': value for name, value in result.items()})
    return result

  logging.info(
    '%d places, %d steps an epoch, %d steps in all, %.2f M parameters, %d %s',
    len(data.labels),
    steps_per_epoch,
    total_steps,
    sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
    mesh.size,
    mesh.devices.flat[0].platform,
  )
  if evaluators and options.eval_at_start and first_step == 0:
    metrics = evaluate_now(state)

  try:
    pending = None
    batches = epochs(checked, data, plan, first_step, steps_per_epoch, mesh)
    for step, batch in enumerate(batches, first_step + 1):
      state, step_metrics = train_step(state, batch)
      # Fetched one step late: the device is never waited for.
      if pending is not None:
        progress.add(*pending)
      pending = (step, step_metrics)
      at = _events(
        step, steps_per_epoch, total_steps, options, bool(evaluators)
      )
      stopping = stop.requested(step)
      if at or stopping:
        # Nothing is saved, evaluated or logged before its loss is checked.
        progress.add(*pending)
        pending = None
      if 'log' in at:
        log.write(
          step,
          progress.report(step)
          | {
            'epoch': step / steps_per_epoch,
            'train/lr': float(learning_rate(step - 1)),
          },
        )
      score = None
      if 'evaluate' in at:
        metrics = evaluate_now(state)
        score = _score(metrics, options.best_metric)
        progress.restart()
      if 'save' in at or stopping:
        checkpoints.save(step, state, loop, score)
      if stopping and step < total_steps:
        raise Stopped(
          f'stopped at step {step} of {total_steps} and saved; the same command '
          'resumes'
        )
  finally:
    stop.close()
    log.close()
    checkpoints.close()
  if first_step >= total_steps:
    logging.info('nothing to do: step %d of %d', first_step, total_steps)
  return metrics


def make_state(
  method: Any,
  tx: Any,
  checked: experiment.Settings,
  mesh: jax.sharding.Mesh,
) -> tuple[state_lib.State, Any]:
  """The state before the first step, and where its arrays live."""
  make = lambda variables: state_lib.make_state(
    variables, tx, ema=checked.train.ema_decay > 0
  )
  shapes = jax.eval_shape(
    lambda: make(experiment.init_variables(method, checked))
  )
  shardings = sharding.state_sharding(
    shapes,
    mesh,
    fsdp=checked.train.fsdp,
    fsdp_min_size=checked.train.fsdp_min_size,
  )
  if dataclasses.astuple(checked.init) == dataclasses.astuple(
    experiment.Init()
  ):
    init = lambda: make(experiment.init_variables(method, checked))
    return jax.jit(init, out_shardings=shardings)(), shardings
  variables = experiment.variables_before_training(method, checked, mesh)
  return jax.jit(make, out_shardings=shardings)(variables), shardings


def epochs(
  checked: experiment.Settings,
  data: experiment.TrainingData,
  plan: Any,
  first_step: int,
  steps_per_epoch: int,
  mesh: jax.sharding.Mesh,
) -> Iterator[Any]:
  """Batches on the devices, from `first_step` (0-based) to the end."""
  load = experiment.make_loader(checked, train=True)
  for epoch in range(first_step // steps_per_epoch, checked.train.epochs):
    rows = plan.rows(
      data.places,
      batch_size=checked.train.batch_size,
      seed=checked.seed,
      epoch=epoch,
    )
    start = max(first_step - epoch * steps_per_epoch, 0)
    for batch in stream.batches(
      data.splits,
      rows,
      views=plan.views,
      load=load,
      labels=data.labels,
      seed=checked.seed,
      epoch=epoch,
      start_step=start,
      process=(jax.process_index(), jax.process_count()),
      threads=checked.data.threads,
    ):
      yield sharding.to_devices(batch, mesh)


def _variables(state: state_lib.State) -> dict[str, Any]:
  """What is evaluated: the averaged parameters where there are any."""
  params = state.params if state.ema is None else state.ema
  return {'params': params, **state.mutable}


class Progress:
  """Means of the step metrics, throughput and the time left."""

  def __init__(self, total_steps: int, pictures_per_step: int):
    self._total = total_steps
    self._pictures = pictures_per_step
    self._sums = collections.defaultdict(float)
    self._steps = 0
    self.restart()

  def restart(self) -> None:
    """Starts the clock anew (an evaluation is not training time)."""
    self._start, self._timed = time.monotonic(), 0

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Fetches the metrics of one step.

    Raises:
      FloatingPointError: one of them is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
      if not np.isfinite(value):
        raise FloatingPointError(
          f'step {step}: train/{name} is {value}. Stopped; the last checkpoint '
          'is from before this step. Lower config.optim.lr, use clip_norm, or '
          'look at the pictures of this step'
        )
      self._sums[name] += value
    self._steps += 1
    self._timed += 1

  def report(self, step: int) -> dict[str, float]:
    """Logs one line; returns the means since the last one."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    speed = self._timed / seconds
    means = {f'train/{k}': v / self._steps for k, v in self._sums.items()}
    left = (self._total - step) / max(speed, 1e-9)
    logging.info(
      'step %d/%d  %.1f pictures/s  loss %.4f  time left %d:%02d',
      step,
      self._total,
      speed * self._pictures,
      means['train/loss'],
      *divmod(round(left), 60),
    )
    self._sums.clear()
    self._steps = 0
    self.restart()
    return means | {'train/pictures_per_s': speed * self._pictures}


class StopSignal:
  """SIGTERM, or preemption of any host, as a question that all hosts answer
  alike."""

  def __init__(self):
    self._asked = threading.Event()
    self._previous = None
    if (
      jax.process_count() == 1
      and threading.current_thread() is threading.main_thread()
    ):
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._asked.set()
      )

  def requested(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked.is_set()

  def close(self) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


def _events(
  step: int,
  steps_per_epoch: int,
  total_steps: int,
  options: experiment.Train,
  has_evaluators: bool,
) -> set[str]:
  """What is due after a step: 'log', 'evaluate', 'save'."""
  last = step == total_steps
  due = lambda every: every > 0 and step % every == 0
  due_epoch = lambda every: every > 0 and due(every * steps_per_epoch)
  events = set()
  if last or due(options.log_every_steps):
    events.add('log')
  evaluating = has_evaluators and options.eval_every_epochs > 0
  if evaluating and (last or due_epoch(options.eval_every_epochs)):
    events |= {'evaluate', 'save'}
  if (
    last
    or due_epoch(options.save_every_epochs)
    or due(options.save_every_steps)
  ):
    events.add('save')
  return events


def _check_same_data(saved: Mapping[str, int], now: Mapping[str, int]) -> None:
  if saved != now:
    raise ValueError(
      f'the checkpoint was written with {saved}, the data now give {now}: the '
      'data set changed since; resume with the old one or use another --workdir'
    )


def _score(metrics: Mapping[str, float], best_metric: str) -> float:
  """The metric that picks the best checkpoint."""
  if not best_metric:
    return next(v for name, v in metrics.items() if name.endswith('/R@1'))
  if best_metric not in metrics:
    raise ValueError(
      f'config.train.best_metric: no {best_metric!r}; there are {list(metrics)}'
    )
  return metrics[best_metric]


def _with_classes(config: Mapping[str, Any], method: Any) -> dict[str, Any]:
  """The config with the number of places that the data gave."""
  if not hasattr(method, 'num_classes'):
    return dict(config)
  section = dict(config['method']) | {'num_classes': method.num_classes}
  return dict(config) | {'method': section}
