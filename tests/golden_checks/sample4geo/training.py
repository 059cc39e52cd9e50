"""Loss and learning rates of Sample4Geo."""

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.losses import contrastive
from cvgl_jax.optim import build
from tests.golden_case import Case


def check_infonce(case: Case) -> None:
  smoothing = case.argument('label_smoothing', 0.1)

  def loss(query, reference, logit_scale):
    return contrastive.info_nce_loss(
      query,
      reference,
      temperature=jnp.exp(-logit_scale),
      label_smoothing=smoothing,
    )

  names = ('features1', 'features2', 'logit_scale')
  arguments = [jnp.asarray(case[f'in/{name}']) for name in names]
  value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments)
  case.close('out/loss', value, rtol=2e-5)
  for name, grad in zip(names, grads, strict=True):
    case.close(f'out/grad_{name}', grad, rtol=2e-5)


def check_schedules(case: Case) -> None:
  total = case.scalar('in/train_steps')
  for name in ('cosine', 'polynomial', 'constant'):
    config = build.Optimizer(
      name='adamw',
      lr=case.scalar('in/lr'),
      schedule=name,
      schedule_unit='step',
      warmup_epochs=case.scalar('in/warmup_steps'),  # An epoch is a step here.
      end_lr=case.scalar('in/lr_end') if name == 'polynomial' else 0.0,
      power=case.scalar('in/power'),
    )
    _, schedule = build.make(config, steps_per_epoch=1, total_epochs=total)
    key = f'out/lr_{name}'
    expected = case[key]
    rates = np.array(schedule(jnp.arange(len(expected))))
    if name == 'cosine':
      # No run takes steps after the end; there the original rises again.
      assert (rates[total:] == 0).all() and (
        np.diff(expected[total:]) > 0
      ).all()
      rates[total + 1 :] = expected[total + 1 :]
    case.close(key, rates, rtol=1e-6)


CHECKS = {'infonce_': check_infonce, 'schedules': check_schedules}
