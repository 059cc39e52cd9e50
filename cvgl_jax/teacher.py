"""The frozen network that a method learns from, if it does.

It is another run of the same method (or a released checkpoint): its variables
stand in the train state beside the student's, split over the devices alike, but
no step changes them and no checkpoint of the student holds them. A resumed run
reads them again, and makes sure that they are the same.
"""

import os
from typing import Any

import jax
from absl import logging

from cvgl_jax import checkpoint, experiment, integrity, settings, strict
from cvgl_jax.models import torch_file


def load(method: Any, checked: settings.Settings) -> dict[str, Any] | None:
  """Variables of the teacher on the host; None for a method without one.

  Args:
    method: with its number of classes; learns from a teacher if it has
      `needs_teacher`.
    checked: `teacher` names the run or the file.

  Raises:
    ValueError: a teacher is needed and not named, or the reverse; the run does
      not exist, has no checkpoint, or is of another network.
  """
  section = checked.teacher
  wanted = getattr(method, 'needs_teacher', False)
  named = section.workdir or section.weights
  if not wanted:
    if named:
      raise ValueError(
        f'config.teacher names {named}, but config.method learns from no teacher; '
        "leave it '' (or set config.method.generation)"
      )
    return None
  if section.workdir:
    return _from_run(method, checked)
  if section.weights:
    return _from_torch(method, checked)
  raise ValueError(
    'config.teacher.workdir: config.method learns from a teacher; name the run of '
    'the generation before (or its torch file in config.teacher.weights)'
  )


def place(variables: Any, shardings: Any) -> Any:
  """Variables of `load` on the devices; None stays None."""
  if variables is None:
    return None
  return jax.jit(lambda tree: tree, out_shardings=shardings)(variables)


def fingerprint(variables: Any) -> str | None:
  """Tells one teacher from another; None of None."""
  return None if variables is None else integrity.fingerprint(variables)


def _from_torch(method: Any, checked: settings.Settings) -> dict[str, Any]:
  """The network of the file `config.teacher.weights`."""
  path = checked.teacher.weights
  source = torch_file.read(torch_file.fetch(path))
  if not method.num_classes_of(source):
    raise ValueError(
      f'config.teacher.weights: {path} has no classifier: it holds weights of a '
      'backbone, not of a trained network'
    )
  shapes = experiment.init_shapes(method, checked)
  return method.variables_from_torch(shapes, source, where=path)


def _from_run(method: Any, checked: settings.Settings) -> dict[str, Any]:
  """The chosen checkpoint of the run `config.teacher.workdir`."""
  workdir = checked.teacher.workdir
  if not os.path.isdir(workdir):
    raise ValueError(
      f'config.teacher.workdir: {workdir} does not exist; train the generation '
      'before in it first, or name the folder of its run'
    )
  try:
    saved = settings.load_config(workdir)
    other = strict.make(settings.Settings, saved, f'{workdir}/config.json')
    shapes = _shapes(method, checked, other)
    step = checkpoint.choose(workdir, checked.teacher.checkpoint)
    _check_finished(other, workdir, step, checked.teacher.checkpoint)
    variables = checkpoint.restore_variables(workdir, step, shapes)
  except ValueError as error:
    raise ValueError(f'config.teacher.workdir: {error}') from error
  logging.info('teacher: %s, step %d', workdir, step)
  return variables


def _check_finished(
  other: settings.Settings, workdir: str, step: int, asked: str
) -> None:
  """'latest' shall be the last checkpoint that the teacher's run will have."""
  facts = checkpoint.read_loop(workdir, step)
  total = facts['steps_per_epoch'] * other.train.epochs
  if asked == 'latest' and step < total:
    raise ValueError(
      f'{workdir} has come to step {step} of {total}: finish it first, or learn '
      f'from this checkpoint as it is by config.teacher.checkpoint={step}'
    )


def _shapes(
  method: Any, checked: settings.Settings, other: settings.Settings
) -> Any:
  """Shapes of both networks, which must be the same."""
  workdir = checked.teacher.workdir
  names = [one.method['name'] for one in (checked, other)]
  if names[0] != names[1]:
    raise ValueError(f'{workdir} is a run of {names[1]!r}, not of {names[0]!r}')
  theirs = experiment.make_method(other)
  if theirs.views != method.views:
    raise ValueError(
      f'{workdir} was trained on views {theirs.views}, this run is on '
      f'{method.views}'
    )
  ours = experiment.init_shapes(method, checked)
  different = integrity.differences(
    integrity.by_path(experiment.init_shapes(theirs, other)),
    integrity.by_path(ours),
  )
  if different:
    raise ValueError(
      f'{workdir} is of another network; teacher and student must have the same '
      'config.method.backbone, backbone_width, dim, share_trunks and the same '
      'training places:\n' + '\n'.join(different)
    )
  return ours
