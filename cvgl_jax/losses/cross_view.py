"""Losses between two views of the same places: row i belongs to row i.

With u_i, v_i the unit vectors of the query and the reference and
s_ij = u_i . v_j, every pair i != j is a negative, in both directions.

Source: zqwlearning/FRGeo-Code, criterion/wbloss.py; Jeff-Zilence/TransGeo2022,
criterion/soft_triplet.py.
"""

import jax
import jax.numpy as jnp

from cvgl_jax.losses import contrastive, pairs


def weighted_tuple_loss(
  query: jax.Array,
  reference: jax.Array,
  *,
  alpha: float = 10.0,
  groups: int = 1,
) -> jax.Array:
  """The weighted (B+1)-tuple loss: an anchor, its positive, B - 1 negatives.

  Half of  mean_i log(1 + sum_{j != i} exp(alpha (s_ij - s_ii)))  and the same
  of s^T; that is InfoNCE of temperature 1 / alpha.

  Args:
    query: [B, D] embeddings, normalised here.
    reference: [B, D] embeddings, normalised here.
    alpha: weight of the differences of cosines.
    groups: see `pairs.group_rows`; the mean over the groups.

  Returns:
    Scalar.

  Raises:
    ValueError: the shapes differ, or the groups have fewer than two rows.

  Source: criterion/wbloss.py, WBLoss; its `margin` is not used there.
  Differs: a zero vector has cosine 0 with everything, there it is NaN.
  """
  forth, back = weighted_tuple_directions(
    query, reference, alpha=alpha, groups=groups
  )
  return (forth + back) / 2


def weighted_tuple_directions(
  query: jax.Array,
  reference: jax.Array,
  *,
  alpha: float = 10.0,
  groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """The terms of `weighted_tuple_loss`: query -> reference, and back."""
  _check_negatives(query, groups)
  return contrastive.info_nce_directions(
    query, reference, temperature=1 / alpha, groups=groups
  )


def soft_triplet_loss(
  query: jax.Array,
  reference: jax.Array,
  *,
  alpha: float = 20.0,
  groups: int = 1,
) -> jax.Array:
  """The soft-margin triplet loss over all triplets of the batch.

  Half of  mean_{i != j} log(1 + exp(alpha (s_ij - s_ii)))  and the same of s^T.

  Args:
    query: [B, D] embeddings, normalised here.
    reference: [B, D] embeddings, normalised here.
    alpha: weight of the differences of cosines.
    groups: see `pairs.group_rows`; the mean over the groups.

  Returns:
    Scalar.

  Raises:
    ValueError: the shapes differ, or the groups have fewer than two rows.

  Source: criterion/soft_triplet.py, SoftTripletBiLoss.
  Differs: a zero vector has cosine 0 with everything, there it is NaN.
  """
  forth, back = soft_triplet_directions(
    query, reference, alpha=alpha, groups=groups
  )
  return (forth + back) / 2


def soft_triplet_directions(
  query: jax.Array,
  reference: jax.Array,
  *,
  alpha: float = 20.0,
  groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """The terms of `soft_triplet_loss`: query -> reference, and back."""
  _check_negatives(query, groups)
  cosine = pairs.grouped_cosine(
    query, reference, groups=groups
  )  # [G, B/G, B/G]
  own = jnp.diagonal(cosine, axis1=1, axis2=2)  # [G, B / G]
  negative = ~jnp.broadcast_to(
    jnp.eye(own.shape[1], dtype=bool)[None], cosine.shape
  )

  def one_way(positive):
    return pairs.masked_mean(
      jax.nn.softplus(alpha * (cosine - positive)), negative
    )

  return one_way(own[:, :, None]), one_way(own[:, None])


def similarity_metrics(
  query: jax.Array, reference: jax.Array, *, groups: int = 1
) -> dict[str, jax.Array]:
  """What a log says of a batch: how alike its pairs are, how hard it is.

  Args:
    query: [B, D].
    reference: [B, D].
    groups: see `pairs.group_rows`; pairs across groups do not count.

  Returns:
    Scalars without gradient: 'similarity/positive' and 'similarity/negative',
    the mean cosine of the right pairs and of the wrong ones;
    'similarity/hardest', the mean over the queries of the greatest cosine with a
    wrong reference, which mining is there to raise (-1 where a group has one
    row, and so no wrong reference).

  Raises:
    ValueError: the rows do not split into the groups.
  """
  cosine = jax.lax.stop_gradient(
    pairs.grouped_cosine(query, reference, groups=groups)
  )
  own = jnp.diagonal(cosine, axis1=1, axis2=2)  # [G, B / G]
  size = own.shape[1]
  others = (jnp.sum(cosine) - jnp.sum(own)) / max(1, own.size * (size - 1))
  wrong = ~jnp.eye(size, dtype=bool)[None]
  return {
    'similarity/positive': jnp.mean(own),
    'similarity/negative': others,
    'similarity/hardest': jnp.mean(
      jnp.max(cosine, axis=2, where=wrong, initial=-1.0)
    ),
  }


def _check_negatives(query: jax.Array, groups: int) -> None:
  if query.shape[0] < 2 * groups:
    raise ValueError(
      f'a batch of {query.shape[0]} in {groups} groups has groups without a '
      'negative; use a larger batch or fewer groups'
    )


# Losses of paired views by name: f(query, reference, *, alpha, groups).
LOSSES = {
  'weighted_tuple': weighted_tuple_loss,
  'soft_triplet': soft_triplet_loss,
}
