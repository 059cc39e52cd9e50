"""Optimiser, loss warm-up and moving average against the published code."""

import json
import math

import jax
import jax.numpy as jnp
import optax

from cvgl_jax.methods import university1652
from cvgl_jax.models import backbones
from cvgl_jax.optim import build, ema, schedules
from tests import golden_case


def check_sgd_step(case):
  """The baseline's two groups, and a parameter that never has a gradient."""
  names = list(case.prefix('param/'))
  params = {name: jnp.asarray(case[f'param/{name}']) for name in names}
  params['nograd'] = jnp.asarray(case['in/nograd_param'])
  grads = {name: case[f'in/grad_{name}'] for name in names}
  steps = len(grads[names[0]])
  config = build.Optimizer(
    lr=case.scalar('in/lr'),
    momentum=case.argument('momentum', 0.9),
    nesterov=bool(case.argument('nesterov', True)),
    weight_decay=case.argument('weight_decay', 5e-4),
    groups={'backbone': 0.1, 'classifier': 1.0, 'unused': 0.0},
    schedule='step',
    step_every_epochs=case.scalar('in/step_size_epochs'),
    gamma=case.argument('gamma', 0.1),
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

  state, rates = tx.init(params), []
  for i in range(steps):
    now = {name: jnp.asarray(grads[name][i]) for name in names}
    # What autodiff gives for a parameter that the loss does not touch.
    now['nograd'] = jnp.zeros_like(params['nograd'])
    params, state = step(params, state, now)
    for name in case.prefix(f'out/step{i + 1}/'):
      case.close(f'out/step{i + 1}/{name}', params[name], rtol=1e-6)
    rates.append([0.1 * float(schedule(i)), float(schedule(i))])
  case.close('out/lr_trace', rates, rtol=1e-6)
  case.equal('out/nograd_param_after', params['nograd'])


def check_warmup_loss_scale(case):
  rows = sorted({key.split('/')[0] for key in case.prefix('in/')}, key=int)
  for row in rows:
    samples, batch_size, epochs = map(int, case[f'in/{row}/n_bs_epochs'])
    per_epoch = samples // batch_size
    case.equal(f'out/{row}/steps_per_epoch', per_epoch)
    factor = schedules.loss_warmup(
      epochs,
      steps_per_epoch=per_epoch,
      samples_per_epoch=samples,
      batch_size=batch_size,
    )
    multiplier = factor(jnp.asarray(case[f'out/{row}/step_index']))
    case.close(f'out/{row}/multiplier', multiplier, rtol=1e-6)
    last = factor(epochs * per_epoch - 1)
    case.close(f'out/{row}/last_warm_multiplier', last, rtol=1e-6)
    if epochs:  # The ramp rises by 0.9 / warm_iteration a step.
      ramp = 0.9 / (factor(0) - 0.1)
      case.close(f'out/{row}/warm_iteration', ramp, rtol=1e-3)
    else:
      case.equal(f'out/{row}/warm_iteration', 0)


def check_ema_update(case):
  start, new = case.prefix('param/tgt/'), case.prefix('param/src/')
  is_buffer = lambda name: 'running_' in name or 'num_batches' in name
  average = {k: jnp.asarray(v) for k, v in start.items() if not is_buffer(k)}
  source = {k: jnp.asarray(v) for k, v in new.items() if not is_buffer(k)}
  for _ in range(case.scalar('in/n_updates')):
    average = ema.update(average, source, decay=case.scalar('in/beta'))
  for name in case.prefix('out/'):
    if is_buffer(name):
      # The reference averages parameters only, which is what `ema` is given.
      case.equal(f'out/{name}', start[name])
    else:
      case.close(f'out/{name}', average[name], rtol=1e-6)


def check_optimizer_groups(path):
  """Whatever starts with 'classifier' at lr, everything else at 0.1 lr."""
  expected = json.loads(path.read_text())
  networks = {
    'baseline three_view share 701 classes stride1': 'three_view_share_extra',
    'baseline three_view noshare': 'three_view_noshare_returnf',
    'baseline two_view noshare': 'two_view_noshare',
  }
  # The trunk alone; the fc of torchvision's ResNet is never used.
  trunk = jax.eval_shape(
    lambda: backbones.make('resnet50').init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )
  )
  sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(trunk['params'])]
  assert sum(sizes) == expected.pop('ft_net used params (without fc)')
  del expected['ft_net unused fc params']
  del expected['LPN three_view share block4']  # another system
  assert set(expected) == set(networks)
  method = university1652.Method()
  for case, stem in networks.items():
    sizes = {
      name: math.prod(with_701_classes(name, shape))
      for name, shape in golden_case.names(path, stem)
      if 'running_' not in name and 'num_batches' not in name
    }
    groups = build.group_of_paths(
      lambda name: method.label(name.replace('.', '/')), list(sizes)
    )
    trunk, head = expected[case]['lr_x0.1'], expected[case]['classifier']
    assert groups['classifier'] == head['names']
    assert sum(sizes[n] for n in groups['classifier']) == head['scalars']
    assert len(groups['backbone']) == trunk['tensors']
    assert sum(sizes[n] for n in groups['backbone']) == trunk['scalars']
    assert groups['backbone'][:2] == trunk['first']
    assert groups['backbone'][-2:] == trunk['last']


def with_701_classes(name, shape):
  """The recorded networks are narrow at the end; the groups count 701."""
  return (
    [701, *shape[1:]] if name.startswith('classifier.classifier') else shape
  )


CHECKS = {
  'optim_sgd_step': check_sgd_step,
  'warmup_loss_scale': check_warmup_loss_scale,
  'ema_update': check_ema_update,
}
JSON_CHECKS = {'optimizer_groups': check_optimizer_groups}
