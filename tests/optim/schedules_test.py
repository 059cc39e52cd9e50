"""Learning-rate schedules against torch's and transformers' definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.optim import schedules


def trace(name, epochs=12, steps_per_epoch=3, base=0.5, **options):
  """The learning rate of every step."""
  total = options.pop('total_epochs', epochs)
  schedule = schedules.learning_rate(
    name,
    base,
    steps_per_epoch=steps_per_epoch,
    total_epochs=total,
    **options,
  )
  return np.asarray(jax.jit(schedule)(jnp.arange(epochs * steps_per_epoch)))


def per_epoch(rule, epochs=12, steps_per_epoch=3):
  return np.repeat([rule(e) for e in range(epochs)], steps_per_epoch)


def test_constant_stays():
  np.testing.assert_allclose(trace('constant'), 0.5)


def test_step_every_equals_steplr():
  expected = per_epoch(lambda e: 0.5 * 0.1 ** (e // 4))
  got = trace('step', step_every_epochs=4)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_step_at_equals_multisteplr():
  expected = per_epoch(lambda e: 0.5 * 0.2 ** sum(e >= m for m in (2, 3, 9)))
  got = trace('step', step_at_epochs=(2, 3, 9), gamma=0.2)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_cosine_equals_cosineannealinglr():
  rule = lambda e: 0.01 + (0.5 - 0.01) * (1 + math.cos(math.pi * e / 12)) / 2
  got = trace('cosine', end_lr=0.01)
  np.testing.assert_allclose(got, per_epoch(rule), rtol=1e-6)


def test_cosine_equals_the_recursion_of_torch():
  """CosineAnnealingLR.get_lr is written as a recursion over epochs."""
  end, length, rates = 0.01, 12, [0.5]
  for e in range(1, length):
    rates.append(
      end
      + (1 + math.cos(math.pi * e / length))
      / (1 + math.cos(math.pi * (e - 1) / length))
      * (rates[-1] - end)
    )
  got = trace('cosine', end_lr=end)[::3]
  np.testing.assert_allclose(got, rates, rtol=1e-6)


def test_cosine_per_step_with_warmup_equals_transformers():
  warm, total = 1.5 * 3, 36

  def rule(step):
    if step < warm:
      return 0.5 * step / max(1, warm)
    progress = (step - warm) / max(1, total - warm)
    return 0.5 * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

  got = trace('cosine', unit='step', warmup_epochs=1.5)
  np.testing.assert_allclose(
    got, [rule(s) for s in range(36)], rtol=1e-6, atol=1e-7
  )
  assert got[0] == 0


def test_polynomial_per_step_with_warmup_equals_transformers():
  warm, total = 3, 36

  def rule(step):
    if step < warm:
      return 0.5 * step / warm
    left = 1 - (step - warm) / (total - warm)
    return 1e-4 + (0.5 - 1e-4) * left**1.5

  got = trace(
    'polynomial', unit='step', warmup_epochs=1, end_lr=1e-4, power=1.5
  )
  np.testing.assert_allclose(got, [rule(s) for s in range(36)], rtol=1e-5)


def test_linear_reaches_zero_at_the_end():
  got = trace('linear', epochs=14, total_epochs=12)
  rule = lambda e: 0.5 * max(0.0, 1 - e / 12)
  np.testing.assert_allclose(got, per_epoch(rule, 14), rtol=1e-6, atol=1e-7)


def test_the_rate_stays_at_its_end_after_the_decay():
  got = trace('cosine', decay_epochs=5, end_lr=0.125)
  np.testing.assert_allclose(got[5 * 3 :], 0.125)


def test_warmup_may_start_above_zero():
  """(e + 1) / (W + 1) for e < W, as Video2BEV's steplr_warmup."""
  got = trace('constant', warmup_epochs=4, warmup_start=1 / 5)
  rule = lambda e: 0.5 * min(1.0, (e + 1) / 5)
  np.testing.assert_allclose(got, per_epoch(rule), rtol=1e-6)


@pytest.mark.parametrize('epochs', [0, 1, 2])
def test_a_run_shorter_than_its_warmup_only_warms_up(epochs):
  got = trace('cosine', epochs=2, total_epochs=epochs, warmup_epochs=2)
  np.testing.assert_allclose(got, [0, 0, 0, 0.25, 0.25, 0.25])


def test_warmup_may_count_from_one():
  """lr (e + 1) / W for e < W, then a cosine from W on."""

  def rule(e):
    if e < 5:
      return 0.5 * (e + 1) / 5
    return 0.25 * (1 + math.cos(math.pi * (e - 5) / 7))

  got = trace('cosine', warmup_epochs=5, warmup_counts_from=1)
  np.testing.assert_allclose(got, per_epoch(rule), rtol=1e-6)


def test_boundaries_count_from_the_start_of_the_training():
  got = trace('step', step_at_epochs=(4,), warmup_epochs=2)[::3]
  expected = [0, 0.25, 0.5, 0.5, *[0.05] * 8]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_fractional_boundaries_work_per_step():
  got = trace('step', steps_per_epoch=10, unit='step', step_every_epochs=0.3)
  expected = 0.5 * 0.1 ** (np.arange(120) // 3)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-30)


def test_boundaries_below_one_step_fall_on_every_step():
  got = trace('step', unit='step', step_every_epochs=0.01, epochs=2, gamma=0.5)
  np.testing.assert_allclose(got, 0.5 ** np.arange(1, 7), rtol=1e-6)


def test_a_python_step_equals_a_traced_one():
  schedule = schedules.learning_rate(
    'cosine', 0.1, steps_per_epoch=2, total_epochs=5
  )
  traced = jax.jit(schedule)(jnp.int32(7))
  np.testing.assert_allclose(schedule(7), traced, rtol=1e-6)
  assert traced.dtype == jnp.float32


@pytest.mark.parametrize(
  'options, message',
  [
    ({'name': 'cosin'}, "unknown schedule 'cosin'; there are"),
    ({'unit': 'steps'}, "unknown schedule unit 'steps'"),
    ({'name': 'step'}, 'either step_every_epochs'),
    (
      {'name': 'step', 'step_every_epochs': 2, 'step_at_epochs': (3,)},
      'either step_every_epochs',
    ),
    (
      {'name': 'step', 'step_every_epochs': 1.5},
      r"epochs \[1.5\] need schedule unit 'step'",
    ),
    (
      {'name': 'linear', 'warmup_epochs': 4, 'decay_epochs': 3},
      'decay_epochs 3 must be above warmup_epochs 4',
    ),
    ({'steps_per_epoch': 0}, 'steps_per_epoch is 0'),
  ],
)
def test_contradictions_are_errors(options, message):
  options = {'name': 'constant', 'steps_per_epoch': 3} | options
  with pytest.raises(ValueError, match=message):
    schedules.learning_rate(options.pop('name'), 0.1, total_epochs=9, **options)


@pytest.mark.parametrize(
  'samples, batch_size, epochs',
  [(701, 8, 2), (36, 8, 3), (20, 8, 2), (28, 8, 1), (12, 8, 4)],
)
def test_loss_warmup_equals_the_running_sum(samples, batch_size, epochs):
  steps_per_epoch = samples // batch_size
  factor = schedules.loss_warmup(
    epochs,
    steps_per_epoch=steps_per_epoch,
    samples_per_epoch=samples,
    batch_size=batch_size,
  )
  now, expected = 0.1, []
  for epoch in range(epochs + 1):
    for _ in range(steps_per_epoch):
      if epoch < epochs:
        now = min(1.0, now + 0.9 / (round(samples / batch_size) * epochs))
      expected.append(now if epoch < epochs else 1.0)
  got = factor(jnp.arange(len(expected)))
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_loss_warmup_of_zero_epochs_is_one():
  factor = schedules.loss_warmup(0, steps_per_epoch=5)
  np.testing.assert_array_equal(factor(jnp.arange(3)), 1.0)


def test_loss_warmup_wants_samples_and_batch_together():
  with pytest.raises(ValueError, match='together; got 701 and 0'):
    schedules.loss_warmup(2, steps_per_epoch=87, samples_per_epoch=701)
