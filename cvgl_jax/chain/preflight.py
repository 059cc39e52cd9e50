"""Opens what a chain will read, before hours are spent on its first stage."""

from typing import Any

import numpy as np

from cvgl_jax import experiment, integrity, sharding, teacher
from cvgl_jax.chain import recipe
from cvgl_jax.data import stream


def check(plan: recipe.Plan) -> None:
  """Opens what all stages and the joint evaluation will read.

  Raises:
    ValueError: pictures are missing or do not fit; names the key.
  """
  mesh = sharding.make_mesh()
  for stage in plan.stages:
    with recipe.of_stage(stage.name):
      _check_training(stage, mesh)
      _check_teacher(stage, plan)
  if plan.joint is not None:
    _check_joint(plan)


def _check_training(stage: recipe.Stage, mesh: Any) -> None:
  """What `train.train` would find out when it is the stage's turn."""
  checked, options = stage.checked, stage.checked.train
  if not options.epochs:
    raise ValueError(
      'config.train.epochs: got 0, expected at least 1: a stage that is not '
      'trained leaves no checkpoint to use'
    )
  sharding.check_batch_size(
    options.batch_size, mesh, micro_batches=options.micro_batches
  )
  data = experiment.training_data(checked, stage.method.views)
  for split in data.splits.values():
    if not len(split):
      raise ValueError(
        f'config.data.train_split: {split.name} of {checked.data.names} has no '
        'pictures'
      )
  plan = experiment.make_plan(checked)
  plan.steps_per_epoch(data.splits, options.batch_size)
  experiment.check_splits(checked, experiment.make_evaluators(checked))


def _check_teacher(stage: recipe.Stage, plan: recipe.Plan) -> None:
  """A teacher that is an earlier stage will be of the student's network; any
  other one can be read."""
  workdir = stage.checked.teacher.workdir
  named = [other for other in plan.stages if other.workdir == workdir]
  if not named or not getattr(stage.method, 'needs_teacher', False):
    if workdir or getattr(stage.method, 'needs_teacher', False):
      teacher.load(_method(stage), stage.checked)
    return
  source = named[0].name
  networks = [
    (one.checked.method['name'], one.method.views) for one in (named[0], stage)
  ]
  if networks[0] != networks[1]:
    raise ValueError(
      f'config.teacher.workdir: stage {source!r} is {networks[0][0]!r} of views '
      f'{networks[0][1]}, this one {networks[1][0]!r} of {networks[1][1]}'
    )
  different = integrity.differences(
    *(
      integrity.by_path(experiment.init_shapes(_method(one), one.checked))
      for one in (named[0], stage)
    )
  )
  if different:
    raise ValueError(
      f'config.teacher.workdir: stage {source!r} has another network; teacher '
      'and student must be of the same sizes:\n' + '\n'.join(different)
    )


def _method(stage: recipe.Stage) -> Any:
  """The method, told its number of training places."""
  data = experiment.training_data(stage.checked, stage.method.views)
  return experiment.make_method(stage.checked, num_classes=len(data.labels))


def _check_joint(plan: recipe.Plan) -> None:
  joint = plan.joint
  first, second = (
    plan.stage(name) for name in (joint.query_stage, joint.gallery_stage)
  )
  query = _open(first, 'query_stage', joint, 'query_split')
  bridge = _open(first, 'query_stage', joint, 'bridge_split')
  same = _open(second, 'gallery_stage', joint, 'bridge_split')
  gallery = _open(second, 'gallery_stage', joint, 'gallery_split')
  for stage in (second, *(plan.stage(n) for n in (joint.direct_stage,) if n)):
    if stage.checked.data.names != first.checked.data.names:
      raise ValueError(
        f'config.stages.{stage.name}.data.names: {stage.checked.data.names} and '
        f'config.stages.{first.name}.data.names {first.checked.data.names} must '
        'be the same: the stages are joined by the pictures of '
        f'{joint.bridge_split}'
      )
  if joint.direct_stage:
    direct = plan.stage(joint.direct_stage)
    _open(direct, 'direct_stage', joint, 'query_split')
    _open(direct, 'direct_stage', joint, 'gallery_split')
  _check_same_list(bridge, same, first=first, second=second)
  if not np.isin(query.place, gallery.place).any():
    raise ValueError(
      f'config.joint.query_split: {query.name} and {gallery.name} have no place '
      'in common: no query has an answer'
    )
  nodes = len(bridge) + len(gallery)
  for key, most in (('kq', len(bridge)), ('n_trunc', nodes)):
    if getattr(joint.diffusion, key) > most:
      raise ValueError(
        f'config.joint.diffusion.{key}: got {getattr(joint.diffusion, key)}, '
        f'but {bridge.name} has {len(bridge)} pictures and {gallery.name} '
        f'{len(gallery)}; use at most {most}'
      )


def _open(
  stage: recipe.Stage, stage_key: str, joint: recipe.Joint, key: str
) -> stream.Split:
  """A split of the joint evaluation, with what is wrong with it named."""
  name = getattr(joint, key)
  try:
    split = stage.open_split(name)
  except ValueError as error:
    raise ValueError(f'config.joint.{key}: {error}') from error
  if not len(split):
    raise ValueError(
      f'config.joint.{key}: {name} of {stage.checked.data.names} has no pictures'
    )
  views = stage.method.views
  if split.view not in views:
    raise ValueError(
      f'config.joint.{stage_key}: {stage.name!r} embeds {views}, but '
      f'config.joint.{key} {name!r} shows {split.view!r}'
    )
  return split


def _check_same_list(
  bridge: stream.Split,
  same: stream.Split,
  *,
  first: recipe.Stage,
  second: recipe.Stage,
) -> None:
  if np.array_equal(bridge.path, same.path):
    return
  differ = f'{len(bridge)} and {len(same)} pictures'
  if len(bridge) == len(same):
    row = int(np.flatnonzero(np.asarray(bridge.path) != same.path)[0])
    differ = f'row {row} is {bridge.path[row]} and {same.path[row]}'
  raise ValueError(
    f'config.joint.bridge_split: {first.name} and {second.name} read different '
    f'lists of {bridge.name} ({differ}); set config.stages.{second.name}.data.dir '
    f'to that of {first.name}'
  )
