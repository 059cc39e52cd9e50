"""TransGeo: the second stage's tokens, its teacher, published weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import cross_view
from cvgl_jax.methods import contract, transgeo
from cvgl_jax.models import layers, vit
from tests.methods import panorama_world as world

FIRST = {'panorama': (32, 72), 'satellite': (64, 64)}
SECOND = {'panorama': (32, 72), 'satellite': (80, 80)}


def make(stage=1, **options) -> transgeo.Method:
  small = {'width': 8, 'depth': 2, 'heads': 2, 'dim': 12}
  small |= {'attend_size': FIRST['satellite'], 'stage': stage}
  return transgeo.Method(**{**small, **options})


@functools.partial(jax.jit, static_argnums=(0, 3))
def embed(method, variables, images, view):
  return method.embed(variables, images, view)


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


def release(variables, **changes) -> dict:
  """Its published checkpoint."""
  source = {}
  for name, tree in variables['params'].items():
    source |= world.published(tree, f'{name}.')
  return source | changes


def test_the_loss_is_that_of_the_two_views_and_reaches_every_weight():
  method, batch = make(), world.batch(FIRST)
  variables = world.filled(method, FIRST)
  (loss, aux), grads = loss_and_gradient(method, variables, batch)
  expected = cross_view.soft_triplet_loss(
    aux.embeddings['panorama'], aux.embeddings['satellite'], alpha=20.0
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  assert aux.embeddings['panorama'].shape == (4, 12)
  world.check_equal(aux.mutable, variables['constants'] and split(variables)[1])
  assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_the_second_stage_keeps_the_patches_that_the_first_one_looked_at():
  method, batch = make(2), world.batch(SECOND)
  variables = world.filled(method, SECOND)
  pictures = layers.normalize_image(batch['satellite']['image'])

  @jax.jit
  def by_hand(pictures):
    small = jax.image.resize(pictures, (4, 64, 64, 3), 'linear')
    teacher = {'params': variables['teacher']['reference_net']}
    attention = method.network.apply(teacher, small, method='attention')
    resized = vit.resize_attention(attention, (5, 5)).reshape(4, 25)
    keep = jnp.argsort(-resized, axis=1, stable=True)[:, :16]
    student = {'params': variables['params']['reference_net']}
    return keep, method.network.apply(student, pictures, keep=keep)

  kept = jax.jit(method.kept_patches)(variables, pictures)
  expected, features = by_hand(pictures)
  assert kept.shape == (4, 16)  # int(0.64 * 25), as many as stage 1 has.
  np.testing.assert_array_equal(kept, np.sort(expected, axis=1))
  raw = jax.jit(method.embed_raw, static_argnums=2)(
    variables, batch['satellite']['image'], 'satellite'
  )
  np.testing.assert_allclose(raw, features, rtol=1e-4, atol=1e-5)


def test_what_is_not_kept_changes_nothing_but_where_to_look():
  """The students's tokens are of the kept patches alone."""
  method, batch = make(2), world.batch(SECOND)
  variables = world.filled(method, SECOND)
  pictures = layers.normalize_image(batch['satellite']['image'])
  kept = np.asarray(jax.jit(method.kept_patches)(variables, pictures))
  mask = np.zeros((4, 25), bool)
  np.put_along_axis(mask, kept, True, axis=1)
  mask = mask.reshape(4, 5, 1, 5, 1).repeat(16, 2).repeat(16, 4)
  blanked = np.where(mask.reshape(4, 80, 80, 1), pictures, 0)
  student = {'params': variables['params']['reference_net']}
  call = jax.jit(lambda x: method.network.apply(student, x, keep=kept))
  np.testing.assert_allclose(call(pictures), call(blanked), rtol=1e-5)


def test_the_teacher_is_kept_as_it_is_and_gets_no_gradient():
  method, batch = make(2), world.batch(SECOND)
  variables = world.filled(method, SECOND)
  (_, aux), grads = loss_and_gradient(method, variables, batch)
  world.check_equal(aux.mutable['teacher'], variables['teacher'])
  assert set(grads) == {'query_net', 'reference_net'}
  assert {method.label(f'{name}/norm/scale') for name in grads} == set(grads)


def test_the_second_stage_with_all_patches_of_the_same_picture_is_the_first():
  first, second = make(), make(2, sat_keep=1.0)
  start = world.filled(first, FIRST)
  variables = second.variables_from_run(
    world.filled(second, FIRST, seed=1), start, where='runs/first'
  )
  batch = world.batch(FIRST)
  for view in FIRST:
    np.testing.assert_allclose(
      embed(second, variables, batch[view]['image'], view),
      embed(first, start, batch[view]['image'], view),
      rtol=1e-4,
      atol=1e-5,
    )


def test_the_second_stage_starts_from_a_run_of_the_first():
  start = world.filled(make(), FIRST)
  variables = make(2).variables_from_run(
    world.filled(make(2), SECOND, seed=1), start, where='runs/first'
  )
  ours = variables['params']['reference_net']
  theirs = start['params']['reference_net']
  world.check_equal(variables['teacher']['reference_net'], theirs)
  world.check_equal(
    variables['params']['query_net'], start['params']['query_net']
  )
  expected = vit.resize_positions(theirs['pos_embed'], (5, 5))
  np.testing.assert_allclose(ours['pos_embed'], expected, rtol=1e-6)
  world.check_equal(
    {k: v for k, v in ours.items() if k != 'pos_embed'},
    {k: v for k, v in theirs.items() if k != 'pos_embed'},
  )
  np.testing.assert_array_equal(
    variables['constants']['grid']['reference_net'], [5, 5]
  )


def test_the_second_stage_goes_on_from_the_second_stage():
  start = world.filled(make(2), SECOND)
  variables = make(2).variables_from_run(
    world.filled(make(2), SECOND, seed=1), start, where='runs/second'
  )
  world.check_equal(variables, start)


def test_a_run_of_other_networks_is_refused():
  start = world.filled(make(dim=10), FIRST)
  with pytest.raises(ValueError, match=r'runs/x: a run of other .* \(8, 10\)'):
    make().variables_from_run(
      world.filled(make(), FIRST), start, where='runs/x'
    )
  bigger = {**FIRST, 'satellite': (96, 96)}
  with pytest.raises(ValueError, match=r'teacher/reference_net/pos_embed is'):
    make(2).variables_from_run(
      world.filled(make(2), SECOND),
      world.filled(make(), bigger),
      where='runs/x',
    )


def test_a_released_first_stage_starts_either_stage(tmp_path):
  start = world.filled(make(), FIRST)
  prefixed = {f'module.{k}': v for k, v in release(start).items()}
  path = world.write(tmp_path / 'a.pth.tar', prefixed, inside='state_dict')
  again = contract.load_pretrained(
    make(), world.filled(make(), FIRST, seed=1), path
  )
  world.check_equal(again, start)
  second = contract.load_pretrained(
    make(2), world.filled(make(2), SECOND, seed=1), path
  )
  expected = make(2).variables_from_run(
    world.filled(make(2), SECOND, seed=1), start, where='there'
  )
  world.check_equal(second, expected)


def test_a_released_second_stage_needs_its_first_stage(tmp_path):
  second = world.filled(make(2), SECOND)
  path = world.write(tmp_path / 'second.pth.tar', release(second))
  blank = world.filled(make(2), SECOND, seed=1)
  with pytest.raises(ValueError, match=r'has 25 patches, stage 1 has 4x4 .*te'):
    contract.load_pretrained(make(2), blank, path)
  first = {'params': {**second['params'], **second['teacher']}}
  method = make(
    2, teacher_weights=world.write(tmp_path / 'first.pth', release(first))
  )
  world.check_equal(contract.load_pretrained(method, blank, path), second)


def test_imagenet_weights_start_the_first_stage_only(tmp_path):
  """A square grid of positions, another number of classes."""
  square = {view: (48, 48) for view in FIRST}
  deit = world.filled(make(dim=20), square)['params']['query_net']
  path = world.write(tmp_path / 'deit.pth', world.published(deit))
  blank = world.filled(make(), FIRST, seed=1)
  params = contract.load_pretrained(make(), blank, path)['params']
  for name, grid in (('query_net', (2, 4)), ('reference_net', (4, 4))):
    expected = vit.resize_positions(deit['pos_embed'], grid)
    np.testing.assert_allclose(params[name]['pos_embed'], expected, rtol=1e-6)
    world.check_equal(params[name]['blocks_0'], deit['blocks_0'])
    np.testing.assert_array_equal(
      params[name]['head_dist']['bias'], deit['head_dist']['bias'][:12]
    )
  with pytest.raises(ValueError, match='stage 2 starts from stage 1'):
    contract.load_pretrained(make(2), world.filled(make(2), SECOND), path)


def test_pictures_of_another_size_are_refused():
  batch = world.batch({**FIRST, 'satellite': (96, 96)})
  with pytest.raises(ValueError, match='pos_embed has positions for 16'):
    embed(
      make(),
      world.filled(make(), FIRST),
      batch['satellite']['image'],
      'satellite',
    )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'stage': 3}, r'stage: got 3, expected one of \(1, 2\)'),
    ({'criterion': 'triplet'}, "criterion: got 'triplet'"),
    ({'heads': 3}, 'heads: 3 do not divide the width 8'),
    ({'depth': 0}, 'depth: got 0'),
    ({'sat_keep': 0.0}, 'sat_keep 0.0 above 0'),
    ({'attend_size': (8, 64)}, r'attend_size: got \(8, 64\)'),
    ({'views': ('satellite',)}, r"views: got \('satellite',\)"),
    ({'dtype': 'float16'}, "dtype: got 'float16'"),
  ],
)
def test_a_wrong_option_is_explained(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_evaluation_is_float32_whatever_training_is():
  variables, batch = world.filled(make(), FIRST), world.batch(FIRST)
  rough = dataclasses.replace(make(), dtype='bfloat16')
  images = batch['panorama']['image']
  np.testing.assert_array_equal(
    embed(make(), variables, images, 'panorama'),
    embed(rough, variables, images, 'panorama'),
  )
