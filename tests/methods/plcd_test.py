"""PLCD's network and loss, beside what the golden files compare."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import state as state_lib
from cvgl_jax.methods import plcd
from cvgl_jax.models import peer_network
from tests import torch_names

SMALL = {
  'num_classes': 5,
  'backbone': 'small_cnn',
  'backbone_width': 4,
  'dim': 8,
  'droprate': 0.0,
}


def make(**options):
  return plcd.Method(**(SMALL | options))


def batch(method, anchors=3, peers=2, size=64, seed=0):
  rng = np.random.default_rng(seed)
  label = np.arange(anchors, dtype=np.int32)
  pixels = lambda n: rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
  return {
    method.views[0]: {'image': pixels(anchors), 'label': label},
    'drone': {
      'image': pixels(anchors * peers),
      'label': np.repeat(label, peers),
    },
  }


@functools.cache
def variables(method, seed=0):
  return jax.jit(method.init)(jax.random.key(seed), batch(method))


def loss(method, tree, data, teacher=None, seed=0):
  tree = dict(tree)
  params = tree.pop('params')
  if teacher is not None:
    tree['teacher'] = teacher
  run = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (value, aux), grads = run(params, tree, data, jax.random.key(seed), 0)
  return value, aux, grads


def test_regions_cover_every_cell_of_any_map_and_stay_inside():
  for height, width in ((4, 4), (5, 9), (7, 7), (12, 12), (24, 12)):
    covered = np.zeros((3, height, width), int)
    for i, (y0, y1, x0, x1) in enumerate(peer_network.windows(height, width)):
      level = 0 if i < 4 else 1 if i < 13 else 2
      assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width
      covered[level, y0:y1, x0:x1] += 1
    assert covered.min() > 0


def test_a_map_that_is_too_small_for_regions_is_refused():
  method = make(generation=1, regions=4)
  with pytest.raises(
    ValueError, match=r'image_size: .*at least 4 x 4 cells.*gives 3 x 3'
  ):
    method.check_pictures({'street': (64, 64), 'drone': (48, 48)}, polar=False)
  method.check_pictures({'street': (8, 8), 'drone': (64, 64)}, polar=False)


@pytest.mark.parametrize('record', [True, False])
def test_one_product_for_all_regions_equals_region_by_region(record):
  method = make(generation=1, regions=13, record_parts=record)
  tree, x = variables(make()), np.random.default_rng(0).random((6, 8, 8, 16))
  x = x.astype(np.float32)
  network = method.network
  together, after = network.apply(
    tree,
    x,
    parts=13,
    recorded_parts=13 if record else 0,
    train=True,
    method='describe',
    mutable=['batch_stats'],
    rngs={'dropout': jax.random.key(0)},
  )
  stats = dict(tree)
  for i, (y0, y1, x0, x1) in enumerate(peer_network.windows(8, 8)[:13]):
    one, moved = network.apply(
      stats,
      x[:, y0:y1, x0:x1],
      train=True,
      method='describe',
      mutable=['batch_stats'],
    )
    np.testing.assert_allclose(together[:, i], one[:, 0], atol=1e-5)
    if record:
      stats |= moved
  _, stats = network.apply(
    stats, x, train=True, method='describe', mutable=['batch_stats']
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    after['batch_stats']['classifier'],
    stats['batch_stats']['classifier'],
  )


def test_recorded_regions_that_nobody_reads_change_no_feature_and_no_gradient():
  tree, rng = variables(make()), np.random.default_rng(0)
  x = rng.random((6, 8, 8, 16)).astype(np.float32)
  network = make().network

  def features(x, recorded):
    return network.apply(
      tree,
      x,
      parts=4,
      recorded_parts=recorded,
      train=True,
      method='describe',
      mutable=['batch_stats'],
    )

  results = []
  for recorded in (0, 4, 29):
    h, pull, after = jax.vjp(
      lambda x, n=recorded: features(x, n), x, has_aux=True
    )
    results.append((h, pull(jnp.ones_like(h))[0], after))
  for h, gradient, _ in results[1:]:
    np.testing.assert_allclose(h, results[0][0], atol=1e-6)
    np.testing.assert_allclose(gradient, results[0][1], atol=1e-6)
  means = [
    after['batch_stats']['classifier']['add_block_1']['mean']
    for _, _, after in results
  ]
  assert np.abs(means[2] - means[1]).max() > 1e-3


def test_regions_are_embedded_behind_the_whole_picture():
  method = make()
  images = batch(method)['drone']['image']
  whole = method.embed(variables(method), images, 'drone')
  both = method.embed_regions(variables(method), images, 'drone', regions=4)
  assert both.shape == (6, 5, 8)
  np.testing.assert_allclose(both[:, 0], whole, atol=1e-6)
  # A region of a map is described as a map of its own.
  np.testing.assert_allclose(np.linalg.norm(both, axis=-1), 1, rtol=1e-5)
  assert np.abs(both[:, 1] - both[:, 4]).max() > 1e-3


def test_generation_1_without_a_teacher_says_what_to_set():
  method = make(generation=1)
  with pytest.raises(ValueError, match=r'set config\.teacher\.workdir'):
    loss(method, variables(make()), batch(method))


@pytest.mark.parametrize('regions', [0, 13])
def test_a_student_that_is_its_teacher_has_nothing_to_distil(regions):
  method = make(generation=2, regions=regions)
  tree = variables(make())
  _, aux, _ = loss(method, tree, batch(method), teacher=tree)
  np.testing.assert_allclose(aux.metrics['distill'], 0, atol=1e-5)
  other = variables(make(), seed=1)
  _, aux, _ = loss(method, tree, batch(method), teacher=other)
  assert aux.metrics['distill'] > 1e-3


def test_the_teacher_in_eval_mode_does_not_look_at_the_batch():
  """Its features of the first anchor stay when the other anchors change."""
  data = batch(make())
  changed = {view: dict(slot) for view, slot in data.items()}
  image = changed['street']['image'].copy()
  image[1:] = 255 - image[1:]
  changed['street']['image'] = image

  def taught(mode, data):
    method = make(generation=1, teacher_mode=mode)
    tree = dict(variables(make()))
    params, mutable = tree.pop('params'), {**tree, 'teacher': variables(make())}
    features, _ = method.features(params, mutable, data, jax.random.key(0))
    return np.asarray(features['teacher/street'][0])

  np.testing.assert_allclose(
    taught('eval', data), taught('eval', changed), atol=1e-5
  )
  assert np.abs(taught('train', data) - taught('train', changed)).max() > 1e-3


def test_teacher_and_student_drop_other_features():
  method = make(generation=1, droprate=0.5)
  tree = dict(variables(make()))
  params, mutable = tree.pop('params'), {**tree, 'teacher': variables(make())}
  features, _ = method.features(
    params, mutable, batch(method), jax.random.key(0)
  )
  same = (features['street'] == 0) == (features['teacher/street'] == 0)
  assert not same.all()


def test_the_mutable_variables_keep_the_teacher_as_it_is():
  method = make(generation=1)
  tree, other = variables(make()), variables(make(), seed=1)
  _, aux, _ = loss(method, tree, batch(method), teacher=other)
  jax.tree.map(np.testing.assert_array_equal, aux.mutable['teacher'], other)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), aux.mutable['batch_stats'],
    tree['batch_stats'],
  )  # fmt: skip
  assert all(jax.tree.leaves(moved))


def test_views_may_share_a_trunk():
  shared, apart = variables(make(share_trunks=True)), variables(make())
  assert set(shared['params']) == {'model_1', 'classifier'}
  assert set(apart['params']) == {'model_1', 'model_2', 'classifier'}


def test_only_the_anchor_and_the_drone_can_be_embedded():
  method = make()
  images = batch(method)['drone']['image']
  features = method.embed(variables(method), images, 'drone')
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  with pytest.raises(ValueError, match="no network for view 'satellite'"):
    method.embed(variables(method), images, 'satellite')


@pytest.mark.parametrize('anchor', plcd.ANCHORS)
def test_a_released_checkpoint_gives_its_features(anchor):
  """In the release's names, with the classifiers of ImageNet that are unused."""
  method = make(views=(anchor, 'drone'), backbone='resnet18')
  tree = variables(method, seed=3)
  source = torch_names.state_dict(tree)
  assert 'model_2.model.layer4.1.conv2.weight' in source
  source |= {f'model_{i}.model.fc.weight': np.zeros((9, 9)) for i in (1, 2)}
  fresh = variables(method)
  loaded = method.variables_from_torch(fresh, source, where='net_119.pth')
  images = batch(method)['drone']['image']
  for view in method.views:
    np.testing.assert_array_equal(
      method.embed(loaded, images, view), method.embed(tree, images, view)
    )


def test_imagenet_weights_start_both_trunks_alike():
  method = make(backbone='resnet18')
  tree = variables(method)
  source = torch_names.state_dict(
    {kind: branches['model_1']['model'] for kind, branches in tree.items()}
  )
  loaded = method.variables_from_torch(
    variables(method, seed=1), source, where='resnet18.safetensors'
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded['params']['model_1'],
    loaded['params']['model_2'],
  )


def test_a_checkpoint_of_other_places_says_which_number_to_set():
  source = torch_names.state_dict(variables(make(num_classes=7)))
  with pytest.raises(ValueError, match=r'config\.method\.num_classes=7'):
    make().variables_from_torch(variables(make()), source, where='net.pth')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'views': ('drone', 'street')}, 'views: got .* then .drone'),
    ({'regions': 30, 'generation': 1}, 'expected 0 to 29'),
    ({'regions': 4}, 'generation 0 does not have'),
    ({'pool': 'avg+max'}, 'pool: got .avg.max.'),
    ({'pairing': 'tile'}, 'pairing: got .tile.'),
    ({'teacher_mode': 'test'}, 'teacher_mode: got .test.'),
    ({'negatives': 0}, 'negatives: got 0'),
    ({'tau': 0.0}, 'tau 0.0 above 0'),
  ],
)
def test_options_that_cannot_work_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


@pytest.mark.parametrize('generation', [0, 1])
def test_micro_batches_keep_every_peer_with_its_anchor(generation):
  """Without batch statistics micro-batches give the whole batch's gradient."""
  method = make(
    generation=generation, regions=4 * generation, teacher_mode='eval'
  )
  tree = dict(variables(make()))
  params, other = tree.pop('params'), variables(make(), seed=1)
  if generation:
    tree['teacher'] = other
  data = jax.tree.map(jnp.asarray, batch(method, anchors=4, peers=2))
  frozen = functools.partial(in_evaluation, method)

  whole, grads = jax.value_and_grad(
    lambda p: method.loss_from_features(
      p, frozen(p, tree, data, None)[0], data, 0
    )[0]
  )(params)
  value, _, _, split, features = state_lib.cached_gradients(
    FrozenStatistics(method, frozen),
    params,
    tree,
    data,
    jax.random.key(0),
    0,
    micro_batches=2,
  )
  assert features['drone'].shape == (8, 8)
  np.testing.assert_allclose(value, whole, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), split, grads
  )


def in_evaluation(method, params, mutable, data, rng):
  """`features` without batch statistics, so that pictures do not mix."""
  del rng
  found = {}
  for prefix, tree in (
    ('', {'params': params, 'batch_stats': mutable['batch_stats']}),
    ('teacher/', mutable.get('teacher')),
  ):
    if tree is None:
      continue
    for view in method.views:
      x = data[view]['image'].astype(jnp.float32)
      h = method.network.apply(
        tree, x / 255, method.trunks[view], parts=4, method='all_features'
      )
      found[prefix + view] = h[:, -1]
      if view == 'drone' and method.regions:
        found[f'{prefix}regions'] = h[:, :-1]
  return found, mutable


class FrozenStatistics:
  """A method whose batch norms do not look at the batch."""

  def __init__(self, method, features):
    self.features = features
    self.loss_from_features = method.loss_from_features
