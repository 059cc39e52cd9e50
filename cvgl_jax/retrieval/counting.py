"""How many scores stand before a positive's: the arithmetic of `ranks`.

Scores come as blocks [q, b] of gallery rows and stay where they are: on the
devices, split over a mesh or not, or in the host's memory. Nothing is sorted
but, on the host, the values of one query at a time.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax import sharding
from cvgl_jax.retrieval import features, metrics


@functools.partial(jax.jit, static_argnames='mesh')
def score(
  query: jax.Array, block: jax.Array, *, mesh: jax.sharding.Mesh | None = None
) -> jax.Array:
  """Scores [q, b] of [q, D] and [b, D], split over the mesh like the block.

  One program for all blocks, and blocks of one shape: so equal features get
  equal scores, whichever block they are in.
  """
  run = _by_shard(features.similarity_matrix, mesh, 'qb', out='s')
  return run(query, block)


@functools.partial(jax.jit, static_argnames=('num_positives', 'ties', 'mesh'))
def on_device(
  scores: Sequence[jax.Array],
  keep: Sequence[jax.Array],
  rows: jax.Array,
  own: jax.Array | None,
  start: jax.Array,
  *,
  num_positives: int,
  ties: metrics.Ties,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Counts what stands before each positive.

  Args:
    scores: blocks [q, b] of consecutive gallery rows, split over the mesh.
    keep: bool [b] for each, the rows that count.
    rows: [q, L] gallery rows, the positives first; -1 fills.
    own: [q, L] their scores; None takes them from `scores`, which then are of
      the whole gallery.
    start: gallery row of the first column.
    num_positives: P.
    ties: see `ranks.rank_of_positive`.
    mesh: of `scores`.

  Returns:
    Counts [q, P] int32 and `own`; meaningless at fills.
  """
  if own is None:
    picked = [
      _pick(block, rows, start + i * block.shape[1], mesh=mesh)
      for i, block in enumerate(scores)
    ]
    own = functools.reduce(jnp.add, picked)
  positives = rows[:, :num_positives], own[:, :num_positives]
  counts = [
    _count(block, kept, *positives, start + i * block.shape[1], ties, mesh)
    for i, (block, kept) in enumerate(zip(scores, keep, strict=True))
  ]
  return functools.reduce(jnp.add, counts), own


def on_host(
  scores: Sequence[np.ndarray],
  keep: Sequence[np.ndarray],
  rows: np.ndarray,
  own: np.ndarray | None,
  start: int,
  *,
  num_positives: int,
  ties: metrics.Ties,
) -> tuple[np.ndarray, np.ndarray]:
  """`on_device` by sorting each query's scores: faster for many positives.

  Only values are sorted, which NumPy does several times faster than indices;
  the rows of the few entries that tie are looked at one by one.
  """
  scores = [np.asarray(block) for block in scores]
  keep = np.concatenate([np.asarray(block) for block in keep])
  columns = start + np.flatnonzero(keep)
  # A slice is no copy; junk is rare, rows that only fill up stand at the end.
  keep = slice(len(columns)) if keep[: len(columns)].all() else keep
  found = np.zeros(rows.shape, scores[0].dtype) if own is None else own
  counts = np.zeros((len(rows), num_positives), np.int32)
  for query in np.flatnonzero((rows >= 0).any(axis=1)):
    row = np.concatenate([block[query] for block in scores])
    if own is None:
      found[query] = row[rows[query] - start]
    counts[query] = _ahead_in_row(
      row[keep],
      columns,
      rows[query, :num_positives],
      found[query, :num_positives],
      ties,
    )
  return counts, found


def standing_before(
  positives: np.ndarray,
  scores: np.ndarray,
  rows: np.ndarray,
  row_scores: np.ndarray,
  *,
  ties: metrics.Ties,
) -> np.ndarray:
  """How many of some rows stand before each positive.

  Args:
    positives: [Q, P] rows of the gallery, -1 fills.
    scores: [Q, P] their scores.
    rows: [Q, W] rows of the gallery, -1 fills.
    row_scores: [Q, W] their scores.
    ties: see `ranks.rank_of_positive`.

  Returns:
    [Q, P] int32; meaningless at fills.
  """
  before = np.zeros(positives.shape, np.int32)
  for p in range(positives.shape[1]):
    row, own = positives[:, p, None], scores[:, p, None]
    ahead = row_scores > own
    if ties != 'optimistic':
      first = rows < row if ties == 'lower' else rows > row
      ahead |= (row_scores == own) & first
    before[:, p] = (ahead & (rows >= 0)).sum(axis=1)
  return before


def _ahead_in_row(
  scores: np.ndarray,
  columns: np.ndarray,
  rows: np.ndarray,
  own: np.ndarray,
  ties: metrics.Ties,
) -> np.ndarray:
  """Counts [P] of one query: scores [b] of the gallery rows `columns` [b]."""
  if not len(scores):
    return np.zeros(rows.shape, np.int32)
  ascending = np.sort(scores)
  not_above = np.searchsorted(ascending, own, side='right')
  above = len(scores) - not_above
  if ties != 'optimistic':
    equal = not_above - np.searchsorted(ascending, own, side='left')
    # Most positives tie with nothing but themselves.
    itself = (rows >= columns[0]) & (rows <= columns[-1])
    for p in np.flatnonzero((equal > itself) & (rows >= 0)):
      same = columns[scores == own[p]]
      first = same < rows[p] if ties == 'lower' else same > rows[p]
      above[p] += first.sum()
  return above


def _pick(scores, rows, first, *, mesh) -> jax.Array:
  """Scores [q, L] of the gallery rows [q, L]; 0 where they are elsewhere."""

  def local(scores, rows, first):
    column = rows - _first_row(first, scores, mesh)
    here = (column >= 0) & (column < scores.shape[1])
    column = jnp.clip(column, 0, scores.shape[1] - 1)
    values = jnp.take_along_axis(scores, column, axis=1)
    return _over_mesh(jnp.where(here, values, 0), mesh)

  return _by_shard(local, mesh, 'sqq', out='q')(scores, rows, first)


def _count(scores, keep, rows, own, first, ties, mesh) -> jax.Array:
  """Counts [q, P] of one block."""

  def local(scores, keep, rows, own, first):
    index = _first_row(first, scores, mesh) + jnp.arange(scores.shape[1])

    def before(item):  # one positive of every query: [q], [q] -> [q]
      row, value = item
      ahead = scores > value[:, None]
      if ties != 'optimistic':
        row, columns = row[:, None], index[None]
        earlier = columns < row if ties == 'lower' else columns > row
        ahead |= (scores == value[:, None]) & earlier
      return (ahead & keep[None]).sum(axis=1, dtype=jnp.int32)

    counts = jax.lax.map(before, (rows.T, own.T)).T
    return _over_mesh(counts, mesh)

  run = _by_shard(local, mesh, 'sbqqq', out='q')
  return run(scores, keep, rows, own, first)


def _by_shard(run, mesh, kinds: str, *, out: str):
  """`run` on each device's share: q is whole, b split rows, s split columns."""
  if mesh is None:
    return run
  spec = jax.sharding.PartitionSpec
  specs = {
    'q': spec(),
    'b': spec(sharding.AXIS),
    's': spec(None, sharding.AXIS),
  }
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=tuple(specs[kind] for kind in kinds),
    out_specs=specs[out],
  )


def _first_row(first: jax.Array, scores: jax.Array, mesh) -> jax.Array:
  """Gallery row of the first column of this device's share."""
  if mesh is None:
    return first
  return first + jax.lax.axis_index(sharding.AXIS) * scores.shape[1]


def _over_mesh(counts: jax.Array, mesh) -> jax.Array:
  return counts if mesh is None else jax.lax.psum(counts, sharding.AXIS)
