"""Losses on the pairs of a batch: circle, contrastive, lifted, InfoNCE.

All pairs of the (global) batch count; embeddings are normalised here. A batch
without positive or negative pairs gives a finite value and exactly zero
gradient from the missing part.

Source: layumi/University1652-Baseline, circle_loss.py and train.py;
KevinMusgrave/pytorch-metric-learning 2.9; Skyy93/Sample4Geo, loss.py.
"""

import jax
import jax.numpy as jnp

from cvgl_jax.losses import pairs


def circle_loss(
  x: jax.Array, label: jax.Array, *, margin: float = 0.25, gamma: float = 32.0
) -> jax.Array:
  """softplus(LSE_N(gamma a_n (s_n - m)) + LSE_P(-gamma a_p (s_p - 1 + m))).

  s are the cosines of unordered pairs, P those of equal and N those of
  different labels; a_n = [s_n + m]+ and a_p = [1 + m - s_p]+ have no gradient.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    margin: m.
    gamma: scale; at 64 the value has about four digits in float32.

  Returns:
    Scalar, one number for the whole batch, not divided by anything: the
    baseline divides by B. 0 where P or N is empty.

  Source: circle_loss.py (Sun et al. 2020).
  """
  similarity = pairs.cosine(x, x)  # [B, B]
  same, different = pairs.masks(label)
  upper = jnp.triu(jnp.ones_like(same), k=1)  # every pair once
  fixed = jax.lax.stop_gradient(similarity)
  alpha_p = jax.nn.relu(1 + margin - fixed)
  alpha_n = jax.nn.relu(fixed + margin)
  positive, has_positive = pairs.masked_logsumexp(
    -gamma * alpha_p * (similarity - (1 - margin)), same & upper
  )
  negative, has_negative = pairs.masked_logsumexp(
    gamma * alpha_n * (similarity - margin), different & upper
  )
  value = jax.nn.softplus(positive + negative)
  return jnp.where(has_positive & has_negative, value, 0.0)


def contrastive_loss(
  x: jax.Array,
  label: jax.Array,
  *,
  positive_margin: float = 0.0,
  negative_margin: float = 1.0,
) -> jax.Array:
  """mean of [d_p - m_p]+ plus mean of [m_n - d_n]+, means over entries > 0.

  d are Euclidean distances of unit vectors, so 0 .. 2.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    positive_margin: distance from which pairs of equal labels cost.
    negative_margin: distance up to which pairs of different labels cost.

  Returns:
    Scalar; an empty set adds 0.

  Source: pytorch-metric-learning, ContrastiveLoss with its default reducer.
  """
  distance = pairs.distance(x)  # [B, B]
  same, different = pairs.masks(label)
  pull = distance - positive_margin
  push = negative_margin - distance
  return pairs.masked_mean(pull, same & (pull > 0)) + pairs.masked_mean(
    push, different & (push > 0)
  )


def lifted_loss(
  x: jax.Array,
  label: jax.Array,
  *,
  positive_margin: float = 0.0,
  negative_margin: float = 1.0,
) -> jax.Array:
  """Generalised lifted structure: mean over i of [a_i + b_i]+.

  a_i = LSE over positives of (d_ip - m_p), b_i = LSE over negatives of
  (m_n - d_in), each 0 where the anchor has none: a row without positives still
  contributes b_i.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    positive_margin: m_p.
    negative_margin: m_n.

  Returns:
    Scalar, the mean over B.

  Source: pytorch-metric-learning, GeneralizedLiftedStructureLoss.
  """
  distance = pairs.distance(x)  # [B, B]
  same, different = pairs.masks(label)
  pull, _ = pairs.masked_logsumexp(distance - positive_margin, same, axis=1)
  push, _ = pairs.masked_logsumexp(
    negative_margin - distance, different, axis=1
  )
  return jnp.mean(jax.nn.relu(pull + push))


def info_nce_loss(
  query: jax.Array,
  reference: jax.Array,
  *,
  temperature: float | jax.Array,
  place: jax.Array | None = None,
  label_smoothing: float = 0.0,
  groups: int = 1,
) -> jax.Array:
  """Symmetric InfoNCE: row i of the query belongs to row i of the reference.

  S = query reference^T / temperature; (CE(S) + CE(S^T)) / 2, the targets on
  the diagonal.

  Args:
    query: [B, D] embeddings, normalised here.
    reference: [B, D] embeddings, normalised here.
    temperature: positive; a traced scalar where it is learned, exp(-t) for a
      learned logit scale exp(t).
    place: [B] int; rows of the same place are neither positives nor negatives
      of one another. None: every other row is a negative.
    label_smoothing: share of the target spread evenly over the candidates that
      count, the right one included.
    groups: see `pairs.group_rows`; 1 is the whole global batch.

  Returns:
    Scalar, the mean over B and the two directions.

  Raises:
    ValueError: the shapes differ, or B is not divisible by `groups`.

  Source: Skyy93/Sample4Geo, loss.py.
  """
  forth, back = info_nce_directions(
    query,
    reference,
    temperature=temperature,
    place=place,
    label_smoothing=label_smoothing,
    groups=groups,
  )
  return (forth + back) / 2


def info_nce_directions(
  query: jax.Array,
  reference: jax.Array,
  *,
  temperature: float | jax.Array,
  place: jax.Array | None = None,
  label_smoothing: float = 0.0,
  groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """The two terms of `info_nce_loss`: query -> reference, and back."""
  logits = pairs.grouped_cosine(
    query, reference, groups=groups
  )  # [G, B / G, B / G]
  logits = logits / temperature
  own = jnp.eye(logits.shape[1], dtype=bool)[None]
  counts = jnp.ones_like(logits, dtype=bool)
  if place is not None:
    place = pairs.group_rows(place, groups)
    counts = (place[:, :, None] != place[:, None, :]) | own

  def one_way(axis):
    total, _ = pairs.masked_logsumexp(logits, counts, axis=axis)  # [G, B / G]
    right = jnp.sum(jnp.where(own, logits, 0.0), axis=axis)
    if label_smoothing:
      even = jnp.sum(jnp.where(counts, logits, 0.0), axis=axis)
      even = even / jnp.sum(counts, axis=axis).astype(logits.dtype)
      right = (1 - label_smoothing) * right + label_smoothing * even
    return jnp.mean(total - right)

  return one_way(2), one_way(1)
