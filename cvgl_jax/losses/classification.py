"""Losses on class scores: cross entropy, instance loss, angular margins.

Labels are class indices 0 .. K-1. The margin losses compare an embedding with
one prototype per class; the prototypes are an argument, so that a method may
train them or keep them fixed.

Source: layumi/University1652-Baseline, train.py; the margin losses follow
KevinMusgrave/pytorch-metric-learning 2.9, as called there.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cvgl_jax.losses import pairs


def cross_entropy(
  logits: jax.Array, label: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
  """Mean over the batch of -log softmax(logits)[label].

  Args:
    logits: [B, K], any float type; the maths is float32 or wider.
    label: [B] int, class indices in 0 .. K-1.
    label_smoothing: share of the target that is spread evenly over all K
      classes, the right one included (torch's definition).

  Returns:
    Scalar, the mean over B.
  """
  logits = pairs.at_least_float32(logits)
  log_p = jax.nn.log_softmax(logits, axis=-1)  # [B, K]
  picked = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]  # [B]
  if label_smoothing:
    even = jnp.mean(log_p, axis=-1)  # [B]
    picked = (1 - label_smoothing) * picked + label_smoothing * even
  return -jnp.mean(picked)


def instance_loss(
  logits: Mapping[str, jax.Array],
  label: Mapping[str, jax.Array],
  *,
  weight: Mapping[str, float] | None = None,
  merge: bool = False,
  merge_factor: float = 4.0,
) -> jax.Array:
  """Cross entropy of several views under one classifier.

  sum over views of weight[v] * CE(logits[v], label[v]), or, merged,
  merge_factor * CE(all logits, all labels).

  Args:
    logits: view -> [B_v, K]; the views may differ in batch size.
    label: view -> [B_v] int; every view of `logits` must be there.
    weight: view -> factor, 1 for views that are not named. A weight of 0
      keeps the view's gradients, as zeros. Not used when merged.
    merge: one cross entropy over the concatenated views.
    merge_factor: reference-bug: 4 in the release, however many views there
      are.

  Returns:
    Scalar.

  Raises:
    ValueError: `weight` names a view that is not in `logits`.

  Source: layumi/University1652-Baseline, train.py and train_no_street.py.
  """
  weight = weight or {}
  unknown = sorted(set(weight) - set(logits))
  if unknown:
    raise ValueError(
      f'instance_loss: weights for views {unknown}, there are {sorted(logits)}'
    )
  if merge:
    every = jnp.concatenate(list(logits.values()))  # [sum B_v, K]
    return merge_factor * cross_entropy(
      every, jnp.concatenate([label[view] for view in logits])
    )
  return sum(
    weight.get(view, 1.0) * cross_entropy(scores, label[view])
    for view, scores in logits.items()
  )


def arcface_loss(
  x: jax.Array,
  label: jax.Array,
  prototype: jax.Array,
  *,
  margin_deg: float = 28.6,
  scale: float = 64.0,
) -> jax.Array:
  """CE(scale * c'), the angle to the own prototype enlarged by the margin.

  c' = cos(theta + m) of the own class where theta <= pi - m, below that the
  straight line cos(theta) - m sin(m); c' = cos(theta) of the other classes.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    prototype: [D, K], one column per class, normalised here.
    margin_deg: m, in degrees.
    scale: factor of the cosines.

  Returns:
    Scalar, the mean over B.

  Source: pytorch-metric-learning, ArcFaceLoss (Deng et al. 2019).
  """
  margin = math.radians(margin_deg)
  scores, target = _prototype_scores(x, label, prototype)
  # cos(theta + m) without arccos, whose derivative at 1 is infinite.
  sine = pairs.safe_sqrt((1 - target) * (1 + target))
  moved = target * math.cos(margin) - sine * math.sin(margin)
  straight = target - margin * math.sin(margin)
  moved = jnp.where(target >= -math.cos(margin), moved, straight)
  return cross_entropy(scale * _replace_target(scores, label, moved), label)


def cosface_loss(
  x: jax.Array,
  label: jax.Array,
  prototype: jax.Array,
  *,
  margin: float = 0.35,
  scale: float = 64.0,
) -> jax.Array:
  """CE(scale * c'), the cosine to the own prototype lowered by the margin.

  Args:
    x, label, prototype: as in `arcface_loss`.
    margin: subtracted from the cosine of the own class.
    scale: factor of the cosines.

  Returns:
    Scalar, the mean over B.

  Source: pytorch-metric-learning, CosFaceLoss (Wang et al. 2018).
  """
  scores, target = _prototype_scores(x, label, prototype)
  moved = _replace_target(scores, label, target - margin)
  return cross_entropy(scale * moved, label)


def sphere_loss(
  x: jax.Array,
  label: jax.Array,
  prototype: jax.Array,
  *,
  margin: int = 4,
  scale: float = 1.0,
) -> jax.Array:
  """CE(scale * c'), the angle to the own prototype multiplied by the margin.

  c' = (-1)^k cos(m theta) - 2 k of the own class, k = floor(m theta / pi)
  without gradient; c' = cos(theta) of the other classes.

  Args:
    x, label, prototype: as in `arcface_loss`.
    margin: m, a whole number >= 1.
    scale: factor of the scores.

  Returns:
    Scalar, the mean over B. The baseline divides it by B once more; that is
    left to the method.

  Raises:
    ValueError: the margin is not a whole number >= 1.

  Source: pytorch-metric-learning, SphereFaceLoss (Liu et al. 2017).
  Differs: the original multiplies the scores by |x|; here |x| is 1, as the
    baseline calls it.
  """
  if margin < 1 or margin != int(margin):
    raise ValueError(f'sphere_loss: margin is {margin}, expected 1, 2, 3, ...')
  scores, target = _prototype_scores(x, label, prototype)
  theta = jnp.arccos(jnp.clip(jax.lax.stop_gradient(target), -1.0, 1.0))
  k = jnp.floor(margin * theta / math.pi)
  # cos(m theta) as Chebyshev's polynomial of cos(theta): smooth everywhere.
  before, multiple = jnp.ones_like(target), target
  for _ in range(int(margin) - 1):
    before, multiple = multiple, 2 * target * multiple - before
  sign = 1 - 2 * jnp.mod(k, 2)
  moved = _replace_target(scores, label, sign * multiple - 2 * k)
  return cross_entropy(scale * moved, label)


def _prototype_scores(
  x: jax.Array, label: jax.Array, prototype: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cosines to all prototypes [B, K] and to the own one [B]."""
  if x.shape[-1] != prototype.shape[0]:
    raise ValueError(
      f'embeddings {x.shape} do not fit prototypes {prototype.shape}; '
      'expected [B, D] and [D, K]'
    )
  scores = pairs.cosine(x, prototype.T)
  return scores, jnp.take_along_axis(scores, label[:, None], axis=-1)[:, 0]


def _replace_target(
  scores: jax.Array, label: jax.Array, target: jax.Array
) -> jax.Array:
  """`scores` [B, K] with the entries of the own classes set to target [B]."""
  own = jnp.arange(scores.shape[-1])[None] == label[:, None]
  return jnp.where(own, target[:, None], scores)
