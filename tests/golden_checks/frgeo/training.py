"""SAM, ASAM and learning rates of FRGeo and TransGeo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvgl_jax.optim import build, sam
from tests.golden_case import Case, decimals

# The README's tolerance is absolute; losses, gradients and weights are about 1.
ATOL = {'rtol': 1e-5, 'scale': 1}


def optimizer(case: Case, lr: float) -> build.Optimizer:
  options = {'lr': lr, 'weight_decay': case.scalar('in/weight_decay')}
  if 'in/momentum' in case:
    options |= {'momentum': case.scalar('in/momentum'), 'nesterov': False}
    options['name'] = 'sgd'
  else:
    assert not case.argument('amsgrad', 0)
    options |= {
      'name': 'adamw',
      'betas': tuple(decimals(case['in/betas'])),
      'eps': case.scalar('in/eps'),
    }
  adaptive = bool(case.scalar('in/adaptive'))
  options |= {
    'sam': 'asam' if adaptive else 'sam',
    'sam_rho': case.scalar('in/rho'),
  }
  return build.Optimizer(**options)


def loss_of(params, x, target):
  """Mean squared error of fc2(tanh(fc1 x)); weights in torch's layout."""
  layer = lambda name, y: (
    y @ params[f'{name}.weight'].T + params[f'{name}.bias'][None]
  )
  y = layer('fc2', jnp.tanh(layer('fc1', x)))
  return jnp.mean(jnp.square(y - target))


def check_sam(case: Case) -> None:
  params = {k: jnp.asarray(v) for k, v in case.prefix('param/').items()}
  state, steps = None, []
  for x, target, lr in zip(
    case['in/x'], case['in/target'], decimals(case['in/lr']), strict=True
  ):
    config = optimizer(case, lr)
    tx, _ = build.make(config, steps_per_epoch=1, total_epochs=1)
    state = tx.init(params) if state is None else state
    gradient = jax.value_and_grad(
      functools.partial(loss_of, x=jnp.asarray(x), target=jnp.asarray(target))
    )
    climbed = []

    def grad_fn(at, gradient=gradient, climbed=climbed):
      climbed.append((at, *gradient(at)))
      return climbed[-1][2]

    loss, grads = gradient(params)
    adaptive = config.sam == 'asam'
    _, norm = sam.climb(grads, params, rho=config.sam_rho, adaptive=adaptive)
    updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
    [(there, second_loss, second)] = climbed
    after = optax.apply_updates(params, updates)
    steps.append(
      {
        'loss1': loss,
        'loss2': second_loss,
        'grad_norm': norm,
        **{f'grad1/{k}': g for k, g in grads.items()},
        **{f'grad2/{k}': g for k, g in second.items()},
        **{f'eps/{k}': there[k] - w for k, w in params.items()},
        **{f'after/{k}': w for k, w in after.items()},
      }
    )
    params = after
  for name in steps[0]:
    case.close(f'out/{name}', np.stack([s[name] for s in steps]), **ATOL)


def check_schedule(case: Case) -> None:
  epochs, steps_per_epoch = case.scalar('in/epochs'), 3
  milestones = tuple(float(m) for m in case['in/milestones'])
  options = {'schedule': 'cosine'}
  if not case.scalar('in/cos'):
    options = {'schedule': 'step', 'step_at_epochs': milestones}
  config = build.Optimizer(
    name='adamw', lr=case.scalar('in/lr'), schedule_unit='epoch', **options
  )
  _, schedule = build.make(
    config, steps_per_epoch=steps_per_epoch, total_epochs=epochs
  )
  steps = jnp.arange(epochs * steps_per_epoch)
  rates = np.asarray(schedule(steps)).reshape(epochs, steps_per_epoch)
  assert (rates == rates[:, :1]).all()  # Constant inside an epoch.
  case.close('out/lr', rates[:, 0], rtol=1e-6)


CHECKS = {'sam_': check_sam, 'asam_': check_sam, 'schedule_': check_schedule}
