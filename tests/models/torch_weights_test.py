"""Filling variables from a state dict: one rule, and every fault listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import torch_weights

VARIABLES = {
  'params': {
    'layer1_0': {
      'conv1': {'kernel': np.zeros((3, 3, 2, 4), np.float32)},
      'bn1': {
        'scale': np.zeros(4, np.float32),
        'bias': np.zeros(4, np.float32),
      },
    },
    'fc': {
      'kernel': np.zeros((4, 5), np.float32),
      'bias': np.zeros(5, np.float32),
    },
    'gem2': {'p': np.full(4, 3, np.float32)},
  },
  'batch_stats': {
    'layer1_0': {
      'bn1': {'mean': np.zeros(4, np.float32), 'var': np.zeros(4, np.float32)}
    }
  },
}


def source() -> dict[str, np.ndarray]:
  shapes = {
    'layer1.0.conv1.weight': (4, 2, 3, 3),
    'layer1.0.bn1.weight': (4,),
    'layer1.0.bn1.bias': (4,),
    'layer1.0.bn1.running_mean': (4,),
    'layer1.0.bn1.running_var': (4,),
    'fc.weight': (5, 4),
    'fc.bias': (5,),
    'gem2.p': (4,),
  }
  rng = np.random.default_rng(0)
  return {k: rng.standard_normal(s).astype('f4') for k, s in shapes.items()}


def test_every_entry_lands_in_its_variable_in_flax_layout():
  given = source()
  result = torch_weights.convert(VARIABLES, given, where='x')
  params = result['params']
  kernel = params['layer1_0']['conv1']['kernel']
  np.testing.assert_array_equal(
    kernel[1, 2, 0, 3], given['layer1.0.conv1.weight'][3, 0, 1, 2]
  )
  np.testing.assert_array_equal(params['fc']['kernel'], given['fc.weight'].T)
  np.testing.assert_array_equal(params['gem2']['p'], given['gem2.p'])
  bn, stats = (
    params['layer1_0']['bn1'],
    result['batch_stats']['layer1_0']['bn1'],
  )
  np.testing.assert_array_equal(bn['scale'], given['layer1.0.bn1.weight'])
  np.testing.assert_array_equal(stats['var'], given['layer1.0.bn1.running_var'])
  assert jax.tree.structure(result) == jax.tree.structure(VARIABLES)


def test_types_become_those_of_the_variables():
  given = {k: v.astype(np.float16) for k, v in source().items()}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), VARIABLES
  )
  result = torch_weights.convert(abstract, given, where='x')
  assert {x.dtype for x in jax.tree.leaves(result)} == {np.dtype('f4')}


def test_all_faults_are_listed_at_once():
  given = source()
  del given['gem2.p'], given['layer1.0.bn1.running_var']
  given['layer1.0.bn1.running_vars'] = np.zeros(4, 'f4')
  given['head.weight'] = np.zeros(3, 'f4')
  given['fc.weight'] = np.zeros((7, 4), 'f4')
  given['fc.bias'][2] = np.nan
  with pytest.raises(ValueError) as error:
    torch_weights.convert(VARIABLES, given, where='file.pth')
  message = str(error.value)
  assert message.startswith('file.pth: does not fit')
  assert 'missing (2)' in message and 'gem2/p (4,)' in message
  assert 'layer1_0/bn1/var (4,) (is it layer1.0.bn1.running_vars?)' in message
  assert 'unexpected (2)' in message and 'head.weight' in message
  assert 'fc.weight (7, 4), expected (5, 4)' in message
  assert 'not finite (1): fc.bias' in message


def test_leftovers_pass_only_where_allowed():
  given = source() | {'head.weight': np.zeros(3), 'bn.num_batches_tracked': 1}
  with pytest.raises(ValueError, match=r'unexpected \(1\): head\.weight'):
    torch_weights.convert(VARIABLES, given, where='x')
  torch_weights.convert(
    VARIABLES, given, where='x', allowed_extra=(r'head\..*',)
  )


def test_variables_that_may_be_missing_keep_their_value():
  given = source()
  del given['gem2.p']
  result = torch_weights.convert(
    VARIABLES, given, where='x', allowed_missing=('gem2/p',)
  )
  np.testing.assert_array_equal(result['params']['gem2']['p'], np.full(4, 3))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES
  )
  result = torch_weights.convert(
    abstract, given, where='x', allowed_missing=('gem2/p',)
  )
  assert isinstance(result['params']['gem2']['p'], jax.ShapeDtypeStruct)


def test_names_that_differ_only_in_separators_are_refused():
  given = source() | {'layer1_0.bn1.bias': np.zeros(4)}
  with pytest.raises(ValueError, match='up to separators'):
    torch_weights.convert(VARIABLES, given, where='x')


def test_tied_copies_are_dropped_when_equal_and_refused_when_not():
  given = {
    'model_1.w': np.ones(3),
    'model_3.w': np.ones(3),
    'model_2.w': np.zeros(3),
  }
  aliases = {'model_3.': 'model_1.'}
  result = torch_weights.drop_tied(given, aliases, where='x')
  assert list(result) == ['model_1.w', 'model_2.w']
  given['model_3.w'] = np.array([1, 1, 1.1])
  with pytest.raises(ValueError, match=r'model_3\.w differs from model_1\.w'):
    torch_weights.drop_tied(given, aliases, where='x')
