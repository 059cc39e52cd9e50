"""Checkpoints of a run: the latest two and the best, written atomically.

A checkpoint holds the train state and a small JSON of loop state (mined
neighbours, best metric, ...). It appears under its final name only when
complete. A checksum of every array is stored with it and compared when it is
read, so one that was damaged later is named, set aside (renamed to
`damaged-<step>` beside `checkpoints/`) and the one before it is used.

No complete checkpoint is ever deleted except by the keeping rule, damaged ones
included. What a killed process left half-written is removed when the run
starts again.
"""

import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from cvgl_jax import integrity

KEEP_LATEST = 2
METRIC = 'metric'


class Checkpoints:
  """The `checkpoints/` folder of one run.

  Args:
    workdir: the run's folder.
    read_only: look, but write, rename and remove nothing: for a run that may
      be training in another process, or lies in a folder without permission.

  The keeping rule is the two latest (so that there is one to fall back to) and
  the best by the metric given to `save`; of equal ones, the latest. Orbax's own
  `max_to_keep` with `best_fn` would delete the latest.

  Raises:
    OSError: the folder cannot be written (not with `read_only`).
  """

  def __init__(self, workdir: str, *, read_only: bool = False):
    self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._read_only = read_only
    if not read_only:
      _on_first_process(self._clean)
    self._open()

  def _open(self) -> None:
    if self._read_only:
      # Lightweight: a damaged file of metrics must not stop the opening.
      options = ocp.CheckpointManagerOptions(
        read_only=True, lightweight_initialize=True
      )
    else:
      keep = ocp.checkpoint_managers
      metric = lambda metrics: metrics[METRIC]
      best = keep.BestN(
        get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
      )
      options = ocp.CheckpointManagerOptions(
        best_fn=metric,
        preservation_policy=keep.AnyPreservationPolicy(
          [keep.LatestN(KEEP_LATEST), best]
        ),
      )
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def _clean(self) -> None:
    """Removes half-written checkpoints, sets damaged metrics aside."""
    # The names that Orbax gives to what is not complete.
    for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path)
      logging.info('removed %s, left half-written by a killed process', path)
    for path in sorted(self.folder.glob('[0-9]*')):
      try:
        _metric(path)
      except ValueError as error:
        logging.warning('%s', error)
        self._rename_aside(path)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._metrics())

  def best_step(self) -> int | None:
    """The complete checkpoint with the highest metric; of equal ones the latest.

    None where no checkpoint has a metric.
    """
    metrics = {k: v for k, v in self._metrics().items() if v is not None}
    return max(metrics, key=lambda k: (metrics[k], k), default=None)

  def _metrics(self) -> dict[int, float | None]:
    """The metric of every checkpoint, without damaged ones."""
    metrics = {}
    for step in self._manager.all_steps():
      try:
        metrics[step] = _metric(self.folder / str(step))
      except ValueError as error:
        logging.warning('%s; it is skipped', error)
    return metrics

  def save(
    self, step: int, state: Any, loop: dict, metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint; returns before it is on disk.

    Args:
      step: of the state; a step that is already saved is left as it is.
      state: tree of arrays.
      loop: JSON-serialisable loop state.
      metric: the higher the better; None does not take part in "best", nor does
        one that is not finite (a warning is logged).

    Raises:
      OSError: this or the previous checkpoint could not be written (disk full,
        no permission); names the folder and the free space. Older checkpoints
        are intact.
    """
    if step in self._manager.all_steps():
      return
    if metric is not None and not math.isfinite(metric):
      logging.warning('step %d: its metric is %s, never the best', step, metric)
      metric = None
    signed = integrity.sign(state, loop)
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          loop=ocp.args.JsonSave(signed),
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
    """The newest checkpoint that every process can read, with right checksums.

    Args:
      shapes: tree of shapes of the state, from `jax.eval_shape`.
      shardings: where each array shall live (any mesh, not only the saver's).

    Returns:
      (state, loop) or None where there is no checkpoint.

    Raises:
      ValueError: checkpoints exist but none fits the state or can be read.
      OSError: a damaged checkpoint could not be set aside.
    """
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      shardings,
    )
    damaged = {}
    for step in reversed(self.steps()):
      found, error = self._restore(step, target)
      if error is None:
        self._set_aside(damaged)
        return found
      damaged[step] = error
      logging.warning(
        'checkpoint %s cannot be read and is skipped: %s',
        self.folder / str(step),
        _first_line(error),
      )
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

  def _restore(
    self, step: int, target: Any
  ) -> tuple[tuple[Any, dict] | None, Exception | None]:
    """((state, loop), None) or (None, error); all processes agree which."""
    error, elsewhere = None, RuntimeError('another process cannot read it')
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target), loop=ocp.args.JsonRestore()
        ),
      )
    except Exception as caught:
      error = caught
    # Before the checksums, which all processes compute together.
    if not _all_processes(error is None):
      return None, error or elsewhere
    try:
      loop = integrity.verify(restored.state, restored.loop)
    except Exception as caught:
      error = caught
    if not _all_processes(error is None):
      return None, error or elsewhere
    return (restored.state, loop), None

  def _set_aside(self, steps: Iterable[int]) -> None:
    """Renames damaged checkpoints so that their step can be saved again."""
    paths = [self.folder / str(step) for step in steps]
    if not paths:
      return
    _on_first_process(lambda: [self._rename_aside(path) for path in paths])
    self._manager.close()
    self._open()

  def _rename_aside(self, source: pathlib.Path) -> None:
    name, n = f'damaged-{source.name}', 1
    while (self.folder.parent / name).exists():
      name, n = f'damaged-{source.name}-{n}', n + 1
    source.rename(self.folder.parent / name)
    logging.warning('%s was set aside as %s', source, name)

  def _write_error(self, step: int | None, error: Exception) -> OSError:
    where = self.folder if step is None else self.folder / str(step)
    free = shutil.disk_usage(self.folder.parent).free
    return OSError(
      f'could not write checkpoint {where}: {_first_line(error)} '
      f'({free / 2**20:.0f} MiB free there). Older checkpoints are intact: make '
      'room or fix permissions, then run the same command again to resume'
    )


def choose(workdir: str, which: str) -> int:
  """The step that 'latest', 'best' or a number means. Writes nothing.

  'best' is the latest where no checkpoint has a metric.

  Raises:
    ValueError: no checkpoints, or no such step (lists those that exist).
  """
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not folder.is_dir():
    raise ValueError(f'{folder} does not exist: nothing was trained there yet')
  checkpoints = Checkpoints(workdir, read_only=True)
  steps = checkpoints.steps()
  best = checkpoints.best_step() if which == 'best' else None
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
  workdir: str, step: int, shapes: Any, *, use_ema: bool | None = None
) -> dict[str, Any]:
  """Variables of a method out of a checkpoint, as host arrays.

  Args:
    workdir: the run's folder.
    step: see `choose`.
    shapes: {'params': ..., other collections...}, from `jax.eval_shape` of
      `method.init`.
    use_ema: take the moving average of the parameters. None: where the
      checkpoint has one, which is what the run itself evaluates.

  Returns:
    Tree of NumPy arrays with the structure of `shapes`.

  Raises:
    ValueError: the checkpoint is missing or damaged, is of another network
      (lists what is missing, of another shape or too much), or has no moving
      average and `use_ema` is True.
  """
  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step)
  with (
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
    ocp.Checkpointer(ocp.JsonCheckpointHandler()) as json_reader,
  ):
    try:
      saved = reader.metadata(folder / 'state').item_metadata.tree
    except Exception as error:
      raise ValueError(
        f'checkpoint {folder} is missing or damaged: {_first_line(error)}'
      ) from error
    has_ema = bool(jax.tree.leaves(saved.get('ema')))
    if use_ema and not has_ema:
      raise ValueError(
        f'checkpoint {folder} has no moving average of the parameters: the run '
        'was trained with config.train.ema_decay=0'
      )
    params = 'ema' if has_ema and use_ema is not False else 'params'
    # As in the train state: parameters here, all other collections there.
    wanted = {
      (params, *path[1:]) if path[0] == 'params' else ('mutable', *path): x
      for path, x in integrity.by_path(shapes).items()
    }
    saved = {name: saved.get(name) for name in (params, 'mutable')}
    different = integrity.differences(integrity.by_path(saved), wanted)
    if different:
      raise ValueError(
        f'checkpoint {folder} is of another network than the config; use the '
        'config of its run (config.json there):\n' + '\n'.join(different)
      )
    item = flax.traverse_util.unflatten_dict(
      {path: np.empty(x.shape, x.dtype) for path, x in wanted.items()}
    )
    try:
      restored = reader.restore(
        folder / 'state',
        args=ocp.args.PyTreeRestore(
          item=item,
          restore_args=jax.tree.map(
            lambda x: ocp.RestoreArgs(restore_type=np.ndarray), item
          ),
          partial_restore=True,
        ),
      )
      integrity.verify(restored, json_reader.restore(folder / 'loop'))
    except Exception as error:
      raise ValueError(
        f'checkpoint {folder} is damaged: {_first_line(error)}. Choose another '
        'one with --checkpoint'
      ) from error
  values = integrity.by_path(restored)
  return jax.tree.unflatten(
    jax.tree.structure(shapes), [values[path] for path in wanted]
  )


def read_loop(workdir: str, step: int) -> dict[str, Any]:
  """The loop state of a checkpoint, with the checksums of its arrays.

  Raises:
    ValueError: it is missing or damaged.
  """
  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step)
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    try:
      return reader.restore(folder / 'loop')
    except Exception as error:
      raise ValueError(
        f'checkpoint {folder} is missing or damaged: {_first_line(error)}'
      ) from error


def fingerprint(workdir: str, step: int) -> str:
  """Tells the state of one checkpoint from another: a hash of its checksums.

  No array is read, so damage to one is not noticed here.

  Raises:
    ValueError: the checkpoint is missing or damaged, or has no checksums.
  """
  try:
    sums = read_loop(workdir, step)[integrity.KEY]['arrays']
  except (KeyError, TypeError) as error:
    folder = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step)
    raise ValueError(
      f'checkpoint {folder} is damaged: it has no checksums'
    ) from error
  text = json.dumps(sums, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_facts(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Compares what a run's loop state says about its data and devices.

  Args:
    saved: {'steps_per_epoch', 'pictures', 'devices', 'teacher'} of the
      checkpoint.
    now: the same of the run that resumes.

  Raises:
    ValueError: the data are others, or the teacher is.
  """
  for name in ('steps_per_epoch', 'pictures'):
    if saved[name] != now[name]:
      raise ValueError(
        f'the checkpoint was written with {name} {saved[name]}, the data now '
        f'give {now[name]}: the data set changed since; resume with the old '
        'one or use another --workdir'
      )
  if saved.get('teacher') != now['teacher']:
    raise ValueError(
      'config.teacher: its weights are not those that this run learnt from so '
      'far; name the same checkpoint again, or use another --workdir'
    )
  if saved['devices'] != now['devices']:
    logging.warning(
      'saved on %d devices, resumed on %d: equal only up to rounding',
      saved['devices'],
      now['devices'],
    )


def _metric(folder: pathlib.Path) -> float | None:
  """The metric of a complete checkpoint, None where it has none.

  Raises:
    ValueError: it is not a finite number: the file was damaged.
  """
  path = folder / 'metrics' / 'metrics'  # Orbax: <item>/<file>
  if not path.exists():
    return None
  try:
    value = float(json.loads(path.read_bytes())[METRIC])
    if not math.isfinite(value):
      raise ValueError(f'{METRIC} is {value}')
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'checkpoint {folder} is damaged: {path}: {_first_line(error)}'
    ) from error
  return value


def _all_processes(ok: bool) -> bool:
  """Whether `ok` holds on every process: the same answer on all of them."""
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _on_first_process(action: Callable[[], Any]) -> None:
  """Runs `action` on process 0 while the others wait; fails on all or none."""
  error = None
  if jax.process_index() == 0:
    try:
      action()
    except Exception as caught:
      error = caught
  if not _all_processes(error is None):
    raise error or OSError('process 0 could not tidy checkpoints/: see its log')


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return f'{type(error).__name__}: {lines[0][:300]}'
