"""Torch's batch norm, pools, USAM and the head, by their formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import layers


def test_images_are_normalised_with_imagenet_statistics():
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
  expected = (images / 255 - np.array(layers.MEAN)) / np.array(layers.STD)
  result = layers.normalize_image(jnp.asarray(images))
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  same = layers.normalize_image(jnp.asarray(images, jnp.float32))
  np.testing.assert_array_equal(result, same)
  with pytest.raises(ValueError, match='channels last'):
    layers.normalize_image(jnp.zeros((2, 3, 4, 5)))


@pytest.mark.parametrize('seed', range(3))
def test_batch_norm_follows_torch(seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(3, 2, (4, 3, 5, 6)).astype(np.float32)
  running = {
    'mean': rng.normal(0, 1, 6).astype('f4'),
    'var': rng.uniform(1, 2, 6).astype('f4'),
  }
  params = {
    'scale': rng.normal(1, 1, 6).astype('f4'),
    'bias': rng.normal(0, 1, 6).astype('f4'),
  }
  variables = {'params': params, 'batch_stats': running}
  flat = x.reshape(-1, 6).astype(np.float64)
  mean, var, n = flat.mean(0), flat.var(0), len(flat)

  def formula(mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias']

  module = layers.BatchNorm()
  y, updates = module.apply(variables, x, train=True, mutable=['batch_stats'])
  after = updates['batch_stats']
  np.testing.assert_allclose(y, formula(mean, var), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    after['mean'], 0.9 * running['mean'] + 0.1 * mean, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    after['var'], 0.9 * running['var'] + 0.1 * var * n / (n - 1), rtol=1e-5
  )
  evaluated = module.apply(variables, x, train=False)
  expected = formula(running['mean'], running['var'])
  np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_batch_norm_of_few_vectors_is_as_exact_as_float32_allows(seed):
  """The head's: four values a channel, some of them far from the others."""
  rng = np.random.default_rng(seed)
  x = rng.normal(0, 1, (4, 64)).astype(np.float32)
  x[1:] = x[:1] + 0.03 * x[1:]  # a small deviation about a mean of its own
  t = rng.normal(0, 1, x.shape)
  module = layers.BatchNorm()

  def run(x):
    variables = module.init(jax.random.key(0), x, train=True)

    def total(x):
      y, _ = module.apply(variables, x, train=True, mutable=['batch_stats'])
      return (y * t).sum(), y

    return jax.value_and_grad(total, has_aux=True)(jnp.asarray(x))

  (_, y), grad = run(x)
  with jax.enable_x64(True):
    (_, exact_y), exact_grad = run(x.astype(np.float64))
  np.testing.assert_allclose(y, exact_y, rtol=0, atol=2e-5)
  scale = np.abs(exact_grad).max()
  np.testing.assert_allclose(grad, exact_grad, rtol=0, atol=1e-5 * scale)


def test_batch_norm_keeps_its_digits_when_the_mean_is_large():
  x = np.random.default_rng(0).normal(1000, 1, (64, 3)).astype(np.float32)
  module = layers.BatchNorm()
  variables = module.init(jax.random.key(0), x, train=False)
  variables['batch_stats']['mean'] = jnp.full(3, 1000.0)
  y, _ = module.apply(variables, x, train=True, mutable=['batch_stats'])
  wide = x.astype(np.float64)
  expected = (wide - wide.mean(0)) / wide.std(0)
  np.testing.assert_allclose(y, expected, atol=2e-3)


def test_batch_norm_in_bfloat16_reduces_in_float32():
  x = np.random.default_rng(0).normal(5, 1, (4096, 2))
  x = jnp.asarray(x, jnp.bfloat16)
  module = layers.BatchNorm()
  variables = module.init(jax.random.key(0), x, train=False)
  y, updates = module.apply(variables, x, train=True, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  mean = updates['batch_stats']['mean']
  assert mean.dtype == jnp.float32
  exact = np.asarray(x, np.float64).mean(0) * 0.1
  np.testing.assert_allclose(mean, exact, rtol=1e-5)


def test_batch_norm_refuses_to_train_on_one_value():
  module = layers.BatchNorm(name='bn')
  variables = module.init(jax.random.key(0), jnp.ones((1, 4)), train=False)
  with pytest.raises(ValueError, match='more than one value'):
    module.apply(
      variables, jnp.ones((1, 4)), train=True, mutable=['batch_stats']
    )


class Pool(nn.Module):
  kind: str

  @nn.compact
  def __call__(self, x):
    return layers.pool(x, self.kind)


def test_pools_give_their_formulas_in_float32():
  x = np.random.default_rng(0).uniform(-1, 2, (2, 3, 4, 5)).astype('f4')
  apply = lambda kind: Pool(kind).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(apply('avg')[0], x.mean((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(apply('max')[0], x.max((1, 2)), rtol=1e-6)
  both = np.concatenate([x.mean((1, 2)), x.max((1, 2))], 1)
  np.testing.assert_allclose(apply('avg+max')[0], both, rtol=1e-5)
  y, variables = apply('gem')
  expected = (np.maximum(x, 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  np.testing.assert_array_equal(variables['params']['gem2']['p'], np.full(5, 3))
  assert Pool('avg').apply({}, x.astype(jnp.bfloat16)).dtype == jnp.float32
  with pytest.raises(ValueError, match=r"'mean'.*avg\+max"):
    apply('mean')


def test_gem_gradient_is_finite_where_all_inputs_are_clipped():
  x = -jnp.ones((1, 2, 2, 3))
  variables = layers.GeM().init(jax.random.key(0), x)
  grads = jax.grad(lambda v, x: layers.GeM().apply(v, x).sum(), (0, 1))(
    variables, x
  )
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_usam_attends_to_a_lone_spot_and_clears_the_border():
  x = np.zeros((1, 7, 7, 2), np.float32)
  x[0, 3, 3] = 1.0
  module = layers.USAM()
  variables = module.init(jax.random.key(0), x, train=False)
  y = np.asarray(module.apply(variables, x, train=False))
  # 9 f - box = 18 - 2 at the spot, batch norm at its start divides by ~1.
  np.testing.assert_allclose(y[0, 3, 3], 1 + 16 / np.sqrt(1 + 1e-5), rtol=1e-5)
  flat = np.ones((1, 7, 7, 2), np.float32)  # Only the border differs.
  y = module.apply(variables, flat, train=False)
  np.testing.assert_allclose(y, flat, rtol=1e-6)


def test_head_starts_as_the_reference_does():
  head = layers.ClassBlock(700, dim=512, droprate=0.5)
  variables = head.init(jax.random.key(0), jnp.ones((1, 2048)), train=False)
  params = variables['params']
  assert sorted(params) == ['add_block_0', 'add_block_1', 'classifier_0']
  std = params['add_block_0']['kernel'].std()
  np.testing.assert_allclose(std, np.sqrt(2 / 512), rtol=0.01)
  np.testing.assert_allclose(
    params['add_block_1']['scale'].mean(), 1, atol=5e-3
  )
  np.testing.assert_allclose(
    params['add_block_1']['scale'].std(), 0.02, rtol=0.1
  )
  std = params['classifier_0']['kernel'].std()
  np.testing.assert_allclose(std, 0.001, rtol=0.01)
  for module in params.values():
    np.testing.assert_array_equal(module['bias'], 0)
  total = sum(x.size for x in jax.tree.leaves(params))
  assert total == 2048 * 512 + 512 + 2 * 512 + 512 * 700 + 700


def test_dropout_acts_on_the_feature_in_training_only():
  head = layers.ClassBlock(5, dim=64, droprate=0.5, bnorm=False)
  x = jax.random.normal(jax.random.key(1), (4, 8))
  variables = head.init(jax.random.key(0), x, train=False)
  rngs = {'dropout': jax.random.key(2)}
  logits, f = head.apply(variables, x, train=True, rngs=rngs)
  assert 0.3 < np.mean(np.asarray(f) == 0) < 0.7
  plain = head.apply(variables, x, train=False)[1]
  kept = np.asarray(f) != 0
  np.testing.assert_allclose(f[kept], 2 * plain[kept], rtol=1e-6)
  again = head.apply(variables, f, method='classify')
  np.testing.assert_array_equal(logits, again)
