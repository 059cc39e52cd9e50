"""The neighbourhood graph of a set of features, and its Laplacian.

Two nodes are joined if each is among the other's kd nearest; the weight is a
power of their cosine. The Laplacian is normalised over the whole graph, before
anything is truncated, and kept in ELL form: kd columns a row.

Memory: the features, 8 * N * n_trunc bytes of neighbour lists, 8 * N * kd of
edges, and 100 MiB (3 GiB of an accelerator) of similarities; never N x N.

Source: PLCD (ZelongZeng/PLCD `diffusion/knn.py`, `diffusion/diffusion.py`),
after fyang93/diffusion. Differs: neighbours are exact at every N (the reference
searches approximately from 100,000 nodes on), and a node stands first in its
own list even where another node has the same features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import features as feature_rows
from cvgl_jax.retrieval import search

# Keeps the degree of an isolated node, and so its row, finite.
_DEGREE_OFFSET = 1e-12
# Comparisons of the mutual test that are held at a time.
_COMPARISONS = 2**22
# Similarities that the neighbour search holds at a time: 32 MiB on a CPU, 1 GiB
# on an accelerator.
_SIMILARITIES = 2**23
_DEVICE_SIMILARITIES = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
  """Neighbour lists, edges and Laplacian of N nodes, as NumPy arrays.

  The Laplacian is L = I - alpha D^-1/2 W D^-1/2. Row i of W and of the coupling
  alpha D^-1/2 W D^-1/2 has its columns in `neighbours[i, :kd]`; entries that are
  no edge are 0.

  Attributes:
    features: [N, D] float32 of unit norm.
    neighbours: [N, T] int32, nearest first; the node itself stands first.
    similarity: [N, T] float32 cosines of `neighbours`.
    affinity: [N, kd] float32, W.
    degree: [N] float64, row sums of W; 0 for an isolated node.
    coupling: [N, kd] float32.
  """

  features: np.ndarray
  neighbours: np.ndarray
  similarity: np.ndarray
  affinity: np.ndarray
  degree: np.ndarray
  coupling: np.ndarray

  def __len__(self) -> int:
    return len(self.neighbours)

  @property
  def kd(self) -> int:
    """Neighbours that decide edges, the node itself counted."""
    return self.affinity.shape[1]

  @property
  def n_trunc(self) -> int:
    """T, the length of a neighbour list."""
    return self.neighbours.shape[1]


def build(
  features: np.ndarray,
  *,
  kd: int,
  n_trunc: int,
  alpha: float = 0.99,
  gamma: int = 3,
  name: str = 'graph nodes',
) -> Graph:
  """The graph of features.

  Args:
    features: [N, D], any real dtype; compared by cosine.
    kd: neighbours that decide edges, the node itself counted.
    n_trunc: T, neighbours listed for each node.
    alpha: how much of the diffusion stays in the graph, in (0, 1).
    gamma: power of the cosine in the edge weights.
    name: what the features are, for messages.

  Raises:
    ValueError: not 1 <= kd <= n_trunc <= N, or features that cannot be ranked
      (NaN, infinite or zero rows).
  """
  unit = feature_rows.prepare(features, name, similarity='cosine')
  if not 1 <= kd <= n_trunc <= len(unit):
    raise ValueError(
      f'{name}: kd={kd}, n_trunc={n_trunc} with {len(unit)} nodes; diffusion '
      'needs 1 <= kd <= n_trunc <= nodes: lower kd and n_trunc'
    )
  listed = nearest(unit, k=n_trunc)
  return from_neighbours(unit, listed, kd=kd, alpha=alpha, gamma=gamma)


def from_neighbours(
  unit: np.ndarray, listed: search.TopK, *, kd: int, alpha: float, gamma: int
) -> Graph:
  """The graph of unit rows [N, D] whose `nearest` are known."""
  weight = affinity(listed, kd=kd, gamma=gamma)
  degree, coupling = couple(listed.rows[:, :kd], weight, alpha=alpha)
  return Graph(
    features=unit,
    neighbours=listed.rows,
    similarity=listed.scores,
    affinity=weight,
    degree=degree,
    coupling=coupling,
  )


def nearest(unit: np.ndarray, *, k: int) -> search.TopK:
  """The k nearest rows of every row of [N, D] float32; itself first.

  Differs from `search.top_k`: scores are plain float32 matrix products, not
  corrected to their last bit, which for a k of hundreds costs more than the
  products (the edge weights carry that rounding in the reference, too).

  Returns:
    `TopK` with scores and rows [N, k]. Equal scores: the lower row first, after
    the row itself.
  """
  size = len(unit)
  on_cpu = jax.default_backend() == 'cpu'
  step = max(1, (_SIMILARITIES if on_cpu else _DEVICE_SIMILARITIES) // size)
  step = min(step, size)
  gallery = jnp.asarray(unit)
  scores = np.empty((size, k), np.float32)
  rows = np.empty((size, k), np.int32)
  for start in range(0, size, step):
    # The last part is filled up with rows of the part before: one shape.
    part = slice(min(start, size - step), min(start, size - step) + step)
    if on_cpu:
      products = np.asarray(_products(gallery[part], gallery))
      scores[part], rows[part] = _best(products, k)
    else:
      scores[part], rows[part] = _best_on_device(gallery[part], gallery, k=k)
  _put_self_first(scores, rows, unit)
  return search.TopK(scores, rows)


_products = jax.jit(feature_rows.similarity_matrix)


@functools.partial(jax.jit, static_argnames='k')
def _best_on_device(query, gallery, *, k):
  return jax.lax.top_k(feature_rows.similarity_matrix(query, gallery), k)


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """`lax.top_k` of [q, N], three times as fast on a CPU for k of hundreds."""
  count, size = scores.shape
  bar = np.partition(scores, size - k, axis=1)[:, size - k, None]
  keep = scores >= bar
  # Ties at the bar: the lower rows stay.
  for i in np.flatnonzero(np.count_nonzero(keep, axis=1) > k):
    above = np.count_nonzero(scores[i] > bar[i])
    keep[i, np.flatnonzero(scores[i] == bar[i])[k - above :]] = False
  rows = np.flatnonzero(keep).reshape(count, k) % size
  found = np.take_along_axis(scores, rows, axis=1)
  order = np.argsort(-found, axis=1, kind='stable')
  return (
    np.take_along_axis(found, order, axis=1),
    np.take_along_axis(rows, order, axis=1),
  )


def _put_self_first(
  scores: np.ndarray, rows: np.ndarray, unit: np.ndarray
) -> None:
  """Moves every row to the front of its own list, in place."""
  # Only rows that share their features, or nearly so, can stand elsewhere.
  for i in np.flatnonzero(rows[:, 0] != np.arange(len(rows))):
    place = np.flatnonzero(rows[i] == i)
    end = place[0] if len(place) else rows.shape[1] - 1
    own = scores[i, end] if len(place) else unit[i] @ unit[i]
    rows[i, 1 : end + 1] = rows[i, :end].copy()
    scores[i, 1 : end + 1] = scores[i, :end].copy()
    rows[i, 0], scores[i, 0] = i, own


def affinity(listed: search.TopK, *, kd: int, gamma: int = 3) -> np.ndarray:
  """Edge weights [N, kd] float32 of neighbour lists.

  w_ij = max(s_ij, 0)^gamma if i and j are in each other's kd nearest and i != j;
  else 0. The node itself counts as one of the kd.
  """
  rows = listed.rows[:, :kd]
  size = len(rows)
  mutual = np.empty(rows.shape, bool)
  step = max(1, _COMPARISONS // kd**2)
  for start in range(0, size, step):
    part = slice(start, min(start + step, size))
    node = np.arange(part.start, part.stop, dtype=rows.dtype)
    mutual[part] = (rows[rows[part]] == node[:, None, None]).any(axis=2)
  mutual &= rows != np.arange(size)[:, None]
  weight = np.maximum(listed.scores[:, :kd], 0) ** gamma
  return np.where(mutual, weight, 0).astype(np.float32)


def couple(
  neighbours: np.ndarray, weight: np.ndarray, *, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
  """(degree [N] float64, coupling [N, kd] float32) of edge weights.

  With d_i = sum_j w_ij + 1e-12 (float64), S_ij = d_i^-1/2 w_ij d_j^-1/2
  (float32): the coupling is alpha * S.
  """
  degree = weight.sum(axis=1, dtype=np.float64)
  scale = (degree + _DEGREE_OFFSET) ** -0.5
  transition = scale[:, None] * weight * scale[neighbours]
  return degree, np.float32(alpha) * transition.astype(np.float32)


def check_nodes(nodes: np.ndarray | None, size: int) -> np.ndarray:
  """Node numbers [M] int64: given ones, ascending and once each; else all.

  Raises:
    ValueError: numbers outside the graph, or none at all.
  """
  if nodes is None:
    return np.arange(size)
  nodes = np.unique(nodes)
  if not len(nodes) or nodes.dtype.kind not in 'iu':
    raise ValueError(f'nodes: expected node numbers, got {nodes!r}')
  if nodes[0] < 0 or nodes[-1] >= size:
    raise ValueError(
      f'nodes from {nodes[0]} to {nodes[-1]}: expected numbers in [0, {size})'
    )
  return nodes.astype(np.int64)
