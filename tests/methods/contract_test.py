"""Every method keeps the contract of `methods/contract.py`, by shapes alone."""

import dataclasses
import functools
import pkgutil

import jax
import jax.numpy as jnp
import pytest

from cvgl_jax import methods, strict
from cvgl_jax.methods import contract

# Toy settings of every method; a new method adds its own line.
TOY = {
  'university1652': {
    'num_classes': 5,
    'backbone': 'resnet18',
    'backbone_width': 4,
    'dim': 16,
  },
  'frgeo': {'backbone': 'convnext_mini', 'backbone_width': 4},
  'transgeo': {
    'stage': 2,
    'attend_size': (32, 32),
    'width': 8,
    'depth': 2,
    'heads': 2,
    'dim': 12,
  },
  'sample4geo': {'backbone': 'convnext_mini', 'backbone_width': 4},
  'plcd': {
    'num_classes': 5,
    'backbone': 'resnet18',
    'backbone_width': 4,
    'dim': 16,
  },
}
# (height, width) of the pictures of a view, where the method asks for more.
SIZES = {'panorama': (64, 128), 'satellite': (64, 64)}
NAMES = sorted(
  m.name for m in pkgutil.iter_modules(methods.__path__) if m.name != 'contract'
)


@functools.cache
def method(name):
  cls = strict.load('cvgl_jax.methods', name, 'Method')
  return strict.make(cls, TOY[name], f'toy {name}')


def pictures(view, size, dtype=jnp.float32):
  shape = (size, *SIZES.get(view, (32, 32)), 3)
  return jax.ShapeDtypeStruct(shape, dtype)


def abstract_batch(views, size=4):
  number = jax.ShapeDtypeStruct((size,), jnp.int32)
  return {
    view: {
      'image': pictures(view, size),
      **dict.fromkeys(('label', 'place', 'row'), number),
    }
    for view in views
  }


@functools.cache
def variables(name):
  m = method(name)
  return jax.eval_shape(m.init, jax.random.key(0), abstract_batch(m.views))


def dtypes(tree):
  return {x.dtype for x in jax.tree.leaves(tree)}


def test_every_method_has_toy_settings():
  assert sorted(TOY) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_methods_are_frozen_and_hashable(name):
  hash(method(name))
  with pytest.raises(dataclasses.FrozenInstanceError):
    method(name).views = ()


@pytest.mark.parametrize('name', NAMES)
def test_variables_are_float32_and_every_parameter_has_a_group(name):
  tree = variables(name)
  assert dtypes(tree) == {jnp.dtype('float32')}
  for path, _ in jax.tree_util.tree_flatten_with_path(tree['params'])[0]:
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    assert isinstance(method(name).label(path), str)


@pytest.mark.parametrize('name', NAMES)
def test_loss_returns_a_scalar_and_a_state_of_the_same_form(name):
  m, tree = method(name), dict(variables(name))
  params = tree.pop('params')
  batch = abstract_batch(m.views)
  loss, aux = jax.eval_shape(m.loss, params, tree, batch, jax.random.key(0), 0)
  assert isinstance(aux, contract.Aux)
  assert loss.shape == () and loss.dtype == jnp.float32
  assert jax.tree.map(lambda x: (x.shape, x.dtype), aux.mutable) == (
    jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  )
  assert all(value.shape == () for value in aux.metrics.values())
  assert set(aux.embeddings) == set(m.views)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [jnp.uint8, jnp.float32])
def test_embeddings_are_float32_rows(name, dtype):
  m = method(name)
  for view in m.views:
    images = pictures(view, 3, dtype)
    for function in (m.embed, m.embed_raw):
      out = jax.eval_shape(
        functools.partial(function, view=view), variables(name), images
      )
      assert out.ndim == 2 and out.shape[0] == 3 and out.dtype == jnp.float32


def test_nested_sections_reach_the_method():
  cls = strict.load('cvgl_jax.methods', 'university1652', 'Method')
  made = strict.make(cls, {'losses': {'circle': 1}}, 'config.method')
  assert made.losses.active() == {'circle': 1.0}
  with pytest.raises(ValueError, match=r"config\.method\.losses.*'circle'"):
    strict.make(cls, {'losses': {'cirle': 1.0}}, 'config.method')
