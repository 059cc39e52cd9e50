"""Optimisers against torch's update rules, groups, clipping, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvgl_jax import strict
from cvgl_jax.optim import build

SHAPES = {
  'trunk': {'conv': {'kernel': (3, 4), 'bias': (4,)}, 'bn': {'scale': (4,)}},
  'classifier': {'kernel': (4, 5), 'bias': (5,)},
}
STEPS, STEPS_PER_EPOCH = 12, 3


def tree(seed):
  rng = np.random.default_rng(seed)
  is_shape = lambda x: isinstance(x, tuple)
  return jax.tree.map(rng.standard_normal, SHAPES, is_leaf=is_shape)


def label(path):
  return 'classifier' if path.startswith('classifier') else 'backbone'


def make(**options):
  labels = label if options.get('groups') else None
  return build.make(
    build.Optimizer(**options),
    steps_per_epoch=STEPS_PER_EPOCH,
    total_epochs=STEPS // STEPS_PER_EPOCH,
    labels=labels,
  )


def train(steps=STEPS, **options):
  """The parameters after `steps` updates, in float64."""
  tx, _ = make(**options)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, grad_fn=None)
    return optax.apply_updates(params, updates), state

  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, tree(0))
    state = tx.init(params)
    for i in range(steps):
      params, state = step(params, state, tree(i + 1))
    return jax.tree.map(np.asarray, params)


def by_hand(rule, steps=STEPS):
  """rule(path, w, g, t, memory) -> w for every leaf, t = 0, 1, ..."""
  params = tree(0)
  memory = jax.tree.map(lambda w: {}, params)
  for t in range(steps):
    params = jax.tree_util.tree_map_with_path(
      lambda p, w, g, m, t=t: rule(build.path_name(p), w, g, t, m),
      params,
      tree(t + 1),
      memory,
      is_leaf=lambda x: isinstance(x, dict) and not x,
    )
  return params


def torch_sgd(w, g, memory, *, lr, momentum, decay, nesterov):
  g = g + decay * w
  first = 'buffer' not in memory
  memory['buffer'] = g if first else momentum * memory['buffer'] + g
  g = g + momentum * memory['buffer'] if nesterov else memory['buffer']
  return w - lr * g


def torch_adam(w, g, memory, *, lr, betas, eps, t):
  memory['m'] = betas[0] * memory.get('m', 0.0) + (1 - betas[0]) * g
  memory['v'] = betas[1] * memory.get('v', 0.0) + (1 - betas[1]) * g * g
  step_size = lr / (1 - betas[0] ** (t + 1))
  denominator = np.sqrt(memory['v']) / np.sqrt(1 - betas[1] ** (t + 1)) + eps
  return w - step_size * memory['m'] / denominator


def check_equal(got, expected, tolerance=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
    got,
    expected,
  )


def rate(path, epoch_factor, lr):
  return lr * epoch_factor * (1.0 if label(path) == 'classifier' else 0.1)


@pytest.mark.parametrize('nesterov', [True, False])
def test_sgd_equals_torch_with_groups_and_steplr(nesterov):
  def rule(path, w, g, t, memory):
    lr = rate(path, 0.1 ** (t // STEPS_PER_EPOCH // 2), 0.05)
    options = {'momentum': 0.9, 'decay': 5e-2, 'nesterov': nesterov}
    return torch_sgd(w, g, memory, lr=lr, **options)

  got = train(
    name='sgd',
    lr=0.05,
    weight_decay=5e-2,
    nesterov=nesterov,
    groups={'backbone': 0.1, 'classifier': 1.0},
    schedule='step',
    step_every_epochs=2,
  )
  check_equal(got, by_hand(rule))


def test_adamw_equals_torch_with_no_decay_and_cosine():
  def rule(path, w, g, t, memory):
    # eta_min is the same for all groups in torch.
    base, end, epoch = rate(path, 1.0, 0.02), 1e-3, t // STEPS_PER_EPOCH
    lr = end + (base - end) * (1 + np.cos(np.pi * epoch / 4)) / 2
    if not re.search('bias|scale', path):
      w = w * (1 - lr * 0.3)
    return torch_adam(w, g, memory, lr=lr, betas=(0.9, 0.98), eps=1e-6, t=t)

  got = train(
    name='adamw',
    lr=0.02,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.3,
    no_decay=('/bias$', '/scale$'),
    groups={'backbone': 0.1, 'classifier': 1.0},
    schedule='cosine',
    end_lr=1e-3,
  )
  check_equal(got, by_hand(rule))


def test_adam_decay_is_l2_in_the_gradient():
  def rule(path, w, g, t, memory):
    g = g + 0.3 * w
    return torch_adam(w, g, memory, lr=0.02, betas=(0.9, 0.999), eps=1e-8, t=t)

  got = train(name='adam', lr=0.02, weight_decay=0.3)
  check_equal(got, by_hand(rule))


def test_the_same_updates_come_out_of_torch_itself():
  torch = pytest.importorskip('torch')
  params = {
    build.path_name(p): torch.nn.Parameter(torch.tensor(w))
    for p, w in jax.tree.leaves_with_path(tree(0))
  }
  groups = [
    {'params': [w for k, w in params.items() if label(k) == name], 'lr': lr}
    for name, lr in (('backbone', 0.005), ('classifier', 0.05))
  ]
  sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-2, nesterov=True)
  steplr = torch.optim.lr_scheduler.StepLR(sgd, step_size=2, gamma=0.1)
  for i in range(STEPS):
    for p, g in jax.tree.leaves_with_path(tree(i + 1)):
      params[build.path_name(p)].grad = torch.tensor(g)
    sgd.step()
    if i % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1:
      steplr.step()
  got = train(
    lr=0.05,
    weight_decay=5e-2,
    groups={'backbone': 0.1, 'classifier': 1.0},
    schedule='step',
    step_every_epochs=2,
  )
  for p, w in jax.tree.leaves_with_path(got):
    expected = params[build.path_name(p)].detach().numpy()
    np.testing.assert_allclose(w, expected, rtol=0, atol=1e-12)


def test_momentum_zero_is_plain_gradient_descent():
  got = train(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
  check_equal(got, by_hand(lambda path, w, g, t, m: w - 0.1 * g))


def test_clip_norm_equals_clip_grad_norm_of_torch():
  def clipped(t):
    grads = tree(t + 1)
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    return min(1.0, 4.0 / (norm + 1e-6))

  scales = [clipped(t) for t in range(STEPS)]
  assert min(scales) < 0.8
  got = train(
    lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=4.0
  )
  expected = by_hand(lambda path, w, g, t, m: w - 0.1 * scales[t] * g)
  check_equal(got, expected)


def test_clip_norm_leaves_small_gradients_alone():
  clip = build.clip_by_global_norm(10.0)
  updates, _ = clip.update({'w': jnp.array([3.0, 4.0])}, clip.init(None))
  np.testing.assert_array_equal(updates['w'], [3.0, 4.0])


def test_clip_value_clips_every_entry():
  got = train(
    lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, clip_value=0.5
  )
  expected = by_hand(lambda path, w, g, t, m: w - 0.1 * np.clip(g, -0.5, 0.5))
  check_equal(got, expected)


def test_loss_warmup_scales_the_gradient_and_not_the_decay():
  def rule(path, w, g, t, memory):
    factor = min(1.0, 0.1 + 0.9 * (t + 1) / 6) if t < 6 else 1.0
    options = {'momentum': 0.9, 'decay': 0.2, 'nesterov': True}
    return torch_sgd(w, factor * g, memory, lr=0.05, **options)

  got = train(lr=0.05, weight_decay=0.2, loss_warmup_epochs=2)
  check_equal(got, by_hand(rule))


@pytest.mark.parametrize('name', build.OPTIMIZERS)
@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_a_frozen_group_stays_bit_for_bit(name, schedule):
  options = {'name': name, 'weight_decay': 0.3, 'end_lr': 1e-2}
  options |= {'schedule': schedule, 'groups': {'backbone': 0, 'classifier': 1}}
  got = train(steps=3, **options)
  jax.tree.map(np.testing.assert_array_equal, got['trunk'], tree(0)['trunk'])
  assert np.abs(got['classifier']['bias'] - tree(0)['classifier']['bias']).max()


def test_a_frozen_group_is_no_part_of_the_clipped_norm():
  tx, _ = make(
    lr=1.0,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    clip_norm=1.0,
    groups={'backbone': 0.0, 'classifier': 1.0},
  )
  params = jax.tree.map(jnp.asarray, tree(0))
  grads = jax.tree.map(jnp.asarray, tree(1)) | {
    'trunk': jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), params['trunk'])
  }
  updates, _ = tx.update(grads, tx.init(params), params)
  norm = optax.tree.norm(updates['classifier'])
  np.testing.assert_allclose(norm, 1.0, rtol=1e-5)
  assert not any(np.any(u) for u in jax.tree.leaves(updates['trunk']))


def test_a_zero_gradient_still_decays():
  """As the street branch of train_no_street.py, whose loss has weight 0."""
  tx, _ = make(lr=0.1, weight_decay=0.5)
  params = jax.tree.map(jnp.asarray, tree(0))
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  expected = jax.tree.map(lambda w: -0.1 * 1.9 * 0.5 * w, params)
  check_equal(updates, expected, tolerance=1e-6)


@pytest.mark.parametrize('name', build.OPTIMIZERS)
@pytest.mark.parametrize('kind', build.SHARPNESS)
def test_the_state_mirrors_the_parameters(name, kind):
  """So that one sharding rule by path and shape fits parameters and moments."""
  tx, _ = make(
    name=name,
    sam=kind,
    groups={'backbone': 0.1, 'classifier': 1.0},
    no_decay=('bias',),
  )
  params = jax.tree.map(jnp.asarray, tree(0))
  state = jax.eval_shape(tx.init, params)
  shapes = {
    build.path_name(p): w.shape for p, w in jax.tree.leaves_with_path(params)
  }
  moments = {}
  for path, leaf in jax.tree.leaves_with_path(state):
    if leaf.shape:
      moments.setdefault(build.path_name(path), leaf.shape)
  copies = 1 if name == 'sgd' else 2
  assert len(moments) == copies * len(shapes)
  for path, shape in moments.items():
    assert any(
      path.endswith('/' + name) and shape == shapes[name] for name in shapes
    )


def test_sharded_parameters_give_the_updates_of_one_device():
  tx, _ = make(lr=0.05, clip_norm=1.0)
  auto = jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((4,), ('data',), axis_types=(auto,))
  spec = jax.sharding.PartitionSpec

  def place(w):
    axes = ['data' if n % 4 == 0 else None for n in w.shape]
    first = axes.index('data') if 'data' in axes else None
    axes = ['data' if k == first else None for k in range(w.ndim)]
    return jax.device_put(w, jax.sharding.NamedSharding(mesh, spec(*axes)))

  @jax.jit
  def step(params, grads):
    return tx.update(grads, tx.init(params), params)[0]

  params, grads = tree(0), tree(1)
  params, grads = (
    jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), t)
    for t in (params, grads)
  )
  one = step(params, grads)
  many = step(jax.tree.map(place, params), jax.tree.map(place, grads))
  check_equal(many, one, tolerance=1e-6)


def test_the_returned_schedule_is_the_one_in_use():
  options = {'lr': 0.3, 'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0}
  tx, schedule = make(schedule='linear', schedule_unit='step', **options)
  params = {'w': jnp.zeros([])}
  state = tx.init(params)
  for i in range(STEPS):
    updates, state = tx.update({'w': jnp.ones([])}, state, params)
    np.testing.assert_allclose(-updates['w'], schedule(i), rtol=1e-6)


def test_a_schedule_may_count_the_batch_that_is_left_out():
  """Sample4Geo: 10 pairs in batches of 4 are 2 steps, the schedule counts 3."""
  options = {'schedule': 'cosine', 'schedule_unit': 'step', 'lr': 0.3}
  options |= {'warmup_epochs': 1.0}
  make_ = lambda steps, **more: build.make(
    build.Optimizer(**options, **more), steps_per_epoch=steps, total_epochs=5
  )[1]
  steps = jnp.arange(10)
  counted = make_(2, count_partial_batch=True)(steps)
  np.testing.assert_array_equal(counted, make_(3)(steps))
  assert counted[-1] > 0.1 * 0.3  # 5 of the 15 steps never come.
  with pytest.raises(ValueError, match="schedule_unit='step'"):
    build.Optimizer(count_partial_batch=True)


def test_an_epoch_without_learning_is_announced(caplog):
  make(warmup_epochs=2.0)
  assert 'the first epoch learns nothing' in caplog.text
  caplog.clear()
  make(warmup_epochs=2.0, schedule_unit='step')
  make(warmup_epochs=2.0, warmup_counts_from=1)
  assert not caplog.text


def test_a_label_without_group_names_the_parameter():
  tx, _ = make(groups={'classifier': 1.0})
  with pytest.raises(ValueError, match=r"parameter 'trunk/bn/scale' \(and 2"):
    tx.init(tree(0))


def test_a_group_without_parameters_is_an_error():
  tx, _ = make(groups={'classifier': 1.0, 'backbone': 0.1, 'hed': 1.0})
  with pytest.raises(
    ValueError, match=r"the label 'hed'; the labels of this method are \['back"
  ):
    tx.init(tree(0))


def test_groups_need_labels():
  with pytest.raises(ValueError, match='need the labels of the method'):
    build.make(
      build.Optimizer(groups={'head': 1.0}), steps_per_epoch=1, total_epochs=1
    )


@pytest.mark.parametrize(
  'section, message',
  [
    ({'name': 'sdg'}, r"config.optim: name is 'sdg', expected one of \['sgd'"),
    ({'schedule': 'cos'}, "schedule is 'cos'"),
    ({'sam': 'gsam'}, "sam is 'gsam'"),
    ({'lr': -1.0}, 'lr is -1.0, expected >= 0'),
    ({'lr': float('nan')}, 'lr is nan'),
    ({'momentum': 1.0}, 'momentum is 1.0'),
    ({'momentum': 0.0}, 'nesterov needs a momentum'),
    ({'betas': (0.9,)}, 'expected 2 values'),
    ({'groups': {'head': -1}}, r"factors \{'head': -1\}"),
    ({'no_decay': ('(',)}, 'not a regular expression'),
    ({'warmup_counts_from': 2}, 'expected 0 or 1'),
    ({'learning_rate': 1.0}, "unknown key 'learning_rate'"),
  ],
)
def test_a_wrong_option_is_explained(section, message):
  with pytest.raises(ValueError, match=message):
    strict.make(build.Optimizer, section, 'config.optim')


def test_a_section_of_lists_and_integers_is_accepted():
  section = {'lr': 1, 'betas': [0.9, 0.95], 'step_at_epochs': [40, 60]}
  section |= {'groups': {'head': 1}, 'schedule': 'step'}
  config = strict.make(build.Optimizer, section, 'config.optim')
  assert config.betas == (0.9, 0.95)
  assert config.groups == {'head': 1}
