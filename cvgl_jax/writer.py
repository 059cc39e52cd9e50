"""Metrics of a run: `metrics.jsonl`, TensorBoard events, one log line.

Only process 0 writes. One JSON object a line: {"step": 120, "epoch": 1.4,
"train/loss": 0.31, ...}.
"""

import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging


class Writer:
  """Appends metrics of a run to its workdir.

  Args:
    workdir: the run's folder.
    resume_step: lines of later steps (written after the checkpoint that the
      run resumes from) are dropped: they are about to be written again. None
      starts anew.
    repeats_evaluation: the evaluation of `resume_step` itself is about to be
      written again, too.

  Raises:
    OSError: a file could not be written; names it and the free space.
  """

  def __init__(
    self,
    workdir: str,
    *,
    resume_step: int | None = None,
    repeats_evaluation: bool = False,
  ):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # Here, so that a training step needs no TensorBoard. Not its SummaryWriter:
    # the thread of that one dies on a full disk, and the run waits for it.
    from tensorboardX import event_file_writer

    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    self._folder = pathlib.Path(workdir) / 'events'
    last = -1 if resume_step is None else resume_step
    kept = [
      row
      for row in read(workdir)
      if row['step'] < last
      or (row['step'] == last and not (repeats_evaluation and _evaluated(row)))
    ]
    replace_text(self._path, ''.join(json.dumps(row) + '\n' for row in kept))
    with _naming(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      self._events = event_file_writer.EventsWriter(
        str(self._folder / 'events')
      )
      self._events.write_event(_purge(last + 1))
      self._events.flush()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends one line and the same numbers as TensorBoard scalars.

    Raises:
      OSError: the disk is full, or the like; names the file and the free space.
    """
    if not self._active:
      return
    row = {'step': int(step)} | {k: float(v) for k, v in metrics.items()}
    with _naming(self._path), self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    with _naming(self._folder):
      self._events.write_event(_scalars(row))
      self._events.flush()

  def close(self) -> None:
    """Closes the events. Raises: as `write`."""
    if self._active:
      with _naming(self._folder):
        self._events.close()


def read(workdir: str) -> list[dict[str, float]]:
  """Rows of `metrics.jsonl`; [] without the file.

  A last line cut short by a kill is left out; anything else that is not JSON
  is an error that names the line.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  rows = []
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or 'step' not in row:
        raise ValueError('no {"step": ...}')
      rows.append(row)
    except ValueError as error:
      if number < len(lines):
        raise ValueError(
          f'{path}, line {number}: not JSON ({error})'
        ) from error
      logging.warning('%s: left out the cut last line', path)
  return rows


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  replace_bytes(path, text.encode())


def replace_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all.

  Raises:
    OSError: it could not be written; names the path and the free space.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.part')
  with _naming(path):
    part.write_bytes(data)
    part.replace(path)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Errors of the file system name the path and the free space."""
  try:
    yield
  except OSError as error:
    free = shutil.disk_usage(path.parent).free
    raise OSError(
      f'could not write {path}: {error} ({free / 2**20:.0f} MiB free there)'
    ) from error


def _evaluated(row: Mapping[str, float]) -> bool:
  return any(name.startswith('eval/') for name in row)


def _scalars(row: Mapping[str, float]) -> Any:
  """A TensorBoard event with the numbers of a row."""
  from tensorboardX.proto import event_pb2, summary_pb2

  values = [
    summary_pb2.Summary.Value(tag=name, simple_value=value)
    for name, value in row.items()
    if name != 'step'
  ]
  return event_pb2.Event(
    wall_time=time.time(),
    step=row['step'],
    summary=summary_pb2.Summary(value=values),
  )


def _purge(step: int) -> Any:
  """A TensorBoard event that hides earlier events from `step` on."""
  from tensorboardX.proto import event_pb2

  start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  return event_pb2.Event(wall_time=time.time(), step=step, session_log=start)
