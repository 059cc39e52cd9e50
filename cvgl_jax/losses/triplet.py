"""Triplet margin loss on pairs that the multi-similarity miner keeps.

Source: KevinMusgrave/pytorch-metric-learning 2.9, MultiSimilarityMiner and
TripletMarginLoss, as layumi/University1652-Baseline, train.py, calls them.
"""

import jax
import jax.numpy as jnp

from cvgl_jax.losses import pairs


def multi_similarity_pairs(
  x: jax.Array, label: jax.Array, *, epsilon: float = 0.1
) -> tuple[jax.Array, jax.Array]:
  """The informative pairs of a batch.

  A positive (i, p) is kept if s_ip - epsilon < max over negatives of s_in, a
  negative (i, n) if s_in + epsilon > min over positives of s_ip. An anchor
  without positives or without negatives keeps nothing.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    epsilon: how far a pair may be from being informative.

  Returns:
    (positive, negative): masks [B, B] of ordered pairs (anchor, other).

  Source: MultiSimilarityMiner (Wang et al. 2019).
  """
  similarity = jax.lax.stop_gradient(pairs.cosine(x, x))  # [B, B]
  same, different = pairs.masks(label)
  hardest_negative = jnp.max(
    jnp.where(different, similarity, -jnp.inf), axis=1, keepdims=True
  )
  hardest_positive = jnp.min(
    jnp.where(same, similarity, jnp.inf), axis=1, keepdims=True
  )
  positive = same & (similarity - epsilon < hardest_negative)
  negative = different & (similarity + epsilon > hardest_positive)
  return positive, negative


def triplet_loss(
  x: jax.Array,
  positive: jax.Array,
  negative: jax.Array,
  *,
  margin: float = 0.3,
) -> jax.Array:
  """mean of [d_ip - d_in + margin]+ over the triplets where it is > 0.

  The triplets are all (i, p, n) whose two pairs are given.

  Args:
    x: [B, D] embeddings, normalised here; d are distances of unit vectors.
    positive: [B, B] bool, pairs (anchor, positive).
    negative: [B, B] bool, pairs (anchor, negative).
    margin: of the distances.

  Returns:
    Scalar; 0 if no triplet violates the margin.

  Source: TripletMarginLoss with its default reducer.
  """
  distance = pairs.distance(x)  # [B, B]

  # A few anchors at a time and recomputed in the backward pass: [B, B, B] is
  # never stored for a large batch.
  @jax.checkpoint
  def violations(anchor):
    distance, positive, negative = anchor  # [B] each
    value = distance[:, None] - distance[None] + margin  # [B, B]
    counts = positive[:, None] & negative[None] & (value > 0)
    return jnp.sum(jnp.where(counts, value, 0.0)), jnp.sum(counts)

  total, count = jax.lax.map(
    violations,
    (distance, positive, negative),
    batch_size=pairs.rows_at_once(distance.size),
  )
  return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1).astype(total.dtype)


def multi_similarity_triplet_loss(
  x: jax.Array,
  label: jax.Array,
  *,
  margin: float = 0.3,
  epsilon: float = 0.1,
) -> jax.Array:
  """`triplet_loss` on the pairs of `multi_similarity_pairs`.

  Args:
    x: [B, D] embeddings, normalised here.
    label: [B] int.
    margin: of the triplets.
    epsilon: of the miner.

  Returns:
    Scalar.
  """
  positive, negative = multi_similarity_pairs(x, label, epsilon=epsilon)
  return triplet_loss(x, positive, negative, margin=margin)
