"""Optimiser, loss warm-up and moving average against the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvgl_jax.optim import build, ema, schedules


def check_sgd_step(case):
  """The baseline's two groups, and a parameter that never has a gradient."""
  names = sorted(case.prefix('param/'))
  params = {name: jnp.asarray(case[f'param/{name}']) for name in names}
  params['nograd'] = jnp.asarray(case['in/nograd_param'])
  grads = {name: case[f'in/grad_{name}'] for name in names}
  steps = len(grads[names[0]])
  config = build.Optimizer(
    lr=case.scalar('in/lr'),
    weight_decay=5e-4,
    groups={'backbone': 0.1, 'classifier': 1.0, 'unused': 0.0},
    schedule='step',
    step_every_epochs=case.scalar('in/step_size_epochs'),
  )

  def label(path):
    if path == 'nograd':
      return 'unused'
    return 'classifier' if path.startswith('cls') else 'backbone'

  per_epoch = case.scalar('in/steps_per_epoch')
  tx, schedule = build.make(
    config, steps_per_epoch=per_epoch, total_epochs=steps, labels=label
  )

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  compared = 0
  for i in range(steps):
    now = {name: jnp.asarray(grads[name][i]) for name in names}
    # What autodiff gives for a parameter that the loss does not touch.
    now['nograd'] = jnp.zeros_like(params['nograd'])
    params, state = step(params, state, now)
    expected = case.prefix(f'out/step{i + 1}/')
    for name, value in expected.items():
      np.testing.assert_allclose(params[name], value, rtol=1e-6, atol=1e-6)
    compared += len(expected)
    rates = 0.1 * float(schedule(i)), float(schedule(i))
    np.testing.assert_allclose(rates, case['out/lr_trace'][i], rtol=1e-6)
  assert compared, 'the file has no out/step...'
  np.testing.assert_array_equal(
    params['nograd'], case['out/nograd_param_after']
  )


def check_warmup_loss_scale(case):
  rows = sorted({key.split('/')[0] for key in case.prefix('in/')}, key=int)
  for row in rows:
    samples, batch_size, epochs = map(int, case[f'in/{row}/n_bs_epochs'])
    per_epoch = samples // batch_size
    assert per_epoch == case.scalar(f'out/{row}/steps_per_epoch')
    factor = schedules.loss_warmup(
      epochs,
      steps_per_epoch=per_epoch,
      samples_per_epoch=samples,
      batch_size=batch_size,
    )
    got = factor(jnp.asarray(case[f'out/{row}/step_index']))
    np.testing.assert_allclose(got, case[f'out/{row}/multiplier'], rtol=1e-6)
    np.testing.assert_allclose(
      factor(epochs * per_epoch - 1),
      case.scalar(f'out/{row}/last_warm_multiplier'),
      rtol=1e-6,
    )


def check_ema_update(case):
  start, new = case.prefix('param/tgt/'), case.prefix('param/src/')
  is_buffer = lambda name: 'running_' in name or 'num_batches' in name
  average = {k: jnp.asarray(v) for k, v in start.items() if not is_buffer(k)}
  source = {k: jnp.asarray(new[k]) for k in average}
  for _ in range(case.scalar('in/n_updates')):
    average = ema.update(average, source, decay=case.scalar('in/beta'))
  for name, value in case.prefix('out/').items():
    if is_buffer(name):
      # The reference averages parameters only, which is what `ema` is given.
      np.testing.assert_array_equal(start[name], value)
    else:
      np.testing.assert_allclose(average[name], value, rtol=1e-6, atol=1e-6)


CHECKS = {
  'optim_sgd_step': check_sgd_step,
  'warmup_loss_scale': check_warmup_loss_scale,
  'ema_update': check_ema_update,
}
