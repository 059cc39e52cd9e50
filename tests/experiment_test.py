"""From a config to pictures: sizes, cuts and transforms that fit each other."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import plcd_d2s
from cvgl_jax import experiment
from cvgl_jax.methods import university1652


def config(views=('satellite', 'drone'), **data):
  """The quickstart recipe with other views and data options."""
  made = importlib.import_module('configs.quickstart').get_config().to_dict()
  made['data'] |= {'image_size': (32, 32), **data}
  made['method']['views'] = made['plan']['views'] = views
  made['plan']['view'] = views[-1]
  made['evals'] = {}
  made['train']['best_metric'] = ''
  return made


def with_panorama(monkeypatch, **data):
  """The same with a panorama branch, which that method does not have."""
  monkeypatch.setitem(university1652.TRUNKS, 'panorama', 'model_2')
  return config(('satellite', 'panorama'), **data)


def test_views_are_shaped_from_the_file_to_the_network(monkeypatch):
  checked = experiment.check(
    with_panorama(
      monkeypatch,
      view_sizes={'panorama': (16, 72)},
      polar_size=(16, 64),
      fov_deg=90.0,
    )
  )
  for train in (True, False):
    load = experiment.make_loader(checked, train=train)
    assert load.size('panorama') == (16, 72)
    assert load.size('satellite') == (32, 32)
  sizes = {'satellite': (16, 64), 'panorama': (16, 18)}
  assert experiment.network_sizes(checked, sizes) == sizes
  augmented = experiment.make_augment(checked)
  for view, size_hw in sizes.items():
    image = jnp.zeros((2, *load.size(view), 3), jnp.uint8)
    ours = augmented(jax.random.key(0), image, view)
    assert ours.shape == (2, *size_hw, 3)
    assert ours.dtype == jnp.float32


def test_init_sees_every_view_in_the_size_of_the_network(monkeypatch):
  seen = {}

  class Method:
    views = ('satellite', 'panorama')

    def init(self, rng, batch):
      seen.update({view: slot['image'].shape for view, slot in batch.items()})
      return {'params': np.zeros(1)}

  checked = experiment.check(
    with_panorama(
      monkeypatch, view_sizes={'panorama': (16, 72)}, polar_size=(16, 64)
    )
  )
  experiment.init_shapes(Method(), checked)
  assert seen == {'satellite': (2, 16, 64, 3), 'panorama': (2, 16, 72, 3)}


def test_training_may_resize_and_compress_otherwise_than_evaluation():
  data = {
    'resize': 'opencv_linear',
    'train_resize': 'area',
    'jpeg_p': 0.5,
    'cut_rows': {'drone': 3},
    'view_aspects': {'drone': 1.0},
  }
  checked = experiment.check(config(**data))
  train, test = (
    experiment.make_loader(checked, train=which) for which in (True, False)
  )
  assert (train.resize, train.jpeg_p) == ('area', 0.5)
  assert (test.resize, test.jpeg_p) == ('opencv_linear', 0.0)
  assert train.cut_rows == test.cut_rows == {'drone': 3}
  assert train.view_aspects == test.view_aspects == {'drone': 1.0}
  same = experiment.check(config(**(data | {'train_resize': ''})))
  assert experiment.make_loader(same, train=True).resize == 'opencv_linear'


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'view_sizes': {'dron': (8, 8)}}, r"data\.view_sizes: no view 'dron'"),
    ({'view_sizes': {'drone': (8,)}}, r'config\.data: view_sizes\.drone'),
    ({'cut_rows': {'panorama': 4}}, "cut_rows: no view 'panorama'"),
    ({'middle_half': ('panorama',)}, "middle_half: no view 'panorama'"),
    ({'resize': 'lanczos'}, "config.data: resize 'lanczos'; expected one of"),
    ({'train_resize': 'best'}, "config.data: resize 'best'"),
    ({'jpeg_p': 1.5}, 'config.data: jpeg_p'),
    ({'fov_deg': 90.0}, 'fov_deg: is about panorama pictures, but'),
    ({'fov_deg': 400.0}, 'config.data: fov_deg is 400'),
    ({'polar_size': (8,)}, 'config.data: polar_size'),
    (
      {'polar_size': (8, 32), 'view_sizes': {'satellite': (16, 32)}},
      "config.data: polar_size: .*'satellite' are 16x32",
    ),
  ],
)
def test_a_bad_data_option_names_its_key(data, message):
  with pytest.raises(ValueError, match=message):
    experiment.check(config(**data))


def test_a_field_of_view_of_no_column_is_refused(monkeypatch):
  made = with_panorama(
    monkeypatch, fov_deg=5.0, view_sizes={'panorama': (16, 64)}
  )
  with pytest.raises(ValueError, match='fov_deg: 5 degrees of 64'):
    experiment.check(made)


def test_polar_pictures_need_a_satellite():
  made = config(('street', 'drone'), polar_size=(8, 32))
  with pytest.raises(ValueError, match='polar_size: is about satellite'):
    experiment.check(made)


def test_augmentations_of_every_module_are_found_by_name():
  made = config()
  made['augment'] = {'name': 'Sample4GeoTrain', 'flip_p': 0.25}
  augmentation = experiment.make_augment(experiment.check(made)).augment
  assert augmentation.flip_p == 0.25
  made['augment'] = {'name': 'Sample4geoTrain'}
  with pytest.raises(ValueError, match=r"did you mean \['Sample4GeoTrain'\]"):
    experiment.check(made)


def test_an_augmentation_that_cannot_turn_a_picture_is_refused_at_once():
  made = config(view_sizes={'satellite': (32, 40)})
  made['augment'] = {'name': 'Sample4GeoTrain'}
  with pytest.raises(ValueError, match=r'config\.augment: rotate_p: .*32x40'):
    experiment.check(made)


def test_a_method_sees_the_sizes_that_its_network_gets(monkeypatch):
  seen = []

  def check_pictures(self, sizes, *, polar):
    seen.append((sizes, polar))
    if polar:
      raise ValueError('config.data.polar_size: not for this method')

  monkeypatch.setattr(
    university1652.Method, 'check_pictures', check_pictures, raising=False
  )
  experiment.check(config(view_sizes={'drone': (16, 24)}))
  assert seen == [({'satellite': (32, 32), 'drone': (16, 24)}, False)]
  with pytest.raises(ValueError, match='not for this method'):
    experiment.check(config(polar_size=(8, 32)))
  assert seen[-1] == ({'satellite': (8, 32), 'drone': (32, 32)}, True)


def test_a_plan_that_repeats_a_view_is_refused():
  made = config()
  made['plan']['views'] = ('satellite', 'drone', 'drone')
  with pytest.raises(
    ValueError, match=r'config\.plan\.views .* repeats a view'
  ):
    experiment.check(made)


def test_anchors_are_of_the_first_view_of_the_method():
  made = plcd_d2s.get_config().to_dict()
  made['plan'] = {'name': 'PeerBatches', 'views': ('drone', 'satellite')}
  with pytest.raises(ValueError, match='the first is that of the anchors'):
    experiment.check(made)
  made['plan']['views'] = ('satellite', 'drone')
  plan = experiment.make_plan(experiment.check(made))
  assert plan.slots == ('satellite', *['drone'] * 6)


def test_peers_are_only_for_methods_that_take_them():
  made = config()
  made['plan'] = {'name': 'PeerBatches', 'views': ('satellite', 'drone')}
  with pytest.raises(ValueError, match="'university1652' does not take"):
    experiment.check(made)
