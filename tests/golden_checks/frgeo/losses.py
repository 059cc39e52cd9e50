"""The losses of FRGeo and TransGeo, values and gradients."""

import functools

import jax
import jax.numpy as jnp

from cvgl_jax.losses import cross_view
from tests.golden_case import Case


def check(case: Case, *, loss, directions) -> None:
  query, reference = jnp.asarray(case['in/q']), jnp.asarray(case['in/k'])
  alpha = case.scalar('in/alpha')
  value, grads = jax.value_and_grad(loss, argnums=(0, 1))(
    query, reference, alpha=alpha
  )
  case.close('out/loss', value, rtol=1e-5)
  for name, grad in zip('qk', grads, strict=True):
    case.close(f'out/grad_{name}', grad, rtol=1e-5)
  forth, back = directions(query, reference, alpha=alpha)
  case.close('out/loss_q2k', forth, rtol=1e-5)
  case.close('out/loss_k2q', back, rtol=1e-5)
  metrics = cross_view.similarity_metrics(query, reference)
  case.close('out/mean_pos_sim', metrics['similarity/positive'], rtol=1e-5)
  # A mean of cosines may be near 0; their scale is 1.
  case.close(
    'out/mean_neg_sim', metrics['similarity/negative'], rtol=1e-5, scale=1
  )


CHECKS = {
  'wbl_': functools.partial(
    check,
    loss=cross_view.weighted_tuple_loss,
    directions=cross_view.weighted_tuple_directions,
  ),
  'soft_triplet_': functools.partial(
    check,
    loss=cross_view.soft_triplet_loss,
    directions=cross_view.soft_triplet_directions,
  ),
}
