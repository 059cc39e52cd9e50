"""Ranks of the right answers, by counting instead of sorting.

The rank of a gallery row is the number of rows that stand before it, so it
takes one comparison with every similarity and no ranking of the gallery. Scores
exist for one chunk of queries against one chunk of the gallery at a time.

Equal features have equal scores wherever they stand, so that the rule for ties
means something: all scores, of the positives too, are products of blocks of one
shape, whose sides are multiples of what matrix kernels work on at once.

Source: zqwlearning/FRGeo-Code `train.py` (accuracy: count what scores strictly
more than the truth), for one positive and one matrix of all scores.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax import sharding
from cvgl_jax.retrieval import counting, features, metrics, truth

# Queries and gallery rows of a block are multiples of it.
_TILE = 64
# Gallery rows of a block: its scores should stay in a core's cache.
_CPU_BLOCK = 2048
_BLOCK = 16384
# With more positives a query, sorting values beats counting on a CPU.
_COUNTED_POSITIVES = 3


class Counted(NamedTuple):
  """What one pass over all scores tells.

  Attributes:
    ranks: [Q, P] int32, 0-based rank of every positive; -1 where it is a fill
      or junk.
    scores: [Q, P] float32, its similarity to the query; NaN at fills.
    watched: [Q, W] float32, similarity of the watched rows; NaN at fills.
  """

  ranks: np.ndarray
  scores: np.ndarray
  watched: np.ndarray


def rank_of_positive(
  query: np.ndarray,
  gallery: np.ndarray,
  positives: np.ndarray,
  *,
  similarity: features.Similarity = 'cosine',
  ties: metrics.Ties = 'lower',
  exclude: np.ndarray | None = None,
  query_chunk: int | None = None,
  gallery_chunk: int = 65536,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """0-based rank of every positive in the ranking of the gallery.

  Args:
    query: [Q, D] features, memory-mapped or not; ranked in float32.
    gallery: [G, D] features, the same.
    positives: [Q, P] integers, rows of the gallery, each at most once for a
      query; -1 fills.
    similarity: 'cosine' or 'dot'.
    ties: equal scores rank by gallery row, the 'lower' or the 'higher' first;
      'optimistic' counts only what scores strictly more than the positive.
    exclude: what is taken out of the ranking: bool [G], or rows [Q, E] with -1
      fills where it depends on the query.
    query_chunk: see `count`.
    gallery_chunk: see `count`.
    mesh: see `count`.

  Returns:
    [Q, P] int32; -1 for fills and for excluded positives.

  Raises:
    ValueError: see `count`.
  """
  options = {'similarity': similarity, 'ties': ties, 'mesh': mesh}
  options |= {'query_chunk': query_chunk, 'gallery_chunk': gallery_chunk}
  if exclude is None or np.ndim(exclude) == 1:
    return count(query, gallery, positives, junk=exclude, **options).ranks
  size = (len(query), len(gallery))
  positives = truth.check_rows(positives, 'positives', size)
  exclude = truth.check_rows(exclude, 'exclude', size)
  counted = count(query, gallery, positives, watched=exclude, **options)
  before = counting.standing_before(
    positives, counted.scores, exclude, counted.watched, ties=ties
  )
  taken_out = truth.is_listed(positives, exclude)
  return np.where(taken_out | (positives < 0), -1, counted.ranks - before)


def count(
  query: np.ndarray,
  gallery: np.ndarray,
  positives: np.ndarray,
  *,
  watched: np.ndarray | None = None,
  junk: np.ndarray | None = None,
  similarity: features.Similarity = 'cosine',
  ties: metrics.Ties = 'lower',
  query_chunk: int | None = None,
  gallery_chunk: int = 65536,
  mesh: jax.sharding.Mesh | None = None,
) -> Counted:
  """Ranks of the positives, and the scores of some rows, in one pass.

  Memory beyond the features, in bytes: 4 * D * gallery_chunk for a prepared
  part of the gallery and 4 * query_chunk * gallery_chunk for scores, split over
  the mesh if there is one. A gallery of up to `gallery_chunk` rows is prepared
  once; a larger one is read in parts, the queries again for each, so both may
  be memory-mapped files that do not fit in memory.

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    positives: [Q, P] rows of the gallery, -1 fills.
    watched: [Q, W] rows whose scores are wanted, -1 fills.
    junk: bool [G], rows that are not counted.
    similarity: 'cosine' or 'dot'.
    ties: see `rank_of_positive`.
    query_chunk: queries at a time, rounded up to a multiple of 64; None takes
      256 on a CPU and 1024 elsewhere.
    gallery_chunk: gallery rows at a time.
    mesh: splits the gallery over the devices; ranks are the same.

  Returns:
    `Counted`.

  Raises:
    ValueError: features that cannot be ranked (see `features.Rows`), different
      dimensions, rows that are repeated or outside the gallery, junk of the
      wrong form, chunks below 1, an unknown option.
  """
  metrics.check_choice('ties', ties, metrics.TIES)
  query, gallery = features.pair(query, gallery, similarity=similarity)
  size = (len(query), len(gallery))
  positives = truth.check_rows(positives, 'positives', size)
  nobody = np.zeros((size[0], 0), np.int32)
  watched = (
    nobody if watched is None else truth.check_rows(watched, 'watched', size)
  )
  keep = ~_junk(junk, size[1])
  engine = _Engine(query, gallery, keep, query_chunk, gallery_chunk, mesh)
  listed = np.concatenate([positives, watched], axis=1)
  own = None if engine.is_whole else engine.own_scores(listed)
  split = positives.shape[1]
  options = {'num_positives': split, 'ties': ties}
  if engine.on_host and split > _COUNTED_POSITIVES:
    run = functools.partial(counting.on_host, **options)
  else:
    run = functools.partial(counting.on_device, **options, mesh=mesh)
  ahead = np.zeros(positives.shape, np.int32)
  found = np.empty(listed.shape, np.float32) if own is None else own
  for start, blocks, kept in engine.groups():
    for first, chunk in engine.queries():
      part = slice(first, first + engine.query_chunk)
      scores = [engine.score(chunk, block) for block in blocks]
      values = None if own is None else engine.fill(own[part])
      counts, values = run(
        scores, kept, engine.fill(listed[part]), values, start
      )
      size = len(ahead[part])
      ahead[part] += np.asarray(counts)[:size]
      found[part] = np.asarray(values)[:size]
  found = np.where(listed < 0, np.nan, found)
  missing = (positives < 0) | ~keep[positives]
  return Counted(
    np.where(missing, -1, ahead), found[:, :split], found[:, split:]
  )


def _junk(junk: np.ndarray | None, size: int) -> np.ndarray:
  """Junk as bool [G], or an error."""
  junk = np.zeros(size, bool) if junk is None else np.asarray(junk)
  if junk.dtype != bool or junk.shape != (size,):
    raise ValueError(
      f'junk: {junk.dtype} of shape {junk.shape}, expected bool of shape '
      f'({size},)'
    )
  return junk


class _Engine:
  """Cuts both sides into chunks and blocks, and puts them on devices."""

  def __init__(self, query, gallery, keep, query_chunk, gallery_chunk, mesh):
    self._query, self._gallery, self._keep = query, gallery, keep
    self._mesh = mesh
    self.on_host = mesh is None and jax.default_backend() == 'cpu'
    if query_chunk is None:
      query_chunk = 256 if jax.default_backend() == 'cpu' else 1024
    if query_chunk < 1 or gallery_chunk < 1:
      raise ValueError(
        f'query_chunk={query_chunk}, gallery_chunk={gallery_chunk}: both must '
        'be at least 1'
      )
    self.query_chunk = _round_up(min(query_chunk, len(query)))
    # Blocks of about the same size waste least.
    chunk = -(-len(gallery) // -(-len(gallery) // gallery_chunk))
    largest = _CPU_BLOCK if jax.default_backend() == 'cpu' else _BLOCK
    block = _round_up(-(-chunk // -(-chunk // largest)))
    # A device's share of a block has the shape that it has without a mesh.
    self._block = block * (1 if mesh is None else mesh.size)
    self._chunk = -(-chunk // self._block) * self._block
    self.is_whole = len(gallery) <= self._chunk

  def queries(self) -> Iterator[tuple[int, jax.Array]]:
    """(first row, prepared chunk on the devices, filled up with zeros)."""
    for start, part in self._query.parts(self.query_chunk):
      yield start, self._put(self.fill(part, 0), split=False)

  def groups(self) -> Iterator[tuple[int, list[jax.Array], list[jax.Array]]]:
    """Parts of the gallery: first row, blocks on the devices, their `keep`."""
    for start in range(0, len(self._gallery), self._chunk):
      stop = min(start + self._chunk, len(self._gallery))
      blocks, kept = [], []
      for first in range(start, stop, self._block):
        last = min(first + self._block, stop)
        blocks.append(self._put_block(self._gallery.part(first, last)))
        keep = _fill(self._keep[first:last], self._block, False)
        kept.append(self._put(keep, split=True))
      yield start, blocks, kept

  def own_scores(self, listed: np.ndarray) -> np.ndarray:
    """Scores [Q, L] of the listed rows, from blocks of nothing but them."""
    own = np.full(listed.shape, np.nan, np.float32)
    for start, query in self.queries():
      rows = listed[start : start + self.query_chunk]
      distinct = np.unique(rows[rows >= 0])
      for first in range(0, len(distinct), self._block):
        some = distinct[first : first + self._block]
        block = self._put_block(self._gather(some))
        scores = np.asarray(self.score(query, block))
        column = np.searchsorted(some, rows)
        here = some[np.minimum(column, len(some) - 1)] == rows
        own[start : start + len(rows)][here] = scores[
          np.nonzero(here)[0], column[here]
        ]
    return own

  def score(self, query: jax.Array, block: jax.Array) -> jax.Array:
    """[query_chunk, block] float32."""
    return counting.score(query, block, mesh=self._mesh)

  def fill(self, part: np.ndarray, value: float = -1) -> np.ndarray:
    """Fills up a chunk of queries, so that one program serves all chunks."""
    return _fill(part, self.query_chunk, value)

  def _gather(self, rows: np.ndarray) -> np.ndarray:
    gallery = self._gallery
    some = features.Rows(gallery.values[rows], gallery.name, gallery.similarity)
    try:
      return some.part(0, len(some))
    except ValueError:
      for row in rows:  # again, so that the message has the right numbers
        gallery.part(row, row + 1)
      raise

  def _put_block(self, block: np.ndarray) -> jax.Array:
    return self._put(_fill(block, self._block, 0), split=True)

  def _put(self, array: np.ndarray, *, split: bool) -> jax.Array:
    if self._mesh is None:
      return jnp.asarray(array)
    place = sharding.batch_sharding if split else sharding.replicated
    return jax.device_put(array, place(self._mesh))


def _round_up(count: int) -> int:
  return -(-count // _TILE) * _TILE


def _fill(array: np.ndarray, size: int, value: float) -> np.ndarray:
  missing = size - len(array)
  if not missing:
    return array
  return np.pad(
    array,
    [(0, missing)] + [(0, 0)] * (array.ndim - 1),
    constant_values=value,
  )
