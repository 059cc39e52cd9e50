"""The train step on a toy method: a linear embedding with in-batch negatives."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvgl_jax import sharding
from cvgl_jax import state as state_lib
from cvgl_jax.losses import contrastive
from cvgl_jax.optim import sam


class Aux(NamedTuple):
  mutable: dict
  metrics: dict
  embeddings: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
  """Picture -> mean colour -> linear -> InfoNCE between two views."""

  noise: float = 0.0
  views: tuple = ('satellite', 'drone')

  def init(self, rng, batch):
    del batch
    return {
      'params': {'w': jax.random.normal(rng, (48, 16))},
      'stats': {'steps': jnp.zeros(())},
    }

  def features(self, params, mutable, batch, rng):
    features = {}
    for i, view in enumerate(self.views):
      x = batch[view]['image'].reshape(len(batch[view]['image']), -1) / 255
      x = x @ params['w']
      key = jax.random.fold_in(rng, i)
      features[view] = x + self.noise * jax.random.normal(key, x.shape)
    return features, {'stats': {'steps': mutable['stats']['steps'] + 1}}

  def loss_from_features(self, params, features, batch, step):
    unit = {
      view: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
      for view, x in features.items()
    }
    loss = contrastive.info_nce_loss(
      unit['satellite'], unit['drone'], temperature=0.1
    )
    return loss, {'weight': jnp.mean(params['w'] ** 2)}

  def loss(self, params, mutable, batch, rng, step):
    features, mutable = self.features(params, mutable, batch, rng)
    loss, metrics = self.loss_from_features(params, features, batch, step)
    return loss, Aux(mutable, metrics, features)


def batch_of(seed=0, size=16):
  rng = np.random.default_rng(seed)
  shape = (size, 4, 4, 3)
  return {
    view: {
      'image': rng.integers(0, 256, shape).astype(np.uint8),
      'label': np.arange(size, dtype=np.int32),
    }
    for view in ('satellite', 'drone')
  }


def as_float(key, images, view):
  del key, view
  return images.astype(jnp.float32)


def run(method, *, steps=3, tx=None, devices=None, fsdp=False, **options):
  """State and last metrics after a few steps on a mesh."""
  tx = tx or optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
  mesh = sharding.make_mesh(devices)
  make = lambda: state_lib.make_state(
    method.init(jax.random.key(0), batch_of()),
    tx,
    ema=options.get('ema_decay') is not None,
  )
  shardings = sharding.state_sharding(
    jax.eval_shape(make), mesh, fsdp=fsdp, fsdp_min_size=64
  )
  state = jax.jit(make, out_shardings=shardings)()
  step = jax.jit(
    state_lib.make_train_step(method, tx, augment=as_float, seed=3, **options),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  for i in range(steps):
    state, metrics = step(state, sharding.to_devices(batch_of(i), mesh))
  return state, metrics


def assert_same(a, b, *, atol=0.0):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=atol, rtol=0)


def test_eight_devices_equal_one_for_the_first_steps():
  one, metrics_one = run(Toy(), devices=jax.devices()[:1])
  eight, metrics_eight = run(Toy())
  assert_same(one.params, eight.params, atol=1e-5)
  assert_same(metrics_one['loss'], metrics_eight['loss'], atol=1e-5)


def test_sharded_parameters_equal_replicated_ones():
  replicated, _ = run(Toy())
  split, _ = run(Toy(), fsdp=True)
  assert not split.params['w'].sharding.is_fully_replicated
  assert not split.opt_state[0].trace['w'].sharding.is_fully_replicated
  assert_same(replicated.params, split.params, atol=1e-5)


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(noise):
  whole, metrics = run(Toy())
  cached, cached_metrics = run(Toy(), micro_batches=2)
  assert_same(whole.params, cached.params, atol=1e-5)
  assert_same(metrics['loss'], cached_metrics['loss'], atol=1e-5)
  # Random layers use the same key in both passes: equal to differentiating
  # the micro-batched features directly.
  method, mutable = Toy(noise=noise), {'stats': {'steps': jnp.zeros(())}}
  params = method.init(jax.random.key(0), None)['params']
  batch = jax.tree.map(jnp.asarray, batch_of())
  rng = jax.random.key(5)

  def direct(params):
    keys = jax.random.split(rng, 2)
    parts = [
      method.features(
        params, mutable, jax.tree.map(lambda x, i=i: x[i::2], batch), keys[i]
      )[0]
      for i in range(2)
    ]
    joined = {
      view: jnp.stack([p[view] for p in parts], 1).reshape(16, -1)
      for view in method.views
    }
    return method.loss_from_features(params, joined, batch, 0)[0]

  expected = jax.grad(direct)(params)
  _, after, _, found, _ = state_lib.cached_gradients(
    method, params, mutable, batch, rng, 0, micro_batches=2
  )
  assert_same(expected, found, atol=1e-5)
  assert float(after['stats']['steps']) == 2


def test_an_average_of_the_parameters_is_kept():
  state, _ = run(Toy(), ema_decay=0.5, steps=1)
  start = Toy().init(jax.random.key(0), None)['params']
  expected = jax.tree.map(lambda a, b: (a + b) / 2, start, state.params)
  assert_same(expected, state.ema, atol=1e-6)


def test_sharpness_aware_steps_keep_the_first_pass_statistics():
  plain = optax.with_extra_args_support(optax.sgd(0.1))
  flat, _ = run(Toy(), tx=sam.sharpness_aware(plain, rho=0.0), steps=2)
  inner, _ = run(Toy(), tx=plain, steps=2)
  assert_same(flat.params, inner.params, atol=1e-6)
  climbed, _ = run(Toy(), tx=sam.sharpness_aware(plain, rho=0.5), steps=2)
  assert float(climbed.mutable['stats']['steps']) == 2
  assert np.abs(climbed.params['w'] - inner.params['w']).max() > 1e-4


def test_a_method_that_cannot_split_its_loss_says_so():
  class Whole:
    def loss(self):
      raise NotImplementedError

  with pytest.raises(ValueError, match='micro_batches'):
    state_lib.make_train_step(
      Whole(), optax.sgd(0.1), augment=as_float, seed=0, micro_batches=2
    )
