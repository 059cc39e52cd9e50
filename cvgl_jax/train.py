"""The train loop. There is no second one, and it names no method.

Order: mesh -> data -> method -> state (born sharded, restored) -> step
function -> evaluators -> loop (epochs: mining, batches).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cvgl_jax import (
  checkpoint,
  evaluate,
  experiment,
  initial_state,
  mining,
  progress,
  settings,
  sharding,
  stop,
  teacher,
  writer,
)
from cvgl_jax import state as state_lib
from cvgl_jax.data import plans, stream
from cvgl_jax.optim import build


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
    stop.Stopped: SIGTERM, Ctrl-C or preemption; the run resumes with the same
      command. `stop.StoppedAtEnd`: nothing is left to resume.
  """
  checked = experiment.check(config)
  options = checked.train
  method = experiment.make_method(checked)

  # Mesh, then data: everything that can be wrong is found before compiling.
  mesh = sharding.make_mesh()
  sharding.check_batch_size(
    options.batch_size, mesh, micro_batches=options.micro_batches
  )
  data = experiment.training_data(checked, method.views)
  plan = experiment.make_plan(checked)
  steps_per_epoch = plan.steps_per_epoch(data.splits, options.batch_size)
  total_steps = steps_per_epoch * options.epochs
  miner = mining.Miner(
    plan, data.splits, batch_size=options.batch_size, seed=checked.seed
  )
  method = experiment.make_method(checked, num_classes=len(data.labels))
  if 0 < getattr(method, 'num_classes', 0) < len(data.labels):
    raise ValueError(
      f'config.method.num_classes: {method.num_classes} is less than the '
      f'{len(data.labels)} training places of {checked.data.names}; use 0'
    )
  taught = teacher.load(method, checked)
  settings.save_config(workdir, settings.with_classes(config, method))
  evaluators = experiment.make_evaluators(checked)
  experiment.check_splits(checked, evaluators)
  best_metric = experiment.best_metric(checked)

  # State, born sharded; restored where the workdir has checkpoints.
  tx, learning_rate = build.make(
    checked.optim,
    labels=method.label,
    steps_per_epoch=steps_per_epoch,
    total_epochs=options.epochs,
    # The reference's ramp counts pictures of the shortest view; a plan that
    # pairs has no such view, and the ramp then counts steps.
    samples_per_epoch=0 if plan.paired else min(map(len, data.splits.values())),
    batch_size=0 if plan.paired else options.batch_size,
  )
  make, shapes, shardings = initial_state.maker(
    method, tx, checked, mesh, miner=miner
  )
  sharding.check_memory(shapes, shardings, mesh)
  facts = _facts(data, steps_per_epoch, mesh)
  facts['teacher'] = teacher.fingerprint(taught)
  checkpoints = checkpoint.Checkpoints(workdir)
  found = checkpoints.restore_latest(
    shapes.replace(teacher=None), shardings.replace(teacher=None)
  )
  state = make() if found is None else found[0]
  state = state.replace(teacher=teacher.place(taught, shardings.teacher))
  del taught  # one copy of it is enough
  first_step = int(state.step)
  owed = False  # an evaluation that the stopped run did not get to
  if found is not None:
    checkpoint.check_facts(found[1], facts)
    owed = found[1]['owes_evaluation']
    logging.info('resumed at step %d', first_step)

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
  log = writer.Writer(
    workdir,
    resume_step=None if found is None else first_step,
    repeats_evaluation=owed,
  )
  report = progress.Progress(
    total_steps, options.batch_size * len(plans.slots(plan))
  )
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
    report.restart()
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
  with contextlib.ExitStack() as closing:
    stopper = stop.StopSignal()
    for part in (stopper, log, checkpoints):  # closed in the reverse order
      closing.callback(part.close)
    if evaluators and (owed or (options.eval_at_start and first_step == 0)):
      metrics = evaluate_now(state)
    pending = None
    for epoch in range(first_step // steps_per_epoch, options.epochs):
      epoch_start = epoch * steps_per_epoch
      if epoch_start >= first_step:  # else its neighbours were restored
        state = miner.mine(
          state, epoch, embedder.with_variables(_variables(state))
        )
      done = max(epoch_start, first_step)
      batches = epoch_batches(
        checked,
        data,
        plans.slots(plan),
        miner.rows(state, epoch),
        epoch=epoch,
        start_step=done - epoch_start,
        mesh=mesh,
      )
      for step, batch in enumerate(batches, done + 1):
        state, step_metrics = train_step(state, batch)
        if step == first_step + 1:
          report.restart()  # compilation is not speed
        # Fetched one step late: the device is never waited for.
        if pending is not None:
          report.add(*pending)
        pending = (step, step_metrics)
        at = options.due(step, steps_per_epoch)
        stopping = stopper.requested(step)
        if at or stopping or step == epoch_start + steps_per_epoch:
          # Whatever follows, the loss is checked before.
          report.add(*pending)
          pending = None
        if 'log' in at:
          log.write(
            step,
            report.line(step)
            | {
              'epoch': step / steps_per_epoch,
              'train/lr': float(learning_rate(step - 1)),
            },
          )
        # A run that is asked to stop has seconds: it saves and evaluates later.
        owed = stopping and bool(evaluators) and 'evaluate' in at
        score = None
        if evaluators and 'evaluate' in at and not stopping:
          metrics = evaluate_now(state)
          score = metrics[best_metric]
        if 'save' in at or stopping:
          facts |= {'owes_evaluation': owed}
          checkpoints.save(step, state.replace(teacher=None), facts, score)
        if stopping and (step < total_steps or owed):
          raise stop.Stopped(
            f'stopped at step {step} of {total_steps} and saved; the same '
            'command resumes'
          )
  if first_step >= total_steps:
    logging.info('nothing to do: step %d of %d', first_step, total_steps)
  # A signal during the last evaluation finds no step left to stop at.
  if stopper.asked:
    raise stop.StoppedAtEnd(
      f'stopped with all {total_steps} steps done; the same command goes on'
    )
  return metrics


def epoch_batches(
  checked: settings.Settings,
  data: experiment.TrainingData,
  views: tuple[str, ...],
  rows: np.ndarray,
  *,
  epoch: int,
  start_step: int,
  mesh: jax.sharding.Mesh,
) -> Iterator[Any]:
  """Batches on the devices, from step `start_step` of an epoch to its end."""
  for batch in stream.batches(
    data.splits,
    rows,
    views=views,
    load=experiment.make_loader(checked, train=True),
    labels=data.labels,
    seed=checked.seed,
    epoch=epoch,
    start_step=start_step,
    process=(jax.process_index(), jax.process_count()),
    threads=checked.data.threads,
  ):
    yield sharding.to_devices(batch, mesh)


def _variables(state: state_lib.State) -> dict[str, Any]:
  """What is evaluated: the averaged parameters where there are any."""
  params = state.params if state.ema is None else state.ema
  return {'params': params, **state.mutable}


def _facts(
  data: experiment.TrainingData, steps_per_epoch: int, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """What a resumed run must, or should, find again."""
  return {
    'steps_per_epoch': steps_per_epoch,
    'pictures': {view: len(split) for view, split in data.splits.items()},
    'devices': mesh.size,
  }
