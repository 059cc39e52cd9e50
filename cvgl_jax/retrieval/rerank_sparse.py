"""Re-ranking of the candidates of a first search, at any size.

The scores are those of `rerank.gnn` and `rerank.k_reciprocal`, but only for
chosen pairs of a query and a gallery entry, and without a matrix of
(Q + G)^2 entries: neighbourhoods are short lists, so both methods are a few
products of sparse matrices. Nothing in them is approximated; what is cut off is
only which gallery entries get a score:

  near = rerank_sparse.neighbours(query, gallery, k=27)
  top = search.top_k(query, gallery, k=100)
  scores = rerank_sparse.gnn(near, top.rows)
  best = rerank.rerank_candidates(top, scores)

An entry that is no candidate keeps its place behind the candidates, even where
the dense form would lift it: take as many candidates as the metrics reach.

The searches run jitted on the device; the sparse products, whose sizes depend
on the data, run on the host (SciPy, which comes with JAX).

Sources: see `rerank`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from cvgl_jax.retrieval import features, search

# Pairs of features whose products are computed at a time.
_PAIRS = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
  """The nearest of all queries and gallery entries among themselves.

  With N = Q + G it holds 4 * N * D + 8 * N * k bytes. One object serves several
  settings of k1 and k2.

  Attributes:
    features: [N, D] float32 of unit norm, queries first.
    num_queries: Q.
    nearest: [N, k] the nearest of every row, normally itself first.
    search_options: of `search.top_k`, for the search of `lowest`.
  """

  features: np.ndarray
  num_queries: int
  nearest: search.TopK
  search_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def lowest(self) -> np.ndarray:
    """[N] the lowest cosine of every row with any other: a second search."""
    found = search.top_k(
      -self.features,
      self.features,
      k=1,
      similarity='dot',
      **self.search_options,
    )
    return -found.scores[:, 0]


def neighbours(
  query: np.ndarray, gallery: np.ndarray, *, k: int, **search_options
) -> Neighbours:
  """Searches all queries and gallery entries among themselves.

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    k: neighbours that are kept, the entry itself included: at least k1 for
      `gnn`, k1 + 1 for `k_reciprocal`.
    **search_options: of `search.top_k`, such as `gallery_chunk`.

  Raises:
    ValueError: features that cannot be ranked; see `features.prepare`.
  """
  query, gallery = features.prepare_pair(query, gallery, similarity='cosine')
  joint = np.concatenate([query, gallery])
  nearest = search.top_k(joint, joint, k=k, similarity='dot', **search_options)
  return Neighbours(joint, len(query), nearest, search_options)


def gnn(
  near: Neighbours,
  candidates: np.ndarray,
  *,
  k1: int = 26,
  k2: int = 7,
  original_weight: float = 0.0,
  query_chunk: int = 256,
) -> np.ndarray:
  """`rerank.gnn` for the candidates of every query.

  The graph after the first round is kept whole, that after the second only for
  `query_chunk` queries and their candidates: R different rows at a time. With
  m1 and m2 entries in a row of either, on average, the peak is about
  40 * N * m1 + 32 * R * m2 bytes. A row of the first holds at most the sum over
  t <= k2 of k1 + (how many rows list N_t(i)) entries; measured at k1 = 26,
  k2 = 7: m1 = 70 and m2 = 350 for places of 20 pictures, 190 and 1,840 for
  random features.

  Args:
    near: with at least k1 neighbours (or all entries).
    candidates: [Q, K] gallery rows.
    k1: see `rerank.gnn`.
    k2: see `rerank.gnn`.
    original_weight: see `rerank.gnn`.
    query_chunk: queries whose candidates are propagated together.

  Returns:
    [Q, K] float32, the higher the better: `rerank.gnn` at the candidates.

  Raises:
    ValueError: k1, k2, query_chunk or candidates out of range, too few
      neighbours.
  """
  candidates = _check(near, candidates, k1=k1, k2=k2, needed=k1)
  if query_chunk < 1:
    raise ValueError(f'query_chunk={query_chunk}: expected at least 1')
  rows, cosines = near.nearest.rows[:, :k1], near.nearest.scores[:, :k2]
  graph = _rows_to_matrix(rows, np.ones(rows.shape, np.float32))
  if k2 == 1:
    rows_of = lambda needed: graph[needed]
  else:
    spread = _rows_to_matrix(rows[:, :k2], cosines**2)
    graph = _unit(spread @ (graph + graph.T))
    graph = (graph + graph.T).tocsr()
    rows_of = lambda needed: _unit(spread[needed] @ graph)
  scores = np.empty(candidates.shape, np.float32)
  for start in range(0, len(candidates), query_chunk):
    chunk = slice(start, start + query_chunk)
    needed, position = np.unique(candidates[chunk], return_inverse=True)
    scores[chunk] = _compare(
      rows_of(np.arange(start, min(start + query_chunk, len(candidates)))),
      rows_of(near.num_queries + needed),
      position.reshape(candidates[chunk].shape),
      np.multiply,
    )
  if original_weight:
    original = _candidate_cosines(near, candidates)
    scores = (1 - original_weight) * scores + original_weight * original
  return scores.astype(np.float32)


def k_reciprocal(
  near: Neighbours,
  candidates: np.ndarray,
  *,
  k1: int = 20,
  k2: int = 6,
  original_weight: float = 0.3,
  square: bool = False,
) -> np.ndarray:
  """`rerank.k_reciprocal` for the candidates of every query.

  The largest distance of a row, which D is divided by, is that over all
  entries, by a search of its own (`Neighbours.lowest`). The peak is about
  16 * N * (k1 + 1)^2 bytes, while neighbourhoods are compared; a row of V has
  25 (places of 20 pictures) to 100 (random features) entries at k1 = 20, k2 = 6.

  Args:
    near: with at least k1 + 1 neighbours (or all entries).
    candidates: [Q, K] gallery rows.
    k1: see `rerank.k_reciprocal`.
    k2: see `rerank.k_reciprocal`.
    original_weight: see `rerank.k_reciprocal`.
    square: see `rerank.k_reciprocal`.

  Returns:
    [Q, K] float32, the lower the better: `rerank.k_reciprocal` at the
    candidates.

  Raises:
    ValueError: k1, k2 or candidates out of range, too few neighbours.
  """
  candidates = _check(near, candidates, k1=k1, k2=k2, needed=k1 + 1)
  size = len(near.features)
  k1, k2 = min(k1, size - 1), min(k2, size)
  order = near.nearest.rows
  wide = _mutual(order[:, : k1 + 1])  # R(i, k1), symmetric
  # Halves to the even number, as np.around.
  narrow = _mutual(order[:, : round(k1 / 2) + 1])  # R(j, k1 / 2), symmetric
  shared = wide.multiply(wide @ narrow).tocsr()  # |R(i, k1) n R(j, k1 / 2)|
  # In integers, so that a share of exactly two thirds is no matter of rounding.
  joins = 3 * shared.data > 2 * np.diff(narrow.indptr)[shared.indices]
  shared.data = joins.astype(np.int32)
  shared.eliminate_zeros()
  code = (wide + shared @ narrow).tocsr()
  code.data = np.exp(-_distances(near, code, square=square))
  code = _unit(code, power=1)
  if k2 != 1:
    mean = np.full((size, k2), 1 / k2, np.float32)
    code = (_rows_to_matrix(order[:, :k2], mean) @ code).tocsr()
  shared = _compare(
    code[: near.num_queries],
    code[near.num_queries :],
    candidates,
    np.minimum,
  )
  jaccard = 1 - shared / (2 - shared)
  original = _scaled_distance(
    _candidate_cosines(near, candidates),
    near.lowest[: near.num_queries, None],
    square=square,
  )
  final = (1 - original_weight) * jaccard + original_weight * original
  return final.astype(np.float32)


def _check(near, candidates, *, k1, k2, needed) -> np.ndarray:
  candidates = np.asarray(candidates)
  size, kept = len(near.features), near.nearest.rows.shape[1]
  num_gallery = size - near.num_queries
  if not 1 <= k2 <= k1:
    raise ValueError(f'k1={k1}, k2={k2}: expected 1 <= k2 <= k1')
  if kept < min(needed, size):
    raise ValueError(
      f'k1={k1} needs {needed} neighbours of every entry, of which there are '
      f'{kept}; call neighbours(..., k={needed})'
    )
  if (
    candidates.ndim != 2
    or len(candidates) != near.num_queries
    or not np.issubdtype(candidates.dtype, np.integer)
  ):
    raise ValueError(
      f'candidates: {candidates.dtype} of shape {candidates.shape}, expected '
      f'integers of shape [{near.num_queries}, k]'
    )
  outside = (candidates < 0) | (candidates >= num_gallery)
  if outside.any():
    raise ValueError(
      f'candidates: row {candidates[outside][0]} is not one of the '
      f'{num_gallery} gallery rows'
    )
  return candidates


def _rows_to_matrix(
  columns: np.ndarray, values: np.ndarray
) -> scipy.sparse.csr_array:
  """[N, N] with values[i, t] at (i, columns[i, t])."""
  size, count = columns.shape
  starts = np.arange(0, size * count + 1, count)
  return scipy.sparse.csr_array(
    (values.ravel(), columns.ravel(), starts), shape=(size, size)
  )


def _mutual(order: np.ndarray) -> scipy.sparse.csr_array:
  """[N, N] int32: 1 where two rows stand in each other's lists."""
  listed = _rows_to_matrix(order, np.ones(order.shape, np.int32))
  return listed.multiply(listed.T).tocsr()


def _row_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Sums of values[starts[i] : starts[i + 1]], in float64."""
  total = np.zeros(len(values) + 1)
  np.cumsum(values, out=total[1:])
  return total[starts[1:]] - total[starts[:-1]]


def _unit(
  matrix: scipy.sparse.csr_array, power: int = 2
) -> scipy.sparse.csr_array:
  """Divides rows of nonnegative entries by their L1 or L2 norm, in place."""
  norm = _row_sums(matrix.data**power, matrix.indptr) ** (1 / power)
  norm = np.where(norm > 0, norm, 1).astype(np.float32)
  matrix.data /= np.repeat(norm, np.diff(matrix.indptr))
  return matrix


def _compare(
  query: scipy.sparse.csr_array,
  gallery: scipy.sparse.csr_array,
  candidates: np.ndarray,
  combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
  """sum_l combine(query[i, l], gallery[candidates[i, j], l]): [Q, K].

  `combine` is zero where one of its arguments is.
  """
  dense = np.zeros(query.shape[1], np.float32)
  sums = np.empty(candidates.shape)
  for i, rows in enumerate(candidates):
    own = slice(query.indptr[i], query.indptr[i + 1])
    dense[query.indices[own]] = query.data[own]
    part = gallery[rows]
    sums[i] = _row_sums(combine(dense[part.indices], part.data), part.indptr)
    dense[query.indices[own]] = 0
  return sums


def _candidate_cosines(near: Neighbours, candidates: np.ndarray) -> np.ndarray:
  """[Q, K] cosines of queries and candidates."""
  rows = np.repeat(np.arange(near.num_queries), candidates.shape[1])
  columns = near.num_queries + candidates.ravel()
  return _cosines(near.features, rows, columns).reshape(candidates.shape)


def _cosines(
  unit: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """[P] dot products of the rows and columns of [N, D]."""
  found = np.empty(len(rows), np.float32)
  for start in range(0, len(rows), _PAIRS):
    part = slice(start, start + _PAIRS)
    found[part] = np.einsum('pd,pd->p', unit[rows[part]], unit[columns[part]])
  return found


def _scaled_distance(
  cosine: np.ndarray, lowest: np.ndarray, *, square: bool
) -> np.ndarray:
  """D, float32; `lowest` is the lowest cosine of the row."""
  power = 2 if square else 1
  largest = (2 - 2 * lowest) ** power
  # A row of equal features has no distance to divide by.
  return (2 - 2 * cosine) ** power / np.where(largest > 0, largest, 1)


def _distances(
  near: Neighbours, matrix: scipy.sparse.csr_array, *, square: bool
) -> np.ndarray:
  """D of every entry that a sparse matrix has, in the order of its data."""
  rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
  cosine = _cosines(near.features, rows, matrix.indices)
  return _scaled_distance(cosine, near.lowest[rows], square=square)
