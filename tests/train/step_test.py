"""The train step of a real method, in float64: equal means equal.

In float64 rounding is 1e-16, so that a bound of 1e-10 leaves no room for a
wrong collective, a batch norm that sees a part of the batch, or a gradient that
misses a term; in float32 such a mistake may hide behind rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax import state as state_lib
from cvgl_jax.losses import metric
from cvgl_jax.methods import university1652
from cvgl_jax.optim import build

VIEWS = ('satellite', 'drone')
METHOD = university1652.Method(
  num_classes=12,
  views=VIEWS,
  share_satellite_drone=True,
  joint_statistics=True,
  backbone='small_cnn',
  backbone_width=4,
  pool='gem',
  dim=16,
  droprate=0.0,
  instance_weight=0.5,
  losses=metric.Weights(info_nce=1.0),
)
RTOL = 1e-10


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def batch_of(seed: int, *, size: int = 16, repeats: int = 1) -> dict:
  """Coarse random pictures, uint8; each `repeats` times in a row."""
  rng = np.random.default_rng(seed)
  label = np.repeat(np.arange(size // repeats, dtype=np.int32) % 12, repeats)
  batch = {}
  for view in VIEWS:
    coarse = rng.integers(0, 256, (size // repeats, 4, 4, 3))
    image = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)
    batch[view] = {
      'image': np.repeat(image, repeats, axis=0),
      'label': label,
      'place': label,
    }
  return batch


def initial_variables() -> dict:
  variables = METHOD.init(jax.random.key(0), batch_of(0))
  return jax.tree.map(lambda x: x.astype(jnp.float64), variables)


@functools.cache
def trained(devices: int, *, fsdp: bool = False) -> tuple[dict, list]:
  """Parameters and statistics after three steps of SGD; their metrics."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  tx, _ = build.make(
    build.Optimizer(lr=0.01, clip_norm=1.0), steps_per_epoch=3, total_epochs=1
  )
  make = lambda: state_lib.make_state(initial_variables(), tx, ema=False)
  shardings = sharding.state_sharding(
    jax.eval_shape(make), mesh, fsdp=fsdp, fsdp_min_size=64
  )
  step = jax.jit(
    state_lib.make_train_step(
      METHOD, tx, augment=lambda key, x, view: x.astype(jnp.float64), seed=0
    ),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  state, metrics = jax.jit(make, out_shardings=shardings)(), []
  if fsdp:
    kernel = state.params['model_1']['model']['conv4']['kernel']
    assert not kernel.sharding.is_fully_replicated
  for i in range(3):
    state, values = step(state, sharding.to_devices(batch_of(i), mesh))
    metrics.append(jax.device_get(values))
  return jax.device_get((state.params, state.mutable)), metrics


def assert_close(found, expected, *, atol: float):
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype in (np.float64, np.float32)
    np.testing.assert_allclose(a, b, rtol=RTOL, atol=atol)


@pytest.mark.parametrize('fsdp', [False, True])
def test_eight_devices_equal_one(fsdp):
  one, eight = trained(1), trained(8, fsdp=fsdp)
  assert jax.tree.leaves(one[0])[0].dtype == np.float64
  # The bias before a batch norm is rounding alone: 1e-17.
  assert_close(eight, one, atol=1e-14)


def gradients(batch: dict, *, micro_batches: int) -> tuple:
  """(loss, gradients), of the whole batch at once with `micro_batches` = 1."""
  mutable = initial_variables()
  params = mutable.pop('params')
  batch = {
    view: slot | {'image': jnp.asarray(slot['image'], jnp.float64)}
    for view, slot in batch.items()
  }
  if micro_batches == 1:
    (loss, _), grads = jax.jit(jax.value_and_grad(METHOD.loss, has_aux=True))(
      params, mutable, batch, jax.random.key(1), 0
    )
    return loss, grads
  run = jax.jit(
    functools.partial(
      state_lib.cached_gradients, METHOD, micro_batches=micro_batches
    )
  )
  loss, _, _, grads, _ = run(params, mutable, batch, jax.random.key(1), 0)
  return loss, grads


def test_micro_batches_give_the_gradients_of_the_whole_batch():
  """Every micro-batch holds the same pictures, so that statistics agree."""
  batch = batch_of(0, repeats=4)
  whole = gradients(batch, micro_batches=1)
  assert_close(gradients(batch, micro_batches=4), whole, atol=1e-13)


def test_micro_batches_of_other_pictures_keep_all_negatives():
  """Exactly the gradient of the loss of features made in micro-batches."""
  batch, count = batch_of(0), 4
  mutable = initial_variables()
  params = mutable.pop('params')
  images = {
    view: slot | {'image': jnp.asarray(slot['image'], jnp.float64)}
    for view, slot in batch.items()
  }

  @jax.jit
  @jax.value_and_grad
  def direct(params):
    parts = [
      METHOD.features(
        params,
        mutable,
        jax.tree.map(lambda x, i=i: x[i::count], images),
        jax.random.key(0),
      )[0]
      for i in range(count)
    ]
    whole = {
      view: jnp.stack([part[view] for part in parts], 1).reshape(16, -1)
      for view in VIEWS
    }
    return METHOD.loss_from_features(params, whole, images, 0)[0]

  found = gradients(batch, micro_batches=count)
  assert_close(found, direct(params), atol=1e-13)
  # These statistics are of micro-batches: the whole batch has another loss.
  whole = gradients(batch, micro_batches=1)
  assert abs(float(whole[0] / found[0]) - 1) > 1e-3
