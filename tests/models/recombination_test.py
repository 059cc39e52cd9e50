"""Feature recombination: parts by compass direction, and the network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import layers, recombination


@functools.cache
def network(pool='frm'):
  """A net, its variables, and its jitted call in evaluation."""
  net = recombination.Net(backbone='small_cnn', width=2, pool=pool)
  x = jnp.zeros((1, 64, 128, 3))
  variables = jax.jit(lambda: net.init(jax.random.key(1), x, train=False))()
  norm = {'scale': jnp.linspace(0.5, 2, 8), 'bias': jnp.linspace(-1, 1, 8)}
  variables = {**variables, 'params': {**variables['params'], 'norm': norm}}
  call = lambda x, **options: net.apply(variables, x, train=False, **options)
  return norm, jax.jit(call, static_argnames=('cut', 'method'))


def random_map(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((2, height, width, 3)).astype(np.float32)


def part_of(cut, row, column, height, width):
  """The table of the module, position by position."""
  if cut == 'panorama':
    return min(column // (width // 4), 3)
  bottom, right = row >= height // 2, column >= width // 2
  return {(1, 0): 0, (0, 0): 1, (0, 1): 2, (1, 1): 3}[bottom, right]


@pytest.mark.parametrize(
  'cut, size_hw',
  [
    ('panorama', (4, 16)),
    ('panorama', (3, 18)),
    ('panorama', (1, 4)),
    ('satellite', (8, 8)),
    ('satellite', (7, 5)),
    ('satellite', (2, 3)),
  ],
)
def test_every_position_counts_in_the_part_of_the_table(cut, size_hw):
  x = random_map(*size_hw)
  members = [[] for _ in range(4)]
  for row in range(size_hw[0]):
    for column in range(size_hw[1]):
      members[part_of(cut, row, column, *size_hw)].append(x[:, row, column])
  expected = np.stack([np.mean(part, axis=0) for part in members], axis=1)
  got = recombination.recombine(jnp.asarray(x), cut=cut)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_turned_satellite_map_has_the_next_parts():
  """North was up; after a quarter turn counter-clockwise east is up."""
  x = random_map(6, 6)
  parts = recombination.recombine(jnp.asarray(x), cut='satellite')
  turned = np.ascontiguousarray(np.rot90(x, axes=(1, 2)))
  again = recombination.recombine(jnp.asarray(turned), cut='satellite')
  np.testing.assert_allclose(
    again, np.roll(parts, -1, axis=1), rtol=1e-5, atol=1e-6
  )


def test_a_rolled_panorama_has_the_next_parts():
  x = random_map(3, 12)
  parts = recombination.recombine(jnp.asarray(x), cut='panorama')
  rolled = np.roll(x, -3, axis=2)
  again = recombination.recombine(jnp.asarray(rolled), cut='panorama')
  np.testing.assert_allclose(
    again, np.roll(parts, -1, axis=1), rtol=1e-5, atol=1e-6
  )


def test_what_is_north_of_the_place_meets_in_the_same_parts():
  """A mark in the north of both views is in parts 2 and 3 of both."""
  panorama, satellite = np.zeros((1, 2, 8, 1)), np.zeros((1, 4, 4, 1))
  panorama[0, :, 3:5], satellite[0, 0, 1:3] = 1, 1
  for x, cut in ((panorama, 'panorama'), (satellite, 'satellite')):
    parts = recombination.recombine(jnp.asarray(x), cut=cut)[0, :, 0]
    np.testing.assert_array_equal(parts > 0, [False, True, True, False])


@pytest.mark.parametrize(
  'cut, size_hw', [('panorama', (4, 3)), ('satellite', (1, 4))]
)
def test_a_map_with_empty_parts_is_refused(cut, size_hw):
  message = f'{size_hw[0]}x{size_hw[1]} positions has empty parts, the {cut}'
  with pytest.raises(ValueError, match=message):
    recombination.recombine(jnp.asarray(random_map(*size_hw)), cut=cut)


def test_an_unknown_cut_is_refused():
  with pytest.raises(ValueError, match=r"'drone': expected one of \('pano"):
    recombination.recombine(jnp.asarray(random_map(4, 4)), cut='drone')


@pytest.mark.parametrize('backbone', ['convnext_mini', 'small_cnn'])
def test_the_variables_stand_beside_the_norm_as_published(backbone):
  net = recombination.Net(backbone=backbone, width=4)
  x = jnp.zeros((1, 64, 128, 3))
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
  first = {'convnext_mini': 'downsample_layers_0_0', 'small_cnn': 'conv1'}
  assert {'norm', first[backbone]} < set(shapes['params'])


@pytest.mark.parametrize('pool, parts', [('frm', 4), ('avg', 1)])
def test_the_parts_are_normalised_one_by_one_with_the_same_weights(pool, parts):
  norm, call = network(pool)
  x = jax.random.normal(jax.random.key(0), (2, 64, 128, 3))
  y, features = call(x, cut='panorama'), call(x, method='map')
  means = features.mean((1, 2))[:, None]
  if pool == 'frm':
    means = recombination.recombine(features, cut='panorama')
  expected = layers.layer_norm().apply({'params': norm}, means)
  assert y.shape == (2, parts * 8)
  np.testing.assert_allclose(y, expected.reshape(2, -1), rtol=1e-5, atol=1e-5)


def test_the_published_rule_cuts_square_maps_as_satellite_pictures():
  _, call = network()
  x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
  cuts = {cut: call(x, cut=cut) for cut in (*recombination.CUTS, 'shape')}
  np.testing.assert_array_equal(cuts['shape'], cuts['satellite'])
  assert np.abs(cuts['shape'] - cuts['panorama']).max() > 1e-3
  wide = jax.random.normal(jax.random.key(0), (1, 64, 128, 3))
  np.testing.assert_array_equal(
    call(wide, cut='shape'), call(wide, cut='panorama')
  )
