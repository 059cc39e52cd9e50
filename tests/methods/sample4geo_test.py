"""Sample4Geo: one network, a learned temperature, published weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import contrastive
from cvgl_jax.methods import contract, sample4geo
from cvgl_jax.optim import build
from tests.methods import panorama_world as world

DRONE = {'drone': (48, 48), 'satellite': (48, 48)}


def make(**options) -> sample4geo.Method:
  small = {'backbone': 'small_cnn', 'backbone_width': 2}
  return sample4geo.Method(**{**small, **options})


def convnext(**options) -> sample4geo.Method:
  return make(backbone='convnext_mini', backbone_width=4, **options)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(method, variables, batch):
  params, mutable = split(variables)
  return jax.value_and_grad(method.loss, has_aux=True)(
    params, mutable, batch, jax.random.key(0), 0
  )


def split(variables):
  """(params, mutable)."""
  rest = {k: v for k, v in variables.items() if k != 'params'}
  return variables['params'], rest


def test_the_loss_is_smoothed_info_nce_at_the_learned_scale():
  method, batch = make(), world.batch()
  variables = world.filled(method)
  (loss, aux), grads = loss_and_gradient(method, variables, batch)
  query, reference = (aux.embeddings[v] for v in ('panorama', 'satellite'))
  of_scale = lambda t: contrastive.info_nce_loss(
    query, reference, temperature=jnp.exp(-t), label_smoothing=0.1
  )
  t = variables['params']['logit_scale']
  np.testing.assert_allclose(loss, of_scale(t), rtol=1e-5)
  np.testing.assert_allclose(aux.metrics['logit_scale'], np.exp(t), rtol=1e-6)
  slope = (of_scale(t + 0.01) - of_scale(t - 0.01)) / 0.02
  np.testing.assert_allclose(grads['logit_scale'], slope, rtol=1e-2, atol=1e-3)
  assert query.shape == (4, 8)


def test_both_views_pass_through_the_same_weights():
  method = make(views=tuple(DRONE))
  variables, batch = world.filled(method, DRONE), world.batch(DRONE)
  assert set(variables['params']) == {'model', 'logit_scale'}
  embed = jax.jit(method.embed, static_argnums=2)
  images = batch['drone']['image']
  np.testing.assert_array_equal(
    embed(variables, images, 'drone'), embed(variables, images, 'satellite')
  )
  batch['satellite']['image'] = images  # Then S is symmetric.
  (_, aux), _ = loss_and_gradient(method, variables, batch)
  np.testing.assert_allclose(aux.metrics['similarity/positive'], 1.0, rtol=1e-3)


def test_the_scale_starts_at_one_over_0_07_and_is_never_clipped():
  method, batch = make(), world.batch()
  variables = jax.jit(method.init)(jax.random.key(0), batch)
  scale = variables['params']['logit_scale']
  np.testing.assert_allclose(np.exp(scale), 1 / 0.07, rtol=1e-5)
  assert scale.shape == () and scale.dtype == jnp.float32
  variables = world.filled(method)
  params = {**variables['params'], 'logit_scale': np.float32(6.0)}
  (_, aux), grads = loss_and_gradient(
    method, {**variables, 'params': params}, batch
  )
  np.testing.assert_allclose(aux.metrics['logit_scale'], np.exp(6), rtol=1e-6)
  assert grads['logit_scale'] != 0


def test_the_recipe_decays_and_clips_the_scale_as_everything_else():
  config = build.Optimizer(
    name='adamw',
    lr=1e-3,
    weight_decay=0.01,
    clip_value=100.0,
    groups={'model': 1.0, 'logit_scale': 1.0},
  )
  tx, _ = build.make(
    config, steps_per_epoch=1, total_epochs=1, labels=make().label
  )
  params = {
    'model': {'norm': {'bias': jnp.ones(2)}},
    'logit_scale': jnp.ones([]),
  }
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  jax.tree.map(
    lambda u: np.testing.assert_allclose(u, -1e-5, rtol=1e-5), updates
  )


@pytest.mark.parametrize('naming', [world.published, world.timm])
def test_a_released_checkpoint_is_read_with_its_own_names(naming, tmp_path):
  method = convnext()
  variables = world.filled(method)
  params = variables['params']
  source = naming(params['model'], 'model.')
  source['logit_scale'] = np.asarray(params['logit_scale'])
  path = world.write(tmp_path / 'weights_e40_98.6830.pth', source)
  start = jax.tree.map(np.zeros_like, variables)
  loaded = contract.load_pretrained(method, start, path)
  world.check_equal(loaded, variables)
  assert np.shape(loaded['params']['logit_scale']) == ()
  if naming is world.timm:
    assert 'model.stages.2.blocks.1.mlp.fc1.weight' in source
    assert 'model.head.norm.weight' in source


def test_imagenet_weights_leave_the_scale_alone(tmp_path):
  method = convnext()
  variables = world.filled(method)
  other = world.filled(method, seed=1)['params']['model']
  head = {'head.fc.weight': np.zeros((7, 16)), 'head.fc.bias': np.zeros(7)}
  path = world.write(tmp_path / 'x.pth', world.timm(other) | head)
  loaded = contract.load_pretrained(method, variables, path)['params']
  world.check_equal(loaded['model'], other)
  np.testing.assert_array_equal(
    loaded['logit_scale'], variables['params']['logit_scale']
  )


def test_a_release_without_its_scale_is_refused(tmp_path):
  method = convnext()
  variables = world.filled(method)
  source = world.timm(variables['params']['model'], 'model.')
  path = world.write(tmp_path / 'x.pth', source)
  with pytest.raises(ValueError, match=r'missing \(1\): logit_scale'):
    contract.load_pretrained(method, variables, path)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'views': ('satellite',)}, r"views: got \('satellite',\), expected two"),
    ({'views': ('drone', 'drone')}, 'expected two different'),
    ({'views': ('drone', 'satellite'), 'pool': 'frm'}, "pool: 'frm' cuts"),
    ({'backbone': 'vit'}, "backbone: got 'vit'"),
    ({'label_smoothing': 1.0}, 'label_smoothing: got 1.0'),
    ({'initial_temperature': 0.0}, 'initial_temperature 0.0 above 0'),
    ({'drop_path': 0.1}, "drop_path: 'small_cnn' has no stochastic depth"),
  ],
)
def test_a_wrong_option_is_explained(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
