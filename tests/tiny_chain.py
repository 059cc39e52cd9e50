"""Chains of seconds on the tiny world: two networks that share drone pictures.

Three stages: street and drone; the same once more, from the first one's weights;
satellite and drone. `plcd_config` is the published chain of PLCD, made small.
"""

import pathlib
import sys

from ml_collections import config_dict

from configs import plcd_chain, quickstart, university1652
from tests import tiny_world

STAGES = ('first', 'second', 'aerial')
DIFFUSION = {'kq': 3, 'kd': 4, 'n_trunc': 12}


def get_config() -> config_dict.ConfigDict:
  """The chain, as a recipe of configs/ would be."""
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


def plcd_config() -> config_dict.ConfigDict:
  """configs/plcd_chain.py with small networks, two generations, one epoch."""
  whole = plcd_chain.get_config()
  stages = {name: whole.stages[name] for name in ('g2d0', 'g2d1', 'd2s')}
  for stage in stages.values():
    stage.update_from_flattened_dict(
      tiny_world.options(train__epochs=1, train__eval_every_epochs=1)
    )
    stage.update_from_flattened_dict(
      {
        'init.weights': '',
        'method.backbone': 'small_cnn',
        'data.image_size': (64, 64),  # regions need a map of 4 x 4
        'plan.groups': 1,  # 3 drone pictures a place
      }
    )
    for section in stage.evals.values():
      if section.gallery_split == 'test_gallery_drone_low':
        section.gallery_split = 'test_gallery_drone'
  return plcd_chain.chain(stages, joint=_joint('g2d1', 'd2s'))


def arguments(workdir: pathlib.Path, *overrides: str) -> list[str]:
  """The chain as a command line."""
  return [
    *(sys.executable, 'main.py', 'chain', '--config=tests/tiny_chain.py'),
    f'--workdir={workdir}',
    f'--compile_cache={tiny_world.ROOT / ".cache" / "jax_tests"}',
    *(f'--config.{override}' for override in overrides),
  ]


def _joint(query_stage: str, gallery_stage: str) -> dict:
  section = plcd_chain.joint(query_stage, gallery_stage)
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
