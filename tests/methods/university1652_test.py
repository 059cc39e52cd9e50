"""The baseline: passes, losses, embeddings, published weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cvgl_jax.losses import classification, contrastive, metric, triplet
from cvgl_jax.methods import contract, university1652
from cvgl_jax.models import backbones
from tests import formula_weights, golden_case, torch_names

VIEWS = ('satellite', 'street', 'drone', 'google')
SMALL = {
  'num_classes': 5,
  'backbone': 'resnet18',
  'backbone_width': 4,
  'dim': 16,
}


def make(**options) -> university1652.Method:
  return university1652.Method(**{**SMALL, **options})


def batch(views=VIEWS, size=4, pixels=32, seed=0) -> dict:
  rng = np.random.default_rng(seed)
  return {
    view: {
      'image': rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8),
      'label': rng.integers(0, 5, size).astype(np.int32),
      'place': rng.integers(0, 5, size).astype(np.int32),
    }
    for view in views
  }


@functools.cache
def random_variables(method: university1652.Method) -> dict:
  """Variables without compiling the initialiser."""
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
  rng = np.random.default_rng(0)

  def draw(path, x):
    value = 0.3 * rng.standard_normal(x.shape) / max(1, x.ndim - 1)
    return np.float32(value + (path[-1].key in ('scale', 'var', 'p')))

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  stats = variables['batch_stats']
  variables['batch_stats'] = jax.tree.map(np.abs, stats)
  return variables


@functools.partial(jax.jit, static_argnums=(0, 3))
def embed(method, variables, images, view):
  return method.embed(variables, images, view)


def fake_features(views, dim=16, size=6, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  features = {
    v: jnp.asarray(rng.standard_normal((size, dim)), 'f4') for v in views
  }
  labels = {
    v: {'label': jnp.asarray(rng.integers(0, classes, size), jnp.int32)}
    for v in views
  }
  return features, labels


def head_params(dim=16, classes=5):
  rng = np.random.default_rng(9)
  kernel = jnp.asarray(rng.standard_normal((dim, classes)), 'f4')
  bias = jnp.asarray(rng.standard_normal(classes), 'f4')
  classifier = {'classifier_0': {'kernel': kernel, 'bias': bias}}
  return {'classifier': classifier}, lambda f: f @ kernel + bias[None]


@pytest.mark.parametrize(
  ('options', 'trunks'),
  [
    ({'views': ('satellite', 'street')}, ['model_1', 'model_2']),
    ({'views': ('satellite', 'drone')}, ['model_1', 'model_3']),
    (
      {'views': ('drone', 'satellite'), 'share_satellite_drone': True},
      ['model_1'],
    ),
    (
      {'views': ('satellite', 'street'), 'share_satellite_street': True},
      ['model_1'],
    ),
    ({'views': VIEWS}, ['model_1', 'model_2', 'model_3']),
    ({'views': VIEWS, 'share_satellite_drone': True}, ['model_1', 'model_2']),
  ],
)
def test_every_trunk_exists_once(options, trunks):
  shapes = jax.eval_shape(make(**options).init, jax.random.key(0), batch())
  assert sorted(shapes['params']) == ['classifier', *trunks]


def test_initial_variables_are_drawn_per_key_and_trunk():
  method = make(views=('satellite', 'drone'))
  init = jax.jit(method.init)
  first, second = (init(jax.random.key(i), batch()) for i in range(2))
  kernel = lambda v, trunk: np.asarray(
    v['params'][trunk]['model']['conv1']['kernel']
  )
  assert not np.array_equal(kernel(first, 'model_1'), kernel(second, 'model_1'))
  assert not np.array_equal(kernel(first, 'model_1'), kernel(first, 'model_3'))


def test_loss_is_the_composition_and_keeps_the_structure_of_the_state():
  method = make(views=('satellite', 'drone'), share_satellite_drone=True)
  variables, data = random_variables(method), batch(('satellite', 'drone'))
  mutable = {'batch_stats': variables['batch_stats']}
  args = (variables['params'], mutable, data, jax.random.key(3))
  loss, aux = jax.jit(method.loss)(*args, 0)
  features, after = jax.jit(method.features)(*args)
  again, metrics = method.loss_from_features(args[0], features, data, 0)
  np.testing.assert_allclose(loss, again, rtol=1e-5)
  assert loss.dtype == jnp.float32 and loss.shape == ()
  assert jax.tree.structure(after) == jax.tree.structure(mutable)
  assert jax.tree.structure(aux.mutable) == jax.tree.structure(mutable)
  assert aux.metrics.keys() == metrics.keys()
  for f in aux.embeddings.values():
    assert f.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, rtol=1e-5)


def test_passes_run_in_the_reference_order_whatever_the_views_say():
  first = make(views=VIEWS, share_satellite_drone=True)
  second = make(views=VIEWS[::-1], share_satellite_drone=True)
  variables, data = random_variables(first), batch()
  mutable = {'batch_stats': variables['batch_stats']}
  args = (variables['params'], mutable, data, jax.random.key(3))
  a, after_a = jax.jit(first.features)(*args)
  b, after_b = jax.jit(second.features)(*args)
  assert first.ordered_views == second.ordered_views == VIEWS
  jax.tree.map(np.testing.assert_array_equal, (a, after_a), (b, after_b))


def test_statistics_are_updated_once_per_view():
  method = make(
    views=('satellite', 'drone'), share_satellite_drone=True, droprate=0.0
  )
  variables, data = random_variables(method), batch(('satellite', 'drone'))
  data['drone'] = data['satellite']
  mutable = {'batch_stats': variables['batch_stats']}
  _, after = jax.jit(method.features)(
    variables['params'], mutable, data, jax.random.key(0)
  )
  pick = lambda s: np.asarray(
    s['batch_stats']['model_1']['model']['bn1']['mean'], np.float64
  )
  start, end = pick(mutable), pick(after)
  alone = make(views=('satellite',), droprate=0.0)
  _, once = jax.jit(alone.features)(
    variables['params'], mutable, data, jax.random.key(0)
  )
  batch_mean = (pick(once) - 0.9 * start) / 0.1
  expected = 0.81 * start + 0.19 * batch_mean
  np.testing.assert_allclose(end, expected, rtol=1e-3, atol=1e-5)


def test_dropout_masks_differ_between_views_and_repeat_with_the_key():
  method = make(
    views=('satellite', 'drone'), share_satellite_drone=True, dim=64
  )
  variables, data = random_variables(method), batch(('satellite', 'drone'))
  data['drone'] = data['satellite']
  mutable = {'batch_stats': variables['batch_stats']}
  run = jax.jit(method.features)
  f, _ = run(variables['params'], mutable, data, jax.random.key(0))
  g, _ = run(variables['params'], mutable, data, jax.random.key(0))
  h, _ = run(variables['params'], mutable, data, jax.random.key(1))
  dropped = lambda x: np.asarray(x) == 0
  np.testing.assert_array_equal(f['satellite'], g['satellite'])
  assert (dropped(f['satellite']) != dropped(f['drone'])).any()
  assert (dropped(f['satellite']) != dropped(h['satellite'])).any()


def test_instance_loss_weighs_the_views():
  features, data = fake_features(VIEWS)
  params, logits = head_params()
  ce = {
    v: float(classification.cross_entropy(logits(f), data[v]['label']))
    for v, f in features.items()
  }
  value = lambda **o: float(
    make(views=VIEWS, **o).loss_from_features(params, features, data, 0)[0]
  )
  np.testing.assert_allclose(value(), sum(ce.values()), rtol=1e-5)
  np.testing.assert_allclose(
    value(street_weight=0.0), sum(ce.values()) - ce['street'], rtol=1e-5
  )
  np.testing.assert_allclose(
    value(instance_weight=0.5), sum(ce.values()) / 2, rtol=1e-5
  )
  # Views of equal size: the mean over all, times four.
  np.testing.assert_allclose(
    value(loss_merge=True), sum(ce.values()), rtol=1e-5
  )


def test_street_without_weight_gets_zero_gradients_not_none():
  features, data = fake_features(VIEWS)
  params, _ = head_params()
  method = make(views=VIEWS, street_weight=0.0)
  grads = jax.grad(lambda f: method.loss_from_features(params, f, data, 0)[0])(
    features
  )
  np.testing.assert_array_equal(grads['street'], 0)
  assert np.abs(grads['drone']).max() > 0


def metric_oracle(name, x, y, prototypes, size):
  match name:
    case 'circle':
      return contrastive.circle_loss(x, y, margin=0.25, gamma=32.0) / size
    case 'triplet':
      return triplet.multi_similarity_triplet_loss(x, y, margin=0.3)
    case 'contrast':
      return contrastive.contrastive_loss(x, y)
    case 'lifted':
      return contrastive.lifted_loss(x, y)
    case 'arcface':
      return classification.arcface_loss(x, y, prototypes)
    case 'cosface':
      return classification.cosface_loss(x, y, prototypes)
    case 'sphere':
      return classification.sphere_loss(x, y, prototypes) / size


@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize(
  'name',
  ['circle', 'triplet', 'contrast', 'lifted', 'arcface', 'cosface', 'sphere'],
)
def test_metric_losses_add_to_the_instance_loss(name, merge):
  features, data = fake_features(VIEWS)
  params, logits = head_params()
  rng = np.random.default_rng(4)
  prototypes = jnp.asarray(rng.standard_normal((16, 5)), 'f4')
  params[f'prototypes_{name}'] = prototypes
  method = make(
    views=VIEWS,
    losses=metric.Weights(**{name: 0.5}),
    loss_merge=merge,
    prototype_trainable=True,
  )
  loss, metrics = method.loss_from_features(params, features, data, 0)
  expected = sum(
    classification.cross_entropy(logits(f), data[v]['label'])
    for v, f in features.items()
  )
  if merge:
    x = jnp.concatenate(list(features.values()))
    y = jnp.concatenate([slot['label'] for slot in data.values()])
    term = metric_oracle(name, x, y, prototypes, 6)
  else:
    terms = {
      v: metric_oracle(name, f, data[v]['label'], prototypes, 6)
      for v, f in features.items()
    }
    if name == 'sphere':
      terms['google'] *= 6  # Not divided in the release.
    term = sum(terms.values())
  np.testing.assert_allclose(metrics[name], term, rtol=1e-5)
  np.testing.assert_allclose(loss, expected + 0.5 * term, rtol=1e-5)


def test_fixed_prototypes_are_the_same_at_every_step_and_no_parameter():
  losses = metric.Weights(arcface=1.0)
  method = make(views=('satellite', 'drone'), losses=losses)
  features, data = fake_features(('satellite', 'drone'))
  params, _ = head_params()
  run = jax.jit(method.loss_from_features)
  first, _ = run(params, features, data, 0)
  later, _ = run(params, features, data, 1000)
  assert float(first) == float(later)
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
  assert not any('prototypes' in name for name in shapes['params'])
  trained = dataclasses.replace(method, prototype_trainable=True)
  shapes = jax.eval_shape(trained.init, jax.random.key(0), batch())
  assert shapes['params']['prototypes_arcface'].shape == (16, 5)
  assert trained.label('prototypes_arcface') == 'classifier'


def test_info_nce_pairs_the_first_view_with_every_other():
  views = ('drone', 'satellite', 'street')
  features, data = fake_features(views)
  label = jnp.array([0, 1, 2, 2, 3, 4])  # One place repeats.
  data = {v: {'label': label} for v in views}
  params, _ = head_params()
  method = make(
    views=views,
    instance_weight=0.0,
    losses=metric.Weights(info_nce=2.0),
    temperature=0.1,
  )
  loss, _ = method.loss_from_features(params, features, data, 0)

  def one(a, b):
    a, b = (np.asarray(features[v], np.float64) for v in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    s, total = a @ b.T / 0.1, 0.0
    for i in range(6):
      others = [j for j in range(6) if j == i or label[j] != label[i]]
      total += np.log(np.exp(s[i, others]).sum()) - s[i, i]
      total += np.log(np.exp(s[others, i]).sum()) - s[i, i]
    return total / 12

  expected = 2 * (one('drone', 'satellite') + one('drone', 'street'))
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_embedding_has_unit_norm_and_takes_integers_or_floats():
  method = make(views=('satellite', 'drone'))
  variables, data = random_variables(method), batch(('drone',))
  images = data['drone']['image']
  f = embed(method, variables, images, 'drone')
  assert f.shape == (4, 16) and f.dtype == jnp.float32
  np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, rtol=1e-5)
  raw = jax.jit(method.embed_raw, static_argnums=2)(
    variables, images.astype(np.float32), 'drone'
  )
  norm = np.linalg.norm(raw, axis=1, keepdims=True)
  np.testing.assert_allclose(raw / norm, f, rtol=1e-3, atol=1e-5)
  other = embed(method, variables, images, 'satellite')
  assert np.abs(np.asarray(other - f)).max() > 1e-3


def test_embedding_a_view_without_a_trunk_is_an_error():
  method = make(views=('satellite', 'street'))
  variables = random_variables(method)
  images = batch(('drone',))['drone']['image']
  with pytest.raises(ValueError, match=r"no trunk for view 'drone'"):
    method.embed(variables, images, 'drone')
  google = jax.eval_shape(
    functools.partial(method.embed, view='google'), variables, images
  )
  assert google.shape == (4, 16)  # Through the street trunk.


def test_usam_adds_two_values_a_place_and_changes_the_embedding():
  plain = make(views=('satellite',))
  usam = make(views=('satellite',), attention='usam')
  variables = random_variables(usam)
  trunk = variables['params']['model_1']
  assert sorted(trunk) == ['model', 'usam_1', 'usam_2']
  assert sum(x.size for x in jax.tree.leaves(trunk['usam_1'])) == 2
  images = batch(('satellite',))['satellite']['image']
  a = embed(usam, variables, images, 'satellite')
  b = embed(plain, variables, images, 'satellite')
  assert np.abs(np.asarray(a - b)).max() > 1e-3


def test_bfloat16_gives_float32_features_near_those_of_float32():
  method = make(views=('satellite',), dtype='bfloat16')
  variables = random_variables(method)
  images = batch(('satellite',))['satellite']['image']
  f = embed(method, variables, images, 'satellite')
  exact = embed(make(views=('satellite',)), variables, images, 'satellite')
  assert f.dtype == jnp.float32
  assert np.all(np.sum(np.asarray(f) * np.asarray(exact), 1) > 0.995)


def test_groups_are_those_of_the_reference():
  shapes = jax.eval_shape(make().init, jax.random.key(0), batch())
  paths = jax.tree_util.tree_flatten_with_path(shapes['params'])[0]
  names = [
    jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in paths
  ]
  heads = [name for name in names if make().label(name) == 'classifier']
  assert len(heads) == 6
  assert all(name.startswith('classifier/') for name in heads)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'backbone': 'resnet51'}, r"backbone: got 'resnet51'.*resnet101"),
    ({'pool': 'mean'}, r"pool: got 'mean'"),
    ({'dtype': 'float16'}, r'dtype'),
    ({'views': ()}, r'views: got'),
    ({'views': ('satellite', 'ground')}, r"views: got.*'google'"),
    ({'views': ('drone', 'drone')}, r'different ones'),
    ({'droprate': 1.0}, r'droprate'),
    ({'attention': 'usam', 'backbone': 'vgg16_bn'}, r'ResNets'),
    ({'loss_merge': True, 'street_weight': 0.0}, r'street_weight'),
  ],
)
def test_settings_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_missing_classes_and_views_are_explained():
  with pytest.raises(ValueError, match='num_classes: got 0'):
    make(num_classes=0).init(jax.random.key(0), batch())
  with pytest.raises(ValueError, match=r"\['street'\] are not in the batch"):
    make().init(jax.random.key(0), batch(('satellite', 'drone')))


def checkpoint(method, variables) -> dict:
  """The state dict that the reference would save for these variables."""
  result = torch_names.state_dict(variables)
  for trunk in {v for v in method.trunks.values()}:
    result[f'{trunk}.model.fc.weight'] = np.ones((1000, 3), np.float32)
    result[f'{trunk}.model.bn1.num_batches_tracked'] = np.int64(5)
  if method.share_satellite_drone:
    for name in [n for n in result if n.startswith('model_1.')]:
      result[name.replace('model_1', 'model_3')] = result[name]
  return result


def test_published_checkpoints_fill_every_variable():
  method = make(share_satellite_drone=True, attention='usam', pool='gem')
  variables = random_variables(method)
  source = checkpoint(method, variables)
  source['model_1.usam_1.weight'] = np.ones((1, 1, 3, 3), np.float32)
  source['model_1.usam_1.weight2'] = np.ones((1, 1, 1, 1), np.float32)
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
  result = method.variables_from_torch(shapes, source, where='net_119.pth')
  jax.tree.map(np.testing.assert_array_equal, result, variables)


def test_checkpoints_of_other_settings_are_explained():
  method = make(share_satellite_drone=True)
  variables = random_variables(method)
  source = checkpoint(method, variables)
  load = lambda m, s: m.variables_from_torch(
    jax.eval_shape(m.init, jax.random.key(0), batch()), s, where='net.pth'
  )
  with pytest.raises(ValueError, match=r'5 training places.*num_classes=5'):
    load(dataclasses.replace(method, num_classes=7), source)
  untied = source | {'model_3.model.conv1.weight': np.zeros((4, 3, 7, 7))}
  with pytest.raises(
    ValueError, match=r'keeps apart.*\n.*model_3\.model\.conv1'
  ):
    load(method, untied)
  with pytest.raises(ValueError, match=r'missing.*model_2/model'):
    street = [n for n in source if n.startswith('model_2.')]
    load(method, {k: v for k, v in source.items() if k not in street})


def test_imagenet_weights_fill_every_trunk_and_leave_the_head(tmp_path):
  method = make(views=('satellite', 'drone'), pool='gem', attention='usam')
  variables = random_variables(method)
  whole = checkpoint(method, variables)
  prefix = 'model_1.model.'
  source = {
    k.removeprefix(prefix): v + 1
    for k, v in whole.items()
    if k.startswith(prefix) and 'gem2' not in k
  }
  source = {k: np.ascontiguousarray(v) for k, v in source.items()}
  path = str(tmp_path / 'resnet18.safetensors')
  safetensors.numpy.save_file(source, path)
  result = contract.load_pretrained(method, variables, path)
  assert jax.tree.structure(result) == jax.tree.structure(variables)
  old, new = variables['params'], result['params']
  for trunk in ('model_1', 'model_3'):
    kernel = new[trunk]['model']['layer2_0']['downsample_0']['kernel']
    expected = old['model_1']['model']['layer2_0']['downsample_0']['kernel'] + 1
    np.testing.assert_array_equal(kernel, expected)
    for kept in ('usam_1', 'usam_2'):
      np.testing.assert_array_equal(
        new[trunk][kept]['bn']['scale'], old[trunk][kept]['bn']['scale']
      )
  jax.tree.map(
    np.testing.assert_array_equal, new['classifier'], old['classifier']
  )
  wide = make(views=('satellite',), backbone_width=8)
  shapes = jax.eval_shape(wide.init, jax.random.key(0), batch())
  with pytest.raises(
    ValueError,
    match=r'of another shape.*bn1\.running_mean \(4,\), expected \(8,\)',
  ):
    wide.variables_from_torch(shapes, source, where=path)


def test_torchvision_resnet50_weights_give_the_golden_features(
  tmp_path, golden_dir
):
  folder = golden_dir / 'university1652'
  if not (folder / 'ft_net_s1_avg.npz').exists():
    pytest.skip(f'{folder} has no ft_net_s1_avg.npz')
  case = golden_case.Case(folder / 'ft_net_s1_avg.npz')
  source = formula_weights.state_dict(case.names('ft_net'))
  source = {k.removeprefix('model.'): v for k, v in source.items()}
  source['bn1.num_batches_tracked'] = np.array(7)
  assert 'fc.weight' in source
  path = str(tmp_path / 'resnet50.safetensors')
  safetensors.numpy.save_file(source, path)
  method = university1652.Method(
    num_classes=3, views=('satellite',), last_stride=1
  )
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch(('satellite',)))
  variables = contract.load_pretrained(method, shapes, path)
  trunk = {name: tree['model_1'] for name, tree in variables.items()}
  x = torch_names.nhwc(case.normal())
  with jax.default_matmul_precision('highest'):
    feature = jax.jit(
      lambda v, x: backbones.Trunk(last_stride=1).apply(v, x, train=False)
    )(trunk, x)
  case.close('out/feature', feature, rtol=1e-5)


def test_loss_ignores_the_order_of_the_batch():
  method = make(
    views=('satellite', 'drone'), share_satellite_drone=True, droprate=0.0
  )
  variables, data = random_variables(method), batch(('satellite', 'drone'))
  shuffled = {
    view: {k: v[::-1].copy() for k, v in slot.items()}
    for view, slot in data.items()
  }
  mutable = {'batch_stats': variables['batch_stats']}
  run = jax.jit(method.loss)
  key = jax.random.key(0)
  first, _ = run(variables['params'], mutable, data, key, 0)
  second, _ = run(variables['params'], mutable, shuffled, key, 0)
  np.testing.assert_allclose(first, second, rtol=1e-4)


def test_an_embedding_does_not_depend_on_its_batch():
  method = make(views=('satellite',))
  variables = random_variables(method)
  images = batch(('satellite',))['satellite']['image']
  whole = embed(method, variables, images, 'satellite')
  alone = embed(method, variables, images[1:2], 'satellite')
  np.testing.assert_allclose(whole[1:2], alone, rtol=1e-3, atol=1e-5)
