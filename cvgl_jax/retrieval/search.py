"""Exact nearest neighbours of query features in a gallery of any size.

Arrays in, arrays out: usable on any features, with or without the rest of this
project. The answer is defined by `features.exact_scores`, a function of two
rows, and by the tie rule: it does not depend, in any bit, on chunk sizes, the
number of devices, the precision of the first pass, or whether the gallery lies
in memory or in a file.

How: matrix products of chunks are a first pass with a proven error. Whatever
they cannot exclude is scored exactly, and the best k are kept. A gallery row is
excluded by k rows whose exact scores are higher for certain:

  product < (k-th best exact score so far) - error, or
  product < (k-th best product of the chunk) - 2 error

On a CPU the rows that are left are few and NumPy collects them (this module);
on accelerators and meshes their number is fixed in advance (`device_search`),
and queries for which it was too small come back here.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import device_search, features

Ties = Literal['lower', 'higher']

# Chunk of gallery rows where the caller names none. On a CPU 1024 x 4096 scores
# stay in the cache; an accelerator wants large products.
_CHUNK = {'cpu': 4096}
_DEVICE_CHUNK = 65536
# A query with more than this many times k rows left gets a higher bar.
_CROWD = 2
# Exact scores are computed for this many feature values at a time (16 MiB).
_TILE_VALUES = 2**22


class TopK(NamedTuple):
  """The best gallery rows of every query.

  Attributes:
    scores: [Q, K] float32, descending.
    rows: [Q, K] int32, row numbers of the gallery.
    repeated: queries for which the first pass was not enough: one in bfloat16
      that had to be repeated in float32, or one on an accelerator or a mesh
      that left too many rows. Their results are as exact as the others.
  """

  scores: np.ndarray
  rows: np.ndarray
  repeated: int = 0


def top_k(
  query: np.ndarray | jax.Array,
  gallery: np.ndarray | jax.Array | device_search.Placed,
  *,
  k: int,
  similarity: features.Similarity = 'cosine',
  ties: Ties = 'lower',
  query_chunk: int = 1024,
  gallery_chunk: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  first_pass: features.FirstPass = 'float32',
) -> TopK:
  """The k most similar gallery rows of every query, exactly.

  The gallery is read once, a chunk at a time: it may be larger than the memory
  of a device (chunks are streamed from the host) and larger than that of the
  host (`np.load(path, mmap_mode='r')`). Queries and results are held whole.

  Memory beyond the two arrays, with q = `query_chunk`, g = `gallery_chunk`:
    on a CPU: 8 Q (D + K) + 16 g D + 16 q g bytes and 64 MiB; 16 q g grows to at
      most 128 q g where nearly all scores of a chunk tie with the k-th best.
    on an accelerator, and on each device of a mesh: 4 Q D + 9 Q K + 12 g D +
      12 q g bytes and 128 MiB.

  Args:
    query: [Q, D] features, any float dtype; ranked in float32.
    gallery: [G, D] features: NumPy, memory-mapped or JAX array, or the result
      of `device_search.place`, which fixes similarity, mesh and gallery chunk.
    k: how many; more than G gives all G.
    similarity: 'cosine', or 'dot' for features that carry their own scale.
    ties: which of two equal scores comes first: the 'lower' or the 'higher'
      gallery row.
    query_chunk: queries per block.
    gallery_chunk: gallery rows per block, on each device of the mesh; by
      default 4096 on a CPU, 65536 on an accelerator.
    mesh: splits every chunk of the gallery over these devices (see
      `sharding.make_mesh`); by default the first device is used alone.
    first_pass: 'bfloat16' multiplies in bfloat16 first. Same result; faster
      where the hardware is, and where the scores of a query are spread widely
      enough for its coarser bound (`TopK.repeated` counts where they are not).

  Returns:
    `TopK` with K = min(k, G).

  Raises:
    ValueError: k < 1, an empty side, different D, 2^31 rows or more, unknown
      options, or features that cannot be ranked (see `features.Rows`).
  """
  _check_options(k, query_chunk, gallery_chunk, ties, first_pass)
  placed = gallery if isinstance(gallery, device_search.Placed) else None
  if placed is not None:
    gallery, similarity = placed.rows.values, placed.rows.similarity
  query, gallery = features.pair(query, gallery, similarity=similarity)
  on_host = placed is None and mesh is None and jax.default_backend() == 'cpu'
  if gallery_chunk is None:
    platform = (mesh.devices.flat[0] if mesh else jax.devices()[0]).platform
    gallery_chunk = _CHUNK.get(platform, _DEVICE_CHUNK)
  options = {
    'k': min(k, len(gallery)),
    'ties': ties,
    'block': min(query_chunk, len(query)),
  }
  features.check_row_numbers(gallery)
  query = query.part(0, len(query))
  if on_host:
    return _scan(
      query, gallery, chunk=gallery_chunk, first_pass=first_pass, **options
    )
  if placed is None:
    placed = device_search.stream(gallery, chunk=gallery_chunk, mesh=mesh)
  scores, rows, crowded = device_search.scan(
    query, placed, first_pass=first_pass, **options
  )
  repeated = left = np.flatnonzero(crowded)
  if first_pass == 'bfloat16' and len(left):
    scores[left], rows[left], crowded = device_search.scan(
      query[left], placed, first_pass='float32', **options
    )
    left = left[crowded]
  if len(left):
    found = _scan(
      query[left],
      gallery,
      chunk=min(gallery_chunk, _CHUNK['cpu']),
      first_pass='float32',
      **options,
    )
    scores[left], rows[left] = found.scores, found.rows
  return TopK(scores, rows, len(repeated))


def top_k_scores(scores: np.ndarray, *, k: int, ties: Ties = 'lower') -> TopK:
  """`top_k` of given scores [Q, G], such as re-ranked ones."""
  scores = np.asarray(scores)
  if scores.ndim != 2 or not scores.size or k < 1:
    raise ValueError(f'scores of shape {scores.shape} with k={k}')
  if np.isnan(scores).any():
    raise ValueError('scores hold NaN; nothing is ranked on them')
  _check_options(k, 1, 1, ties, 'float32')
  backwards = ties == 'higher'
  ordered = scores[:, ::-1] if backwards else scores
  columns = np.argsort(-ordered, axis=1, kind='stable')[:, :k].astype(np.int32)
  best = np.take_along_axis(ordered, columns, axis=1).astype(np.float32)
  return TopK(best, scores.shape[1] - 1 - columns if backwards else columns)


def _check_options(k, query_chunk, gallery_chunk, ties, first_pass) -> None:
  if min(k, query_chunk, gallery_chunk or 1) < 1 or gallery_chunk == 0:
    raise ValueError(
      f'k={k}, query_chunk={query_chunk}, gallery_chunk={gallery_chunk}: '
      'all must be at least 1'
    )
  if ties not in ('lower', 'higher'):
    raise ValueError(f"ties {ties!r}: expected 'lower' or 'higher'")
  if first_pass not in ('float32', 'bfloat16'):
    raise ValueError(
      f"first_pass {first_pass!r}: expected 'float32' or 'bfloat16'"
    )


def _scan(
  query: np.ndarray,
  gallery: features.Rows,
  *,
  k: int,
  ties: Ties,
  block: int,
  chunk: int,
  first_pass: features.FirstPass,
) -> TopK:
  """`top_k` of prepared queries; what is left is collected on the host."""
  scores = np.full((len(query), k), -np.inf, np.float32)
  rows = np.full((len(query), k), -1, np.int32)
  repeated = np.zeros(len(query), bool)
  chunk = min(chunk, len(gallery))
  parts = [
    (
      slice(i, i + block),
      jnp.asarray(features.pad(query[i : i + block], block)),
    )
    for i in range(0, len(query), block)
  ]
  for start, chunk_rows in gallery.parts(chunk):
    count = len(chunk_rows)
    chunk_rows = jnp.asarray(features.pad(chunk_rows, chunk))
    for part, queries in parts:
      keep, repeated_here = _not_excluded(
        queries, chunk_rows, count, scores[part, -1], k, first_pass
      )
      repeated[part] |= repeated_here
      at, column = np.divmod(np.flatnonzero(keep), count)
      exact = _exact_pairs(queries, chunk_rows, at, column)
      _merge(scores[part], rows[part], at, start + column, exact, ties=ties)
  return TopK(scores, rows, int(repeated.sum()))


def _not_excluded(queries, gallery, count, lowest, k, first_pass):
  """Which of the first `count` gallery rows may be among the k best.

  Args:
    queries: [q', D]; only the first q, the length of `lowest`, are asked for.
    gallery: [g, D].
    count: gallery rows that are no padding.
    lowest: [q] k-th best exact scores so far.
    k: how many are looked for.
    first_pass: see `top_k`.

  Returns:
    bool [q, count]; and bool [q], the queries repeated in float32.
  """
  scores, error = (
    np.asarray(x)[: len(lowest)]
    for x in _approximate(queries, gallery, first_pass=first_pass)
  )
  scores = scores[:, :count]
  bar = lowest - error
  keep = scores >= bar[:, None]
  limit = _CROWD * k
  crowded = np.flatnonzero(np.count_nonzero(keep, axis=1) > limit)
  if len(crowded):
    few = scores[crowded]
    best = np.partition(few, count - k, axis=1)[:, count - k]
    bar[crowded] = np.maximum(bar[crowded], best - 2 * error[crowded])
    keep[crowded] = few >= bar[crowded, None]
  repeated = np.zeros(len(lowest), bool)
  if first_pass == 'bfloat16':
    # Rows by the hundred that only the coarse bound cannot exclude cost more
    # than the product in float32.
    repeated = np.count_nonzero(keep, axis=1) > 4 * limit
    if repeated.any():
      again, _ = _not_excluded(queries, gallery, count, lowest, k, 'float32')
      keep[repeated] = again[repeated]
  return keep, repeated


def _exact_pairs(queries, gallery, at, column) -> np.ndarray:
  """`features.exact_scores` [P] of the pairs (at[i], column[i])."""
  exact = np.empty(len(at), np.float32)
  tile = max(1, min(8192, _TILE_VALUES // queries.shape[1]))
  for i in range(0, len(at), tile):
    pairs = np.stack([at[i : i + tile], column[i : i + tile]], axis=1)
    found = _pair_scores(
      queries, gallery, features.pad(pairs.astype(np.int32), tile)
    )
    exact[i : i + tile] = np.asarray(found)[: len(pairs)]
  return exact


def _merge(scores, rows, at, new_rows, new_scores, *, ties) -> None:
  """Puts new rows into the best k of every query, in place.

  Args:
    scores: [q, k] float32, descending, -inf where there are fewer rows yet.
    rows: [q, k] int32; all of them lower than the new ones.
    at: [P] the queries of the new rows, ascending.
    new_rows: [P], ascending within a query.
    new_scores: [P] float32.
    ties: see `top_k`.
  """
  better = new_scores >= scores[at, -1]
  at, new_rows, new_scores = (x[better] for x in (at, new_rows, new_scores))
  if not len(at):
    return
  touched, first, at, counts = np.unique(
    at, return_index=True, return_inverse=True, return_counts=True
  )
  place = np.arange(len(at)) - first[at]
  shape = (len(touched), counts.max())
  wide_scores = np.full(shape, -np.inf, np.float32)
  wide_rows = np.full(shape, -1, np.int32)
  wide_scores[at, place] = new_scores
  wide_rows[at, place] = new_rows
  # The sort is stable, so equal scores stay in this order.
  if ties == 'lower':
    all_scores = np.concatenate([scores[touched], wide_scores], axis=1)
    all_rows = np.concatenate([rows[touched], wide_rows], axis=1)
  else:
    all_scores = np.concatenate([wide_scores[:, ::-1], scores[touched]], axis=1)
    all_rows = np.concatenate([wide_rows[:, ::-1], rows[touched]], axis=1)
  order = np.argsort(-all_scores, axis=1, kind='stable')[:, : scores.shape[1]]
  scores[touched] = np.take_along_axis(all_scores, order, axis=1)
  rows[touched] = np.take_along_axis(all_rows, order, axis=1)


_approximate = functools.partial(jax.jit, static_argnames='first_pass')(
  features.approximate_scores
)


@jax.jit
def _pair_scores(
  queries: jax.Array, gallery: jax.Array, pairs: jax.Array
) -> jax.Array:
  return features.exact_scores(queries[pairs[:, 0]], gallery[pairs[:, 1]])
