"""Re-ranking by the neighbourhoods of queries and gallery, or by pair scores.

`gnn` and `k_reciprocal` score every gallery entry. They are dense: they hold a
few matrices of (Q + G)^2 float32 and refuse, with the number of bytes, when
that cannot fit; `rerank_sparse` scores the candidates of a first search
instead, without such a matrix.

`rerank_candidates` puts the candidates of a first search into the order of new
scores, whatever gave them: `rerank_sparse`, or a matching network.

Sources: layumi/University1652-Baseline `GPU-Re-Ranking/` (graph neural network
form, Zhang et al. 2020); layumi/University1652-triplet-loss `re_ranking.py`
(k-reciprocal encoding, Zhong et al. 2017).
"""

import functools
import os
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import features, search

Fusion = Literal['replace', 'sum']


def gnn(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  k1: int = 26,
  k2: int = 7,
  original_weight: float = 0.0,
) -> np.ndarray:
  """Similarities after two rounds of feature propagation.

  With X the n = Q + G unit features, C = X X^T, N(i) the k1 nearest of i and
  T_ij = C_ij^2: A_ij = 1 for j in N(i), else 0; then twice, unless k2 = 1,

    A <- A + A^T;  A_i <- sum_{t <= k2} T_{i,t} A_{N_t(i)};  A_i <- A_i / |A_i|

  and the similarity of a query and a gallery entry is A_q . A_g.

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    k1: size of the neighbourhoods, the entry itself included; at most n.
    k2: neighbours that are propagated, at most k1.
    original_weight: w of (1 - w) * similarity + w * cosine.

  Returns:
    [Q, G] float32, the higher the better; exactly 0 (so, tied) where two
    neighbourhoods do not meet.

  Raises:
    ValueError: k1 or k2 out of range, too little memory, or features that
      cannot be ranked (see `features.prepare`).

  Source: `gnn_reranking.py` and its CUDA kernels; `original_weight` is the
    variant of layumi/Person_reID_baseline_pytorch (0.3 there).
  """
  joint = _joint_features(query, gallery, k1=k1, k2=k2, matrices=3)
  size = len(joint)
  return np.asarray(
    _gnn(
      joint,
      original_weight,
      num_queries=len(query),
      k1=min(k1, size),
      k2=min(k2, size),
    )
  )


def k_reciprocal(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  k1: int = 20,
  k2: int = 6,
  original_weight: float = 0.3,
  square: bool = False,
) -> np.ndarray:
  """Distances blended with the Jaccard distance of reciprocal neighbourhoods.

  D_ij = (2 - 2 cos_ij) / max_l D_il; R(i, k) = the j among the first k + 1 of i
  that have i among their first k + 1; R*(i) = R(i, k1) and all R(j, k1 / 2),
  j in R(i, k1), of which more than two thirds lie in R(i, k1);
  V_ij = exp(-D_ij) on R*(i), rows summing to 1, then averaged over the first
  k2 neighbours; J_ij = 1 - M / (2 - M) with M = sum_l min(V_il, V_jl).

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    k1: size of the neighbourhoods.
    k2: neighbours that are averaged; 1 averages nothing.
    original_weight: w of (1 - w) * J + w * D.
    square: use (2 - 2 cos)^2 (layumi/Person_reID_baseline_pytorch).

  Returns:
    [Q, G] float32, the lower the better.

  Raises:
    ValueError: as `gnn`.

  Differs: neighbours are listed by cosine, so that rounding in D makes no ties.
    An entry with so many equals that its own list misses it may have an empty
    R*: its V is 0 (J = 1), where the published code divides by zero.
  """
  joint = _joint_features(query, gallery, k1=k1, k2=k2, matrices=4)
  size = len(joint)
  return np.asarray(
    _k_reciprocal(
      joint,
      original_weight,
      num_queries=len(query),
      k1=min(k1, size - 1),
      k2=min(k2, size),
      square=square,
    )
  )


def rerank_candidates(
  top: search.TopK,
  scores: np.ndarray,
  *,
  fusion: Fusion = 'replace',
  weight: float = 0.0,
) -> search.TopK:
  """Puts the first candidates of every query into the order of new scores.

  The first K candidates are sorted by `scores` ('replace'), or by
  `scores + weight * top.scores` ('sum'); those after them stay where they are.

  Args:
    top: [Q, T] the candidates of a first search, best first.
    scores: [Q, K] of the first K <= T candidates, the higher the better: match
      probabilities (the mean over a video's frames, K = 32), or the similarity
      or negative distance of `rerank_sparse`.
    fusion: 'replace' or 'sum'.
    weight: of the first search's scores in the sum; 0 is 'replace'.

  Returns:
    `TopK`, [Q, T]. Equal scores keep the order of the first search. Scores
    descend over the first K (new ones) and over the others (old ones); the two
    are not comparable.

  Raises:
    ValueError: shapes that do not fit, NaN, unknown fusion, or a weight with
      'replace'.

  Source: HaoDot/Video2BEV-Open, `evaluate_root` of the second stage (topk 32,
    replace).
  """
  scores = np.asarray(scores)
  rows = np.asarray(top.rows)
  if scores.ndim != 2 or len(scores) != len(rows):
    raise ValueError(
      f'scores of shape {scores.shape} for candidates of shape {rows.shape}; '
      'expected [queries, candidates], one row a query'
    )
  count = scores.shape[1]
  if not 1 <= count <= rows.shape[1]:
    raise ValueError(
      f'{count} scores a query for {rows.shape[1]} candidates; search with '
      f'k >= {count}'
    )
  if np.isnan(scores).any():
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    raise ValueError(
      f'scores of {len(bad)} queries hold NaN (first: query {bad[0]})'
    )
  if fusion not in ('replace', 'sum'):
    raise ValueError(f"fusion {fusion!r}: expected 'replace' or 'sum'")
  if fusion == 'replace' and weight:
    raise ValueError(f"weight={weight} has no effect with fusion='replace'")
  first = np.asarray(top.scores, np.float32)
  new = scores.astype(np.float32)
  if fusion == 'sum':
    new = new + np.float32(weight) * first[:, :count]
  order = np.argsort(-new, axis=1, kind='stable')
  take = functools.partial(np.take_along_axis, indices=order, axis=1)
  return search.TopK(
    np.concatenate([take(new), first[:, count:]], axis=1),
    np.concatenate([take(rows[:, :count]), rows[:, count:]], axis=1),
  )


def _joint_features(query, gallery, *, k1, k2, matrices) -> np.ndarray:
  if not 1 <= k2 <= k1:
    raise ValueError(f'k1={k1}, k2={k2}: expected 1 <= k2 <= k1')
  query, gallery = features.prepare_pair(query, gallery, similarity='cosine')
  size = len(query) + len(gallery)
  needed, available = matrices * 4 * size**2, _memory_bytes()
  if needed > available:
    raise ValueError(
      f're-ranking {len(query)} queries with {len(gallery)} gallery entries '
      f'needs {needed / 2**30:.0f} GiB, of which there are '
      f'{available / 2**30:.0f}; score the candidates of a first search only '
      '(cvgl_jax.retrieval.rerank_sparse)'
    )
  return np.concatenate([query, gallery])


def _memory_bytes() -> int:
  """Memory of the device that computes; the host's for a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


@functools.partial(jax.jit, static_argnames=('num_queries', 'k1', 'k2'))
def _gnn(joint, original_weight, *, num_queries, k1, k2) -> jax.Array:
  cosine = features.similarity_matrix(joint, joint)  # [N, N]
  nearest, neighbours = jax.lax.top_k(cosine, k1)  # [N, k1]
  weights = nearest**2
  rows = jnp.arange(len(joint))
  graph = jnp.zeros_like(cosine).at[rows[:, None], neighbours].set(1.0)
  if k2 != 1:
    for _ in range(2):
      graph = graph + graph.T
      graph = _gather_sum(graph, neighbours[:, :k2], weights[:, :k2])
      graph /= jnp.linalg.norm(graph, axis=1, keepdims=True)
  similarity = features.similarity_matrix(
    graph[:num_queries], graph[num_queries:]
  )
  original = cosine[:num_queries, num_queries:]
  return (1 - original_weight) * similarity + original_weight * original


def _gather_sum(
  matrix: jax.Array, rows: jax.Array, weights: jax.Array
) -> jax.Array:
  """sum_t weights[i, t] * matrix[rows[i, t]], one t at a time: [N, M]."""

  def add(t, total):
    return total + weights[:, t, None] * matrix[rows[:, t]]

  return jax.lax.fori_loop(0, rows.shape[1], add, jnp.zeros_like(matrix))


@functools.partial(
  jax.jit, static_argnames=('num_queries', 'k1', 'k2', 'square')
)
def _k_reciprocal(
  joint, original_weight, *, num_queries, k1, k2, square
) -> jax.Array:
  size = len(joint)
  cosine = features.similarity_matrix(joint, joint)  # [N, N]
  _, order = jax.lax.top_k(cosine, max(k1 + 1, k2))  # [N, K]
  distance = 2 - 2 * cosine
  distance = distance**2 if square else distance
  # A row of equal features has no distance to divide by.
  largest = distance.max(axis=1, keepdims=True)
  distance = distance / jnp.where(largest > 0, largest, 1.0)
  half = round(k1 / 2)  # halves to the even number, as np.around
  wide = order[:, : k1 + 1]
  wide_mutual = _mutual(wide)
  narrow = order[:, : half + 1]
  narrow_mutual = _mutual(narrow)

  def encode(row):
    near, is_near = wide[row], wide_mutual[row]  # [k1 + 1]
    far, is_far = narrow[near], narrow_mutual[near]  # [k1 + 1, half + 1]
    shared = (far[:, :, None] == near[None, None]) & is_near[None, None]
    shared = (shared.any(axis=2) & is_far).sum(axis=1)
    # In integers, so that a share of exactly two thirds is no matter of
    # rounding.
    joins = is_near & (3 * shared > 2 * is_far.sum(axis=1))
    member = jnp.zeros(size, bool).at[near].max(is_near)
    member = member.at[far].max(is_far & joins[:, None])
    weight = jnp.where(member, jnp.exp(-distance[row]), 0.0)
    total = weight.sum()
    return weight / jnp.where(total > 0, total, 1.0)

  code = jax.lax.map(encode, jnp.arange(size), batch_size=64)  # [N, N]
  if k2 != 1:
    code = _gather_sum(code, order[:, :k2], jnp.full((size, k2), 1 / k2))
  # Rows are zero but for so many entries.
  nonzero = min(size, (k1 + 1) * (half + 2) * k2)
  gallery_code = code[num_queries:].T  # [N, G]

  def jaccard(row):
    value, column = jax.lax.top_k(row, nonzero)
    shared = jnp.minimum(gallery_code[column], value[:, None]).sum(axis=0)
    return 1 - shared / (2 - shared)

  jaccard_distance = jax.lax.map(jaccard, code[:num_queries])  # [Q, G]
  original = distance[:num_queries, num_queries:]
  return (1 - original_weight) * jaccard_distance + original_weight * original


def _mutual(order: jax.Array) -> jax.Array:
  """[N, K] bool: whether i stands in the list of its neighbour order[i, k]."""

  def row(index):
    return (order[order[index]] == index).any(axis=1)

  return jax.lax.map(row, jnp.arange(len(order)), batch_size=1024)
