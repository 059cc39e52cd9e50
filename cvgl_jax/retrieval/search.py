"""Exact nearest neighbours of query features in a gallery.

Arrays in, arrays out: usable on any features, with or without the rest of this
project. Similarities are float32 at the highest matmul precision, because the
reduced precision that accelerators choose by default changes ranks.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Similarity = Literal['cosine', 'dot']
Ties = Literal['lower', 'higher']

# Norms beyond this overflow the float32 dot product of two features.
_MAX_NORM = 1e18


class TopK(NamedTuple):
  """The best gallery rows of every query.

  Attributes:
    scores: [Q, K] float32, descending.
    rows: [Q, K] int32, row numbers of the gallery.
  """

  scores: np.ndarray
  rows: np.ndarray


def top_k(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  k: int,
  similarity: Similarity = 'cosine',
  ties: Ties = 'lower',
  query_chunk: int = 1024,
  gallery_chunk: int = 16384,
) -> TopK:
  """The k most similar gallery rows of every query, exactly.

  The scores exist for one query chunk against one gallery chunk at a time, so
  memory beyond the features is about 4 * query_chunk * gallery_chunk bytes.

  Args:
    query: [Q, D] features, any float dtype; ranked in float32.
    gallery: [G, D] features.
    k: how many; more than G gives all G.
    similarity: 'cosine', or 'dot' for features that carry their own scale.
    ties: which of two equal scores comes first: the 'lower' or the 'higher'
      gallery row.
    query_chunk: queries per block.
    gallery_chunk: gallery rows per block.

  Returns:
    `TopK` with K = min(k, G).

  Raises:
    ValueError: k < 1, an empty side, different D, or features that cannot be
      ranked (see `prepare`).
  """
  if k < 1 or query_chunk < 1 or gallery_chunk < 1:
    raise ValueError(
      f'k={k}, query_chunk={query_chunk}, gallery_chunk={gallery_chunk}: '
      'all must be at least 1'
    )
  query, gallery = prepare_pair(query, gallery, similarity=similarity)
  size = len(gallery)
  k = min(k, size)
  # Ties are broken by position; backwards positions break them backwards.
  backwards = _is_backwards(ties)
  blocks = _blocks(gallery[::-1] if backwards else gallery, gallery_chunk)
  query_chunk = min(query_chunk, len(query))
  results = []
  for start in range(0, len(query), query_chunk):
    block = query[start : start + query_chunk]
    count = len(block)
    block = np.pad(block, [(0, query_chunk - count), (0, 0)])
    scores, rows = _search_block(block, blocks, size, k=k)
    results.append((scores[:count], rows[:count]))
  scores = np.concatenate([np.asarray(s) for s, _ in results])
  rows = np.concatenate([np.asarray(r) for _, r in results])
  return TopK(scores, size - 1 - rows if backwards else rows)


def top_k_scores(scores: np.ndarray, *, k: int, ties: Ties = 'lower') -> TopK:
  """`top_k` of given scores [Q, G], such as re-ranked ones."""
  scores = np.asarray(scores)
  if scores.ndim != 2 or not scores.size or k < 1:
    raise ValueError(f'scores of shape {scores.shape} with k={k}')
  backwards = _is_backwards(ties)
  ordered = scores[:, ::-1] if backwards else scores
  columns = np.argsort(-ordered, axis=1, kind='stable')[:, :k].astype(np.int32)
  best = np.take_along_axis(ordered, columns, axis=1).astype(np.float32)
  return TopK(best, scores.shape[1] - 1 - columns if backwards else columns)


def prepare(
  features: np.ndarray, name: str, *, similarity: Similarity = 'cosine'
) -> np.ndarray:
  """Checks features and brings them into the form that is ranked.

  Args:
    features: [N, D] float array.
    name: what they are, for messages ('query', 'gallery', a file).
    similarity: 'cosine' divides every row by its L2 norm.

  Returns:
    [N, D] float32.

  Raises:
    ValueError: not a matrix, no rows, NaN or infinite values, values too large
      for float32 products, or (cosine) zero rows; the message lists the rows.
  """
  if similarity not in ('cosine', 'dot'):
    raise ValueError(f"similarity {similarity!r}: expected 'cosine' or 'dot'")
  features = np.asarray(features)
  if features.ndim != 2:
    raise ValueError(
      f'{name}: features of shape {features.shape}, expected [rows, dimension]'
    )
  if not features.size:
    raise ValueError(f'{name}: features of shape {features.shape} are empty')
  norm = np.sqrt(np.einsum('nd,nd->n', features, features, dtype=np.float64))
  _refuse(~np.isfinite(norm), name, 'hold NaN or infinite values')
  _refuse(norm > _MAX_NORM, name, f'have a norm above {_MAX_NORM:g}')
  if similarity == 'dot':
    return features.astype(np.float32, copy=False)
  _refuse(norm == 0, name, 'are all zero, so they have no direction')
  # Divided in float64, without a float64 copy of all features.
  unit = np.empty(features.shape, np.float32)
  return np.divide(features, norm[:, None], out=unit, casting='same_kind')


def prepare_pair(
  query: np.ndarray, gallery: np.ndarray, *, similarity: Similarity
) -> tuple[np.ndarray, np.ndarray]:
  """`prepare` of both sides; their dimensions must agree."""
  query = prepare(query, 'query', similarity=similarity)
  gallery = prepare(gallery, 'gallery', similarity=similarity)
  if query.shape[1] != gallery.shape[1]:
    raise ValueError(
      f'query features have dimension {query.shape[1]}, gallery features '
      f'{gallery.shape[1]}; both must come from the same model'
    )
  return query, gallery


def similarity_matrix(query: jax.Array, gallery: jax.Array) -> jax.Array:
  """Dot products [Q, G] float32 of [Q, D] and [G, D], at full precision."""
  return jnp.einsum('qd,gd->qg', query, gallery, precision='highest')


def _refuse(bad: np.ndarray, name: str, what: str) -> None:
  rows = np.flatnonzero(bad)
  if len(rows):
    listed = ', '.join(map(str, rows[:5])) + (', ...' if len(rows) > 5 else '')
    raise ValueError(
      f'{name}: {len(rows)} of {len(bad)} feature rows {what} (rows {listed}); '
      'nothing is ranked on them'
    )


def _is_backwards(ties: Ties) -> bool:
  if ties not in ('lower', 'higher'):
    raise ValueError(f"ties {ties!r}: expected 'lower' or 'higher'")
  return ties == 'higher'


def _blocks(gallery: np.ndarray, chunk: int) -> np.ndarray:
  """[G, D] -> [C, chunk, D], zero rows at the end."""
  chunk = min(chunk, len(gallery))
  count = -(-len(gallery) // chunk)
  padded = np.pad(gallery, [(0, count * chunk - len(gallery)), (0, 0)])
  return padded.reshape(count, chunk, -1)


@functools.partial(jax.jit, static_argnames='k')
def _search_block(
  query: jax.Array, blocks: jax.Array, size: jax.Array, *, k: int
) -> tuple[jax.Array, jax.Array]:
  """Top k of one query block over all gallery blocks, by running merges.

  `top_k` keeps the lower position of equal scores; earlier blocks stand first
  in the merge, so the lower row wins over all blocks.
  """
  chunk = blocks.shape[1]

  def merge(best, item):
    index, block = item
    rows = index * chunk + jnp.arange(chunk, dtype=jnp.int32)
    scores = similarity_matrix(query, block)  # [q, chunk]
    scores = jnp.where(rows[None] < size, scores, -jnp.inf)
    scores, columns = jax.lax.top_k(scores, min(k, chunk))
    scores = jnp.concatenate([best[0], scores], axis=1)
    rows = jnp.concatenate([best[1], rows[columns]], axis=1)
    scores, columns = jax.lax.top_k(scores, k)
    return (scores, jnp.take_along_axis(rows, columns, axis=1)), None

  nothing = (
    jnp.full((len(query), k), -jnp.inf),
    jnp.full((len(query), k), -1, jnp.int32),
  )
  indices = jnp.arange(len(blocks), dtype=jnp.int32)
  best, _ = jax.lax.scan(merge, nothing, (indices, blocks))
  return best
