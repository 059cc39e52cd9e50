"""Chains of seconds on the tiny world: two networks that share drone pictures.

Three stages: street and drone; the same once more, from the first one's weights;
satellite and drone. `short_config` has two of them, `regions_config` a network
that describes regions. `plcd_config` is the published chain of PLCD, made small.
"""

import pathlib
import sys

from ml_collections import config_dict

from configs import plcd_chain, plcd_g2d, quickstart, university1652
from tests import tiny_world

STAGES = ('first', 'second', 'aerial')
DIFFUSION = {'kq': 3, 'kd': 4, 'n_trunc': 12}


def get_config(option: str = '') -> config_dict.ConfigDict:
  """The chain, as a recipe of configs/ would be; 'short': of `short_config`."""
  if option == 'short':
    return _short()
  stages = {
    'first': _stage('street'),
    'second': _stage('street'),
    'aerial': _stage('satellite'),
  }
  stages['second'].init.workdir = 'stage:first'
  return plcd_chain.chain(stages, joint=_joint('second', 'aerial'))


def config(**overrides: object) -> dict:
  """The config for use in this process; '__' stands for '.' in the keys."""
  values = get_config()
  values.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in overrides.items()}
  )
  return values.to_dict()


def short_config(**overrides: object) -> dict:
  """Street and drone, satellite and drone, an epoch each; as `config`."""
  values = _short()
  values.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in overrides.items()}
  )
  return values.to_dict()


def regions_config(**overrides: object) -> dict:
  """The same, the first one by PLCD's network, pictures not mirrored."""
  values = config_dict.ConfigDict(short_config())
  values.stages.first = _small(plcd_g2d.get_config())
  values.stages.first.evals = {}
  values.joint.flip = False
  values.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in overrides.items()}
  )
  return values.to_dict()


def plcd_config(option: str = '') -> config_dict.ConfigDict:
  """configs/plcd_chain.py with small networks, two generations, one epoch."""
  stages = plcd_chain.stages(option)
  del stages['g2d2']
  for stage in stages.values():
    _small(stage)
  return plcd_chain.chain(
    stages, joint=_joint('g2d1', 'd2s', plcd_chain.direct(option))
  )


def arguments(
  workdir: pathlib.Path, *overrides: str, option: str = ''
) -> list[str]:
  """The chain as a command line."""
  return [
    *(sys.executable, 'main.py', 'chain'),
    f'--config=tests/tiny_chain.py:{option}',
    f'--workdir={workdir}',
    f'--compile_cache={tiny_world.ROOT / ".cache" / "jax_tests"}',
    *(f'--config.{override}' for override in overrides),
  ]


def _short() -> config_dict.ConfigDict:
  stages = {'first': _stage('street'), 'aerial': _stage('satellite')}
  for stage in stages.values():
    stage.train.epochs, stage.evals = 1, {}
  return plcd_chain.chain(stages, joint=_joint('first', 'aerial'))


def _small(stage: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """A recipe of PLCD as a run of seconds."""
  stage.update_from_flattened_dict(
    tiny_world.options(train__epochs=1, train__eval_every_epochs=1)
  )
  stage.init.weights = ''
  stage.method.backbone = 'small_cnn'
  stage.data.image_size = (64, 64)  # regions need a map of 4 x 4
  if 'groups' in stage.plan:
    stage.plan.groups = 1  # 3 drone pictures a place
  for section in stage.evals.values():
    if section.gallery_split == 'test_gallery_drone_low':
      section.gallery_split = 'test_gallery_drone'
  return stage


def _joint(
  query_stage: str, gallery_stage: str, direct_stage: str = ''
) -> dict:
  section = plcd_chain.joint(query_stage, gallery_stage, direct_stage)
  section['bridge_split'] = 'test_gallery_drone'
  section['diffusion'].update(DIFFUSION)
  return section


def _stage(anchor: str) -> config_dict.ConfigDict:
  """Two epochs of a small network of an anchor's view and the drone's."""
  views = (anchor, 'drone')
  values = quickstart.get_config()
  values.update_from_flattened_dict(
    tiny_world.options(train__epochs=2, train__eval_every_epochs=2)
  )
  values.method.views = views
  values.plan.views = views
  values.train.best_metric = ''
  values.evals = {
    f'{anchor}_to_drone': university1652.task(anchor, 'drone', r1=8.0, ap=6.0)
  }
  return values
