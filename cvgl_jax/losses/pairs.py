"""What the losses share: unit vectors, pair masks, masked log-sum-exp.

Everything here is safe at the points where the plain formula has no
derivative: a zero vector, two equal embeddings, an empty set. There the value
is finite and the gradient is exactly zero.
"""

import einops
import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
  """bfloat16 and float16 become float32; wider floats stay."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def safe_sqrt(x: jax.Array) -> jax.Array:
  """sqrt(max(x, 0)) with gradient 0, not infinity, where x <= 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def l2_normalize(x: jax.Array, *, axis: int = -1) -> jax.Array:
  """x / |x| along `axis`, without an epsilon; a zero vector stays zero."""
  x = at_least_float32(x)
  # The largest entry is taken out first: squares of small floats underflow.
  peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
  x = x / jnp.where(peak > 0, peak, 1.0)
  norm = safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))
  return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Cosine similarity of every row of a [B, D] with every row of b [N, D].

  Returns:
    [B, N] float32 or wider.
  """
  return jnp.einsum(
    'id,jd->ij', l2_normalize(a), l2_normalize(b), precision='highest'
  )


def group_rows(x: jax.Array, groups: int) -> jax.Array:
  """[B, ...] -> [G, B / G, ...]: group g is the rows g, g + G, g + 2 G, ...

  That is how `groups` torch processes share out a batch, each of which knows
  the negatives of its own rows only.

  Raises:
    ValueError: B is not divisible by `groups`.
  """
  if groups < 1 or x.shape[0] % groups:
    raise ValueError(
      f'a batch of {x.shape[0]} does not split into {groups} groups'
    )
  return einops.rearrange(x, '(b g) ... -> g b ...', g=groups)


def grouped_cosine(
  query: jax.Array, reference: jax.Array, *, groups: int = 1
) -> jax.Array:
  """Cosines of row i of the query with row j of the reference, by group.

  Args:
    query: [B, D].
    reference: [B, D]; row i shows the place of row i of the query.
    groups: see `group_rows`.

  Returns:
    [G, B / G, B / G] float32 or wider, the right pairs on the diagonals.

  Raises:
    ValueError: the shapes differ, or B is not divisible by `groups`.
  """
  if query.shape != reference.shape or query.ndim != 2:
    raise ValueError(
      f'query {query.shape} and reference {reference.shape}: expected two equal '
      'shapes [B, D]'
    )
  return jnp.einsum(
    'gid,gjd->gij',
    group_rows(l2_normalize(query), groups),
    group_rows(l2_normalize(reference), groups),
    precision='highest',
  )


def distance(x: jax.Array) -> jax.Array:
  """Euclidean distances of the unit vectors of x [B, D] -> [B, B].

  Built from differences, not from sqrt(2 - 2 cosine), which loses half of the
  digits of a small distance; a few anchors at a time, so that [B, B, D] is
  never stored for a large batch.
  """
  return _distance_of_rows(l2_normalize(x))


def rows_at_once(elements_per_row: int) -> int:
  """How many anchors to process together, for 16 MiB of float32 or less."""
  return max(1, 2**22 // max(1, elements_per_row))


@jax.custom_vjp
def _distance_of_rows(z: jax.Array) -> jax.Array:
  """Euclidean distances of the rows of z [B, D] -> [B, B]."""
  return jax.lax.map(
    lambda row: jnp.sqrt(jnp.sum(jnp.square(row[None] - z), axis=-1)),
    z,
    batch_size=rows_at_once(z.size),
  )


def _distance_forward(z):
  distance = _distance_of_rows(z)
  return distance, (z, distance)


def _distance_backward(residuals, grad):
  z, distance = residuals
  apart = distance > 0  # no derivative between equal rows: 0
  pull = jnp.where(apart, grad + grad.T, 0.0) / jnp.where(apart, distance, 1.0)
  others = jnp.einsum('ij,jd->id', pull, z, precision='highest')
  return (jnp.sum(pull, axis=1)[:, None] * z - others,)


_distance_of_rows.defvjp(_distance_forward, _distance_backward)


def masks(label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Masks [B, B] of ordered pairs: same label (i != j), different label."""
  same = label[:, None] == label[None]
  return same & ~jnp.eye(label.shape[0], dtype=bool), ~same


def masked_logsumexp(
  x: jax.Array, mask: jax.Array, *, axis: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """log of the sum of exp(x) where `mask` holds.

  Returns:
    (value, any): the value along `axis` (0 where the set is empty, with zero
    gradient) and whether the set had an entry.
  """
  present = jnp.any(mask, axis=axis)
  low = jnp.finfo(x.dtype).min
  peak = jnp.max(jnp.where(mask, x, low), axis=axis, keepdims=True)
  peak = jax.lax.stop_gradient(jnp.where(peak > low, peak, 0.0))
  terms = jnp.where(mask, jnp.exp(jnp.where(mask, x - peak, 0.0)), 0.0)
  total = jnp.sum(terms, axis=axis)
  peak = peak.reshape(total.shape)
  value = jnp.log(jnp.where(present, total, 1.0)) + jnp.where(
    present, peak, 0.0
  )
  return value, present


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of x where `mask` holds; 0 with zero gradient if it never does."""
  count = jnp.sum(mask)
  total = jnp.sum(jnp.where(mask, x, 0.0))
  return total / jnp.maximum(count, 1).astype(x.dtype)
