"""SAM and ASAM against the update rule of FRGeo-Code, criterion/sam.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvgl_jax.optim import build, sam


def loss(params):
  """Curved in every parameter; `unused` has a zero gradient."""
  y = jnp.tanh(params['a'] @ params['b']) - 0.3
  return jnp.sum(y**2) + jnp.sum(jnp.sin(params['c']))


def make_params():
  rng = np.random.default_rng(0)
  shapes = {'a': (3, 4), 'b': (4, 2), 'c': (5,), 'unused': (2,)}
  return {k: rng.standard_normal(s) for k, s in shapes.items()}


def train(tx, steps=6, jit=True):
  grad = jax.grad(loss)

  def step(params, state):
    updates, state = tx.update(grad(params), state, params, grad_fn=grad)
    return optax.apply_updates(params, updates), state

  if jit:
    step = jax.jit(step)
  params = jax.tree.map(jnp.asarray, make_params())
  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def adamw_by_hand(rho, adaptive, lr=1e-2, decay=0.03, steps=6, clip=None):
  """first_step and second_step of the published class, then torch's AdamW."""
  grad = jax.jit(jax.grad(loss))
  grads_at = lambda w: {k: np.asarray(g) for k, g in grad(w).items()}
  w = make_params()
  m = {k: np.zeros_like(v) for k, v in w.items()}
  v = {k: np.zeros_like(v) for k, v in w.items()}
  for t in range(1, steps + 1):
    g = grads_at(w)
    norms = [
      np.linalg.norm((np.abs(w[k]) if adaptive else 1.0) * g[k]) for k in w
    ]
    scale = rho / (np.linalg.norm(norms) + 1e-12)
    climbed = {
      k: w[k] + (w[k] ** 2 if adaptive else 1.0) * g[k] * scale for k in w
    }
    g = grads_at(climbed)
    if clip:
      norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
      g = {k: x * min(1.0, clip / (norm + 1e-6)) for k, x in g.items()}
    for k in w:
      w[k] = w[k] * (1 - lr * decay)
      m[k] = 0.9 * m[k] + 0.1 * g[k]
      v[k] = 0.999 * v[k] + 0.001 * g[k] ** 2
      denominator = np.sqrt(v[k]) / np.sqrt(1 - 0.999**t) + 1e-8
      w[k] = w[k] - lr / (1 - 0.9**t) * m[k] / denominator
  return w


def check_equal(got, expected, tolerance=1e-10):
  for k in expected:
    np.testing.assert_allclose(got[k], expected[k], rtol=0, atol=tolerance)


@pytest.mark.parametrize('kind, rho', [('sam', 0.05), ('asam', 2.5)])
def test_adamw_with_sam_equals_the_published_class(kind, rho):
  config = build.Optimizer(
    name='adamw', lr=1e-2, weight_decay=0.03, sam=kind, sam_rho=rho
  )
  with jax.enable_x64(True):
    tx, _ = build.make(config, steps_per_epoch=1, total_epochs=6)
    check_equal(train(tx), adamw_by_hand(rho, kind == 'asam'))


def test_sam_clips_the_second_gradient():
  config = build.Optimizer(
    name='adamw',
    lr=1e-2,
    weight_decay=0.03,
    sam='sam',
    sam_rho=0.3,
    clip_norm=0.5,
  )
  with jax.enable_x64(True):
    tx, _ = build.make(config, steps_per_epoch=1, total_epochs=6)
    check_equal(train(tx), adamw_by_hand(0.3, False, clip=0.5))


@pytest.mark.parametrize('adaptive', [False, True])
def test_rho_zero_is_the_inner_optimiser(adaptive):
  inner = optax.sgd(0.1, momentum=0.9)
  tx = sam.sharpness_aware(inner, rho=0.0, adaptive=adaptive)
  plain = optax.with_extra_args_support(inner)
  with jax.enable_x64(True):
    check_equal(train(tx), train(plain))


def test_sam_moves_elsewhere_than_the_inner_optimiser():
  inner = optax.sgd(0.1)
  moved = train(sam.sharpness_aware(inner, rho=0.5))
  plain = train(optax.with_extra_args_support(inner))
  assert np.abs(moved['a'] - plain['a']).max() > 1e-3


def test_jit_changes_nothing():
  tx = sam.sharpness_aware(optax.sgd(0.1), rho=0.5, adaptive=True)
  with jax.enable_x64(True):
    check_equal(train(tx, steps=2), train(tx, steps=2, jit=False))


@pytest.mark.parametrize(
  'wrap',
  [
    lambda tx: optax.chain(optax.identity(), tx),
    lambda tx: optax.apply_if_finite(tx, 3),
    lambda tx: optax.MultiSteps(tx, 1),
    lambda tx: optax.partition(
      {'all': tx}, lambda p: jax.tree.map(lambda _: 'all', p)
    ),
  ],
  ids=['chain', 'apply_if_finite', 'MultiSteps', 'partition'],
)
def test_sam_works_inside_optax_wrappers(wrap):
  tx = sam.sharpness_aware(optax.sgd(0.1), rho=0.5)
  check_equal(train(wrap(tx), 3), train(tx, 3), tolerance=1e-6)


def test_a_zero_gradient_climbs_nowhere():
  tx = sam.sharpness_aware(optax.sgd(0.1), rho=0.5)
  params = {'w': jnp.ones(3)}
  zero = lambda p: jax.tree.map(jnp.zeros_like, p)
  updates, _ = tx.update(zero(params), tx.init(params), params, grad_fn=zero)
  np.testing.assert_array_equal(updates['w'], np.zeros(3))


def test_frozen_groups_do_not_climb():
  config = build.Optimizer(
    weight_decay=0.0, groups={'on': 1.0, 'off': 0.0}, sam='sam', sam_rho=0.5
  )
  tx, _ = build.make(
    config,
    steps_per_epoch=1,
    total_epochs=1,
    labels=lambda path: 'off' if path == 'c' else 'on',
  )
  seen = []

  def grad_fn(params):
    seen.append(params)
    return jax.grad(loss)(params)

  params = jax.tree.map(jnp.asarray, make_params())
  tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)
  start, climbed = seen
  np.testing.assert_array_equal(start['c'], climbed['c'])
  length = optax.tree.norm(jax.tree.map(jnp.subtract, climbed, start))
  np.testing.assert_allclose(length, 0.5, rtol=1e-5)


def test_a_missing_grad_fn_is_explained():
  tx = sam.sharpness_aware(optax.sgd(0.1), rho=0.5)
  params = {'w': jnp.ones(3)}
  with pytest.raises(ValueError, match='grad_fn=f'):
    tx.update(params, tx.init(params), params)


def test_a_negative_rho_is_refused():
  with pytest.raises(ValueError, match='rho >= 0, got -1'):
    sam.sharpness_aware(optax.sgd(0.1), rho=-1)
