"""Opens what a chain will read, before hours are spent on its first stage."""

from typing import Any

import jax
import numpy as np

from cvgl_jax import experiment, integrity, settings, sharding, teacher
from cvgl_jax.chain import recipe
from cvgl_jax.data import stream


def check(plan: recipe.Plan) -> None:
  """Opens what all stages and the joint evaluation will read; writes nothing.

  Raises:
    ValueError: pictures are missing or do not fit, or a stage was started with
      another config; names the key.
  """
  mesh = sharding.make_mesh()
  for stage in plan.stages:
    with recipe.of_stage(stage.name):
      method = _check_training(stage, mesh)
      _check_sources(stage, plan, method)
      config = settings.with_classes(stage.config, method)
      settings.check_config(stage.workdir, config)
  if plan.joint is not None:
    _check_joint(plan)


def _check_training(stage: recipe.Stage, mesh: Any) -> Any:
  """What `train.train` would find out when it is the stage's turn.

  Returns:
    The method, told its number of training places.
  """
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
  return experiment.make_method(checked, num_classes=len(data.labels))


def _check_sources(stage: recipe.Stage, plan: recipe.Plan, method: Any) -> None:
  """An earlier stage that this one starts or learns from will fit it; any other
  teacher can be read."""
  checked = stage.checked
  first, taught = (
    next(
      (
        plan.stage(name)
        for name in stage.sources
        if section.workdir
        and recipe.same_folder(plan.stage(name).workdir, section.workdir)
      ),
      None,
    )
    for section in (checked.init, checked.teacher)
  )
  if taught is None or not getattr(method, 'needs_teacher', False):
    teacher.load(method, checked)
  else:
    names = [
      (one.checked.method['name'], one.method.views) for one in (taught, stage)
    ]
    if names[0] != names[1]:
      raise ValueError(
        f'config.teacher.workdir: stage {taught.name!r} is {names[0][0]!r} of '
        f'views {names[0][1]}, this one {names[1][0]!r} of {names[1][1]}'
      )
    _check_same_network('teacher', taught, stage, method)
  # Some methods go on from other networks.
  if first is not None and not hasattr(method, 'variables_from_run'):
    _check_same_network('init', first, stage, method)


def _check_same_network(
  section: str, source: recipe.Stage, stage: recipe.Stage, method: Any
) -> None:
  different = integrity.differences(
    *(
      integrity.by_path(experiment.init_shapes(one, checked))
      for one, checked in (
        (_method(source), source.checked),
        (method, stage.checked),
      )
    )
  )
  if different:
    raise ValueError(
      f'config.{section}.workdir: stage {source.name!r} has another network; '
      'both must be of the same sizes:\n' + '\n'.join(different)
    )


def _method(stage: recipe.Stage) -> Any:
  """The method, told its number of training places."""
  data = experiment.training_data(stage.checked, stage.method.views)
  return experiment.make_method(stage.checked, num_classes=len(data.labels))


def _check_regions(stage: recipe.Stage, view: str, joint: recipe.Joint) -> None:
  """The network describes as many regions as the diffusion takes."""
  wanted, method = joint.diffusion.hiera, _method(stage)
  size_hw = experiment.network_sizes(stage.checked, (view,))[view]
  image = jax.ShapeDtypeStruct((1, *size_hw, 3), np.uint8)
  where = (
    f'config.joint.diffusion.hiera: got {wanted}, but stage {stage.name!r}'
  )
  try:
    features = jax.eval_shape(
      lambda variables, x: method.embed_regions(
        variables, x, view, regions=wanted
      ),
      experiment.init_shapes(method, stage.checked),
      image,
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  if features.shape[1] != 1 + wanted:
    raise ValueError(f'{where} describes {features.shape[1] - 1} regions')


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
  if joint.diffusion.hiera:
    _check_regions(first, bridge.view, joint)
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
