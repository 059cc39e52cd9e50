"""Metrics of a run: `metrics.jsonl`, TensorBoard events, one log line.

Only process 0 writes. One JSON object a line: {"step": 120, "epoch": 1.4,
"train/loss": 0.31, ...}.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping

import jax
from absl import logging


class Writer:
  """Appends metrics of a run to its workdir.

  Args:
    workdir: the run's folder.
    resume_step: lines of later steps (written after the checkpoint that the
      run resumes from) are dropped: they are about to be written again. None
      starts anew.
  """

  def __init__(self, workdir: str, resume_step: int | None = None):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    import tensorboardX  # here, so that a training step needs no TensorBoard

    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    last = -1 if resume_step is None else resume_step
    kept = [row for row in read(workdir) if row['step'] <= last]
    replace_text(self._path, ''.join(json.dumps(row) + '\n' for row in kept))
    self._events = tensorboardX.SummaryWriter(
      str(pathlib.Path(workdir) / 'events'),
      purge_step=last + 1,
    )

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends one line and the same numbers as TensorBoard scalars."""
    if not self._active:
      return
    row = {'step': int(step)} | {k: float(v) for k, v in metrics.items()}
    with self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    for name, value in metrics.items():
      self._events.add_scalar(name, float(value), int(step))

  def close(self) -> None:
    if self._active:
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
  try:
    part.write_bytes(data)
    part.replace(path)
  except OSError as error:
    free = shutil.disk_usage(path.parent).free
    raise OSError(
      f'could not write {path}: {error} ({free / 2**20:.0f} MiB free there)'
    ) from error
