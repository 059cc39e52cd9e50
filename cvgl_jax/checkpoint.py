"""Checkpoints of a run: the latest two and the best, written atomically.

A checkpoint holds the train state and a small JSON of loop state (mined
neighbours, best metric, ...). It appears under its final name only when
complete; one that was damaged later is named, set aside and the one before it
is used. Nothing is ever deleted except by the keeping rule.
"""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

KEEP_LATEST = 2
METRIC = 'metric'


class Checkpoints:
  """The `checkpoints/` folder of one run.

  Args:
    workdir: the run's folder.

  The keeping rule is the two latest (so that there is one to fall back to) and
  the best by the metric given to `save`. Orbax's own `max_to_keep` with
  `best_fn` would delete the latest.
  """

  def __init__(self, workdir: str):
    self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._open()

  def _open(self) -> None:
    keep = ocp.checkpoint_managers
    metric = lambda metrics: metrics[METRIC]
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=metric,
        preservation_policy=keep.AnyPreservationPolicy(
          [
            keep.LatestN(KEEP_LATEST),
            keep.BestN(
              get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self, step: int, state: Any, loop: dict, metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint; returns before it is on disk.

    Args:
      step: of the state; a step that is already saved is left as it is.
      state: tree of arrays.
      loop: JSON-serialisable loop state.
      metric: the higher the better; None does not take part in "best".

    Raises:
      OSError: this or the previous checkpoint could not be written (disk full,
        no permission); names the folder and the free space. Older checkpoints
        are intact.
    """
    if step in self._manager.all_steps():
      return
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(loop)
        ),
        metrics=None if metric is None else {METRIC: float(metric)},
      )
    except Exception as error:
      raise self._write_error(step, error) from error

  def wait(self) -> None:
    """Blocks until the started checkpoint is on disk. Raises: as `save`."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._write_error(None, error) from error

  def close(self) -> None:
    """Waits and closes. Raises: as `save`."""
    self.wait()
    self._manager.close()

  def restore_latest(
    self, shapes: Any, shardings: Any
  ) -> tuple[Any, dict] | None:
    """The newest checkpoint that can be read.

    Args:
      shapes: tree of shapes of the state, from `jax.eval_shape`.
      shardings: where each array shall live (any mesh, not only the saver's).

    Returns:
      (state, loop) or None where there is no checkpoint.

    Raises:
      ValueError: checkpoints exist but none fits the state or can be read.
    """
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      shardings,
    )
    damaged = {}
    for step in reversed(self.steps()):
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(target), loop=ocp.args.JsonRestore()
          ),
        )
      except Exception as error:
        damaged[step] = error
        logging.warning(
          'checkpoint %s cannot be read and is skipped: %s',
          self.folder / str(step),
          _first_line(error),
        )
        continue
      self._set_aside(list(damaged))
      return restored.state, restored.loop
    if damaged:
      reasons = '\n'.join(
        f'  {self.folder / str(step)}: {_first_line(error)}'
        for step, error in damaged.items()
      )
      raise ValueError(
        'no checkpoint of this run can be read with this config; start afresh '
        f'in another --workdir, or repair:\n{reasons}'
      )
    return None

  def _set_aside(self, steps: list[int]) -> None:
    """Renames damaged checkpoints so that their step can be saved again."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        source = self.folder / str(step)
        name, n = f'damaged-{step}', 1
        while (self.folder.parent / name).exists():
          name, n = f'damaged-{step}-{n}', n + 1
        source.rename(self.folder.parent / name)
        logging.warning('%s was set aside as %s', source, name)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices('checkpoints set aside')
    self._manager.close()
    self._open()

  def _write_error(self, step: int | None, error: Exception) -> OSError:
    where = self.folder if step is None else self.folder / str(step)
    free = shutil.disk_usage(self.folder.parent).free
    return OSError(
      f'could not write checkpoint {where}: {_first_line(error)} '
      f'({free / 2**20:.0f} MiB free there). Older checkpoints are intact: make '
      'room or fix permissions, then run the same command again to resume'
    )


def choose(workdir: str, which: str) -> int:
  """The step that 'latest', 'best' or a number means.

  Raises:
    ValueError: no checkpoints, or no such step (lists those that exist).
  """
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not folder.is_dir():
    raise ValueError(f'{folder} does not exist: nothing was trained there yet')
  checkpoints = Checkpoints(workdir)
  steps = checkpoints.steps()
  best = checkpoints._manager.best_step()
  checkpoints.close()
  if not steps:
    raise ValueError(f'{folder} has no complete checkpoint')
  if which == 'latest':
    return steps[-1]
  if which == 'best':
    return steps[-1] if best is None else best
  if which.isdigit() and int(which) in steps:
    return int(which)
  raise ValueError(
    f'--checkpoint={which}: use latest, best or one of {steps} (in {folder})'
  )


def restore_variables(
  workdir: str, step: int, shapes: Any, *, use_ema: bool = False
) -> dict[str, Any]:
  """Variables of a method out of a checkpoint, as host arrays.

  Args:
    workdir: the run's folder.
    step: see `choose`.
    shapes: {'params': ..., other collections...}, from `jax.eval_shape` of
      `method.init`.
    use_ema: take the moving average of the parameters.

  Returns:
    Tree of NumPy arrays with the structure of `shapes`.
  """
  path = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step) / 'state'
  shapes = dict(shapes)
  params = shapes.pop('params')
  name = 'ema' if use_ema else 'params'
  wanted = jax.tree.map(
    lambda x: np.empty(x.shape, x.dtype), {name: params, 'mutable': shapes}
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    try:
      restored = reader.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=jax.tree.map(
            lambda x: ocp.RestoreArgs(restore_type=np.ndarray), wanted
          ),
          partial_restore=True,
        ),
      )
    except Exception as error:
      raise ValueError(
        f'checkpoint {path.parent} cannot be read with this config: '
        f'{_first_line(error)}'
      ) from error
  return {'params': restored[name], **restored['mutable']}


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return f'{type(error).__name__}: {lines[0][:300]}'
