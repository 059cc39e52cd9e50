"""What of a chain is finished: `chain.json`, and the weights that it is about.

Entries are about weights, not about folders: the checksums of a stage's last
checkpoint, and those of the stages that it learnt from. So a stage that was
trained anew is noticed by all that depend on it.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cvgl_jax import checkpoint, writer
from cvgl_jax.chain import recipe


class Ledger:
  """The file `chain.json` of a chain's workdir.

  All processes read it, before any can write, and keep the same entries about
  stages; process 0 writes. Methods about stages look at checkpoints, which all
  processes must do together.
  """

  def __init__(self, workdir: str):
    self.path = pathlib.Path(workdir) / 'chain.json'
    self._data = {'stages': {}, 'joint': {}}
    if self.path.exists():
      try:
        self._data |= json.loads(self.path.read_text())
      except ValueError as error:
        raise ValueError(
          f'{self.path} is damaged ({error}); delete it: finished stages are '
          'found again by their checkpoints'
        ) from error
    agreed(lambda: True)  # all have read it

  @property
  def joint(self) -> dict[str, Any]:
    """{'key', 'names'} of the joint evaluation that stands in eval/."""
    return self._data['joint']

  def set_joint(self, value: dict[str, Any]) -> None:
    """Remembers, or forgets, the joint evaluation in eval/; for process 0."""
    self._data['joint'] = value
    self._write()

  def is_finished(self, stage: recipe.Stage, plan: recipe.Plan) -> bool:
    """Whether a stage was trained to its end with this very config.

    Raises:
      ValueError: its checkpoint is gone, or it learnt from other weights than
        are there now.
    """
    entry = self._data['stages'].get(stage.name)
    if entry is None:
      return False
    for source, weights in self._sources(stage, plan).items():
      if entry['sources'].get(source) != weights:
        folder = plan.stage(source).workdir
        raise ValueError(
          f'config.stages.{stage.name}: it was trained with other weights of '
          f'{source!r} than {folder} has now; put those back, or use another '
          f'--workdir to train {stage.name!r} and what follows again'
        )
    if 'weights' not in entry:
      return False
    try:
      _, weights = weights_of(stage, 'latest')
    except ValueError as error:
      raise ValueError(
        f'config.stages.{stage.name}: it was trained to its end, but its '
        f'checkpoint is gone: {error}. Put it back, or use another --workdir'
      ) from error
    # Where they differ, training says whether that is allowed.
    return (entry['weights'], entry['config']) == (weights, _digest(stage))

  def begin(self, stage: recipe.Stage, plan: recipe.Plan) -> None:
    """Notes what a stage learns from, before it does.

    What is there of a stage that began before stays: `is_finished` compared its
    sources, and its weights say whether it is still as it was.
    """
    if stage.name in self._data['stages']:
      return
    entry = {'sources': self._sources(stage, plan)}
    self._data['stages'][stage.name] = entry
    agreed(self._write)

  def finish(self, stage: recipe.Stage) -> None:
    """Notes that a stage was trained to its end."""
    step, weights = weights_of(stage, 'latest')
    entry = {'step': step, 'weights': weights, 'config': _digest(stage)}
    self._data['stages'][stage.name] |= entry
    agreed(self._write)

  def _sources(self, stage, plan) -> dict[str, str]:
    return {
      name: weights_of(plan.stage(name), 'latest')[1] for name in stage.sources
    }

  def _write(self) -> bool:
    writer.replace_text(self.path, json.dumps(self._data, indent=2) + '\n')
    return True


def weights_of(stage: recipe.Stage, which: str) -> tuple[int, str]:
  """Step of a stage's checkpoint, and its fingerprint; nothing is restored.

  Raises:
    ValueError: there is no such checkpoint, or it is damaged.
  """
  step = checkpoint.choose(stage.workdir, which)
  return step, checkpoint.fingerprint(stage.workdir, step)


def agreed(question: Callable[[], bool]) -> bool:
  """The answer of process 0, which alone is asked, on every process.

  Files that process 0 is about to write may be seen late by the others. The
  question may be work, such as writing a file; where it fails, all processes
  do. It must not look at checkpoints, which waits for all processes.

  Raises:
    Exception: what the question raised, on process 0.
    ValueError: it raised something, on the others.
  """
  if jax.process_count() == 1:
    return question()
  answer, problem = False, None
  if jax.process_index() == 0:
    try:
      answer = question()
    except Exception as error:  # a full disk, too little memory, ...
      problem = error
  code = np.asarray([answer, problem is not None])
  answer, failed = multihost_utils.broadcast_one_to_all(code).tolist()
  if failed:
    raise problem or ValueError('process 0 cannot go on: see its log')
  return bool(answer)


def _digest(stage: recipe.Stage) -> str:
  text = recipe.digest_text(stage.config)
  return hashlib.sha256(text.encode()).hexdigest()
