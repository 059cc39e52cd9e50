"""FRGeo: the composition of its loss, its branches, published weights, ASAM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import state as state_lib
from cvgl_jax.losses import cross_view
from cvgl_jax.methods import contract, frgeo
from cvgl_jax.optim import build
from tests.methods import panorama_world as world

# Four convolutions: what is tested here is the same with any backbone.
SMALL = {'backbone': 'small_cnn', 'backbone_width': 2}
CONVNEXT = {'backbone': 'convnext_mini', 'backbone_width': 4}


def make(**options) -> frgeo.Method:
  return frgeo.Method(**{**SMALL, **options})


@functools.partial(jax.jit, static_argnums=(0, 3))
def embed(method, variables, images, view):
  return method.embed(variables, images, view)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_features(method, variables, batch):
  args = (*split(variables), batch, jax.random.key(0))
  loss, aux = method.loss(*args, 0)
  return loss, aux, method.features(*args)[0]


def split(variables):
  """(params, mutable)."""
  rest = {k: v for k, v in variables.items() if k != 'params'}
  return variables['params'], rest


@pytest.mark.parametrize(
  'options',
  [{}, {'loss_groups': 1, 'alpha': 4.0}, {'criterion': 'soft_triplet'}],
)
def test_the_loss_is_that_of_the_two_views(options):
  method, batch = make(**options), world.batch()
  variables = world.filled(method)
  loss, aux, features = loss_and_features(method, variables, batch)
  groups, alpha = options.get('loss_groups', 2), options.get('alpha', 10.0)
  function = cross_view.weighted_tuple_loss
  if 'criterion' in options:
    function = cross_view.soft_triplet_loss
  expected = function(
    features['panorama'], features['satellite'], alpha=alpha, groups=groups
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert features['panorama'].shape == (4, 4 * 8)
  assert jax.tree.structure(aux.mutable) == (
    jax.tree.structure(split(variables)[1])
  )
  for view, x in aux.embeddings.items():
    unit = features[view] / np.linalg.norm(features[view], axis=1)[:, None]
    np.testing.assert_allclose(x, unit, rtol=1e-4, atol=1e-6)
  cosine = np.sum(
    aux.embeddings['panorama'] * aux.embeddings['satellite'], axis=1
  )
  np.testing.assert_allclose(
    aux.metrics['similarity/positive'], cosine.mean(), rtol=1e-4
  )


def test_both_networks_learn_and_only_their_own_view_sees_them():
  method, batch = make(), world.batch()
  variables = world.filled(method)
  params, mutable = split(variables)
  grads = jax.jit(
    jax.grad(lambda p: method.loss(p, mutable, batch, jax.random.key(0), 0)[0])
  )(params)
  largest = {
    k: max(map(jnp.max, map(jnp.abs, jax.tree.leaves(g))))
    for k, g in grads.items()
  }
  assert set(largest) == {'query_net', 'reference_net'}
  assert min(largest.values()) > 0
  swapped = variables | {
    'params': {**params, 'query_net': params['reference_net']}
  }
  before, after = (
    {v: embed(method, x, batch[v]['image'], v) for v in world.SIZES}
    for x in (variables, swapped)
  )
  np.testing.assert_array_equal(before['satellite'], after['satellite'])
  assert np.abs(before['panorama'] - after['panorama']).max() > 1e-3


def test_the_published_branch_cuts_a_square_panorama_as_a_satellite_picture():
  sizes = {'panorama': (128, 128), 'satellite': (64, 64)}
  published, ours = make(frm_branch='shape'), make()
  variables, batch = world.filled(ours, sizes), world.batch(sizes)
  a, b = (
    embed(method, variables, batch['panorama']['image'], 'panorama')
    for method in (published, ours)
  )
  assert np.abs(a - b).max() > 1e-3
  a, b = (
    embed(method, variables, batch['satellite']['image'], 'satellite')
    for method in (published, ours)
  )
  np.testing.assert_array_equal(a, b)


def test_a_panorama_that_is_too_narrow_is_refused_at_once():
  """A field of view of 70 degrees has three columns (reference-bug: NaN)."""
  sizes = {'panorama': (64, 99), 'satellite': (64, 64)}
  init = lambda method: jax.eval_shape(
    method.init, jax.random.key(0), world.batch(sizes)
  )
  with pytest.raises(ValueError, match='2x3 positions has empty parts'):
    init(make(**CONVNEXT))
  init(make(pool='avg', **CONVNEXT))


def test_a_released_checkpoint_is_read_with_its_own_names(tmp_path):
  method = make(**CONVNEXT)
  variables = world.filled(method)
  source = {}
  for name, tree in variables['params'].items():
    source |= world.published(tree, f'module.{name}.')
  assert 'module.query_net.stages.2.1.pwconv1.weight' in source
  assert 'module.reference_net.downsample_layers.0.0.bias' in source
  path = world.write(
    tmp_path / 'model_best.pth.tar', source, inside='state_dict'
  )
  start = jax.tree.map(np.zeros_like, variables)
  world.check_equal(contract.load_pretrained(method, start, path), variables)


@pytest.mark.parametrize('naming', [world.published, world.timm])
def test_imagenet_weights_start_both_networks(naming, tmp_path):
  method = make(**CONVNEXT)
  variables = world.filled(method)
  tree = variables['params']['query_net']
  head = {'head.fc.weight': np.zeros((7, 16)), 'head.fc.bias': np.zeros(7)}
  path = world.write(tmp_path / 'x.pth', naming(tree) | head)
  filled = contract.load_pretrained(method, variables, path)
  world.check_equal(
    filled['params'], {'query_net': tree, 'reference_net': tree}
  )


def test_a_checkpoint_of_another_width_says_so(tmp_path):
  tree = world.filled(make(**CONVNEXT))['params']['query_net']
  path = world.write(tmp_path / 'x.pth', world.timm(tree))
  other = make(**{**CONVNEXT, 'backbone_width': 8})
  with pytest.raises(ValueError, match='of another shape'):
    contract.load_pretrained(other, world.filled(other), path)


def test_micro_batches_give_the_loss_of_the_whole_batch():
  """Of the same features: batch norm sees the parts."""
  method, batch = make(), world.batch()
  params, mutable = split(world.filled(method))
  rng = jax.random.key(0)

  @jax.jit
  def parts():
    return state_lib.cached_gradients(
      method, params, mutable, batch, rng, 0, micro_batches=2
    )

  @jax.jit
  def by_hand():
    features, after = {view: [None] * 4 for view in world.SIZES}, mutable
    for part in range(2):
      rows = jax.tree.map(lambda x, part=part: x[part::2], batch)
      some, after = method.features(params, after, rows, rng)
      for view, x in some.items():
        features[view][part::2] = x
    features = {view: jnp.stack(x) for view, x in features.items()}
    return method.loss_from_features(params, features, batch, 0)[0]

  loss, *_, grads = parts()
  np.testing.assert_allclose(loss, by_hand(), rtol=1e-5)
  assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_asam_steps_lower_the_loss():
  method, batch = make(loss_groups=1), world.batch()
  config = build.Optimizer(
    name='adamw', lr=1e-2, weight_decay=0.03, sam='asam', sam_rho=0.5
  )
  tx, _ = build.make(config, steps_per_epoch=1, total_epochs=20)
  step = jax.jit(
    state_lib.make_train_step(
      method, tx, augment=lambda key, x, view: x.astype(jnp.float32), seed=0
    )
  )
  state = state_lib.make_state(world.filled(method), tx, ema=False)
  losses = []
  for _ in range(12):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_training_keeps_float32_features_near_those_of_float32():
  batch = world.batch()
  variables = world.filled(make())
  _, exact, features = loss_and_features(make(), variables, batch)
  _, rough, rough_features = loss_and_features(
    make(dtype='bfloat16'), variables, batch
  )
  for view in world.SIZES:
    assert rough_features[view].dtype == features[view].dtype == jnp.float32
    cosine = np.sum(exact.embeddings[view] * rough.embeddings[view], axis=1)
    assert cosine.min() > 0.99
    assert cosine.max() < 1 - 1e-7  # It did run in bfloat16.


@pytest.mark.parametrize(
  'options, message',
  [
    ({'backbone': 'convnext'}, "backbone: got 'convnext', expected one of"),
    ({'pool': 'gem'}, r"pool: got 'gem', expected one of \('frm', 'avg'\)"),
    ({'frm_branch': 'auto'}, "frm_branch: got 'auto'"),
    ({'criterion': 'wbl'}, r"criterion: got 'wbl', expected .*weighted_tuple"),
    ({'views': ('panorama', 'drone')}, r"views: got .*expected \('panorama'"),
    ({'loss_groups': 0}, 'loss_groups 0 and'),
    ({'alpha': 0.0}, 'alpha 0.0 above 0'),
    ({'drop_path': 1.0}, 'drop_path: got 1.0'),
    ({'backbone': 'small_cnn', 'drop_path': 0.1}, 'no stochastic depth'),
  ],
)
def test_a_wrong_option_is_explained(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_a_missing_view_and_an_unknown_view_are_named():
  method = make()
  batch = world.batch()
  del batch['satellite']
  with pytest.raises(ValueError, match=r"'satellite' is not in the batch"):
    jax.eval_shape(method.init, jax.random.key(0), batch)
  with pytest.raises(ValueError, match="no network for view 'drone'"):
    method.embed({}, jnp.zeros((1, 64, 64, 3)), 'drone')


def test_the_layout_is_the_table_on_the_map_of_a_picture():
  """For the report: 128 x 512 and 256 x 256 pixels, 32 to a position."""
  method = make(**CONVNEXT)
  panorama = method.layout('panorama', (128, 512))
  assert panorama.shape == (4, 16)
  np.testing.assert_array_equal(panorama[0], np.repeat([1, 2, 3, 4], 4))
  satellite = method.layout('satellite', (256, 256))
  np.testing.assert_array_equal(satellite[::4, ::4], [[2, 3], [1, 4]])
  assert make(pool='avg').layout('panorama', (128, 512)) is None
  published = make(frm_branch='shape', **CONVNEXT)
  square = published.layout('panorama', (128, 128))
  np.testing.assert_array_equal(square[::2, ::2], [[2, 3], [1, 4]])
