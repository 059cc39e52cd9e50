"""A whole run with every option of `config.data` that is about pictures."""

import jax
import numpy as np
import pytest

from cvgl_jax import evaluate, experiment
from cvgl_jax import train as train_lib
from tests import tiny_world


def config() -> dict:
  made = tiny_world.config(train__epochs=1, train__eval_every_epochs=1)
  made['augment'] = {'name': 'Sample4GeoTrain'}
  made['method']['joint_statistics'] = False
  made['data'] |= {
    'view_sizes': {'satellite': (40, 40), 'drone': (24, 32)},
    'view_aspects': {'satellite': 1.0},
    'cut_rows': {'drone': 2},
    'resize': 'opencv_linear',
    'jpeg_p': 0.5,
    'polar_size': (16, 64),
  }
  return made


def test_training_and_evaluation_agree_about_the_pictures(tmp_path):
  during = train_lib.train(config(), str(tmp_path))
  assert during
  assert np.isfinite(list(during.values())).all()
  after = evaluate.evaluate(config(), str(tmp_path), 'latest')
  assert after == during


def test_views_of_different_sizes_cannot_share_a_pass():
  made = config()
  made['method']['joint_statistics'] = True
  checked = experiment.check(made)
  method = experiment.make_method(checked, num_classes=4)
  batch = {
    view: {'image': np.zeros((2, *size_hw, 3), np.uint8)}
    for view, size_hw in experiment.network_sizes(checked, method.views).items()
  }
  params = experiment.init_shapes(method, checked)
  with pytest.raises(ValueError, match='joint_statistics=False'):
    jax.eval_shape(
      lambda p: method.features(p['params'], {}, batch, jax.random.key(0)),
      params,
    )
