"""Retrieval metrics: recall@k, recall@1%, CMC and average precision.

One engine for all systems of the field; where published code differs, the
difference is an option named here:

* `ap`: 'trapezoid' (University-1652 family) or 'plain'.
* `percent_index`: how many gallery entries "1 %" is.
* `ties`: how equal scores rank.
* junk: gallery entries that are taken out of the ranking.
* orphans: queries without any positive. They find nothing, but they count in
  the denominator of every mean.

Sources: layumi/University1652-Baseline `evaluate_gpu.py` (trapezoid AP, CMC,
junk, 1 % rule); Skyy93/Sample4Geo `evaluate/cvusa_and_cvact.py` and the VIGOR
repository (the other 1 % rules, ties in favour of the query).

Differs: no sort per query, and ties have a rule (an unstable sort there).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import search

PercentIndex = Literal['university', 'floor', 'floor_plus_one']
AveragePrecision = Literal['trapezoid', 'plain']
Ties = Literal['lower', 'higher', 'optimistic']

JUNK = -1
# Scores of one block of queries against the whole gallery stay below this.
_BLOCK_BYTES = 2**26
# Up to so many positives a query, counting beats sorting on a CPU (measured:
# 51,355 gallery rows, one core). Accelerators always count.
_COUNTED_POSITIVES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingResult:
  """Metrics of one query set against one gallery; fractions in 0..1.

  Attributes:
    ranks: the k of `recall`.
    recall: recall@k for each of `ranks`.
    recall_percent: recall@1%.
    percent_rank: the k that "1 %" means here.
    average_precision: mean over all queries.
    cmc: [G] float64, cmc[k - 1] = recall@k.
    num_queries: Q, orphans included.
    num_orphans: queries without any positive.
    gallery_size: G, junk included.
    first_rank: [Q] int32, 0-based rank of the first positive, -1 for orphans;
      None unless asked for.
    query_average_precision: [Q] float64, 0 for orphans; None unless asked for.
  """

  ranks: tuple[int, ...]
  recall: tuple[float, ...]
  recall_percent: float
  percent_rank: int
  average_precision: float
  cmc: np.ndarray
  num_queries: int
  num_orphans: int
  gallery_size: int
  first_rank: np.ndarray | None = None
  query_average_precision: np.ndarray | None = None

  def report(self) -> dict[str, float]:
    """'R@1', ..., 'R@1%' and 'AP' in percent, as papers print them."""
    numbers = {
      f'R@{k}': r for k, r in zip(self.ranks, self.recall, strict=True)
    }
    numbers |= {'R@1%': self.recall_percent, 'AP': self.average_precision}
    return {name: 100 * value for name, value in numbers.items()}


def evaluate_ranking(
  query: np.ndarray,
  gallery: np.ndarray,
  query_place: np.ndarray,
  gallery_place: np.ndarray,
  *,
  ranks: tuple[int, ...] = (1, 5, 10),
  percent_index: PercentIndex = 'university',
  ap: AveragePrecision = 'trapezoid',
  ties: Ties = 'lower',
  junk: np.ndarray | None = None,
  per_query: bool = False,
  similarity: search.Similarity = 'cosine',
) -> RankingResult:
  """Ranks a gallery for every query and measures where the positives are.

  A gallery entry is a positive of a query when their places are equal. Scores
  exist for one block of queries at a time (64 MiB, at least one query), never
  for all of Q x G.

  Args:
    query: [Q, D] features, any float dtype; ranked in float32.
    gallery: [G, D] features.
    query_place: [Q] integers.
    gallery_place: [G] integers; -1 marks junk.
    ranks: the k of recall@k; k > G counts the whole gallery.
    percent_index: see `percent_rank`.
    ap: see `average_precision`.
    ties: equal scores rank by gallery row, 'lower' or 'higher' first;
      'optimistic' ranks a positive before everything that it ties with.
    junk: bool [G], or [Q, G] where it depends on the query; True takes the
      entry out of the ranking, in addition to places of -1.
    per_query: keep the per-query arrays in the result.
    similarity: 'cosine' or 'dot'.

  Returns:
    `RankingResult`.

  Raises:
    ValueError: empty sides, mismatched dimensions or lengths, non-integer
      places, unknown options, features that cannot be ranked.
  """
  query, gallery = search.prepare_pair(query, gallery, similarity=similarity)
  shape = (len(query), len(gallery))
  positives, keep = _ground_truth(shape, query_place, gallery_place, junk)
  _check_options(ranks, percent_index, ap, ties)
  size = max(1, min(shape[0], _BLOCK_BYTES // (4 * shape[1])))
  few = positives.shape[1] <= _COUNTED_POSITIVES
  counts = few or jax.default_backend() != 'cpu'
  device_gallery = jnp.asarray(gallery)
  found = []
  for start in range(0, shape[0], size):
    part = slice(start, start + size)
    block, rows = query[part], positives[part]
    # The last block is filled up, so that one program serves all blocks.
    fill = size - len(block)
    block = np.pad(block, [(0, fill), (0, 0)])
    block_keep = keep if len(keep) == 1 else np.pad(keep[part], _below(fill))
    if counts:
      padded = np.pad(rows, _below(fill), constant_values=-1)
      ranked = _count_block(
        block, device_gallery, padded, block_keep, ties=ties
      )
      found.append(np.asarray(ranked)[: len(rows)])
    else:
      scores = _score_block(block, device_gallery, block_keep)
      found.append(_sort_ranks(np.asarray(scores)[: len(rows)], rows, ties))
  found = np.concatenate(found)
  options = {'ranks': ranks, 'percent_index': percent_index, 'ap': ap}
  return summarize(found, shape[1], **options, per_query=per_query)


def evaluate_scores(
  scores: np.ndarray,
  query_place: np.ndarray,
  gallery_place: np.ndarray,
  *,
  ranks: tuple[int, ...] = (1, 5, 10),
  percent_index: PercentIndex = 'university',
  ap: AveragePrecision = 'trapezoid',
  ties: Ties = 'lower',
  junk: np.ndarray | None = None,
  per_query: bool = False,
) -> RankingResult:
  """`evaluate_ranking` of given scores [Q, G], the higher the better.

  For scores that are no dot product: re-ranked ones, or minus a distance.
  """
  scores = np.asarray(scores)
  if scores.ndim != 2 or not scores.size:
    raise ValueError(f'scores of shape {scores.shape}, expected [Q, G]')
  if not np.isfinite(scores).all():
    rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    raise ValueError(
      f'scores: NaN or infinite values in {len(rows)} of {len(scores)} query '
      f'rows (first: {rows[0]}); nothing is ranked on them'
    )
  truth = (query_place, gallery_place, junk)
  positives, keep = _ground_truth(scores.shape, *truth)
  _check_options(ranks, percent_index, ap, ties)
  found = _sort_ranks(np.where(keep, scores, -np.inf), positives, ties)
  options = {'ranks': ranks, 'percent_index': percent_index, 'ap': ap}
  return summarize(found, scores.shape[1], **options, per_query=per_query)


def summarize(
  positive_ranks: np.ndarray,
  gallery_size: int,
  *,
  ranks: tuple[int, ...] = (1, 5, 10),
  percent_index: PercentIndex = 'university',
  ap: AveragePrecision = 'trapezoid',
  per_query: bool = False,
) -> RankingResult:
  """Metrics from the ranks of the positives.

  Args:
    positive_ranks: [Q, P] integers, 0-based rank of every positive in the
      ranking without junk, in any order; -1 fills rows with fewer positives.
    gallery_size: G.
    ranks: the k of recall@k.
    percent_index: see `percent_rank`.
    ap: see `average_precision`.
    per_query: keep the per-query arrays in the result.

  Returns:
    `RankingResult`.
  """
  _check_options(ranks, percent_index, ap, 'lower')
  precision = average_precision(positive_ranks, ap=ap)
  missing = np.iinfo(np.int32).max
  filled = np.where(positive_ranks < 0, missing, positive_ranks)
  first = filled.min(axis=1, initial=missing)
  found = first < missing
  hits = np.bincount(first[found], minlength=gallery_size)
  cmc = np.cumsum(hits) / len(first)
  recall_at = lambda k: float(cmc[min(k, gallery_size) - 1]) if k else 0.0
  one_percent = percent_rank(gallery_size, percent_index)
  return RankingResult(
    ranks=tuple(ranks),
    recall=tuple(recall_at(k) for k in ranks),
    recall_percent=recall_at(one_percent),
    percent_rank=one_percent,
    average_precision=float(precision.mean()),
    cmc=cmc,
    num_queries=len(first),
    num_orphans=int((~found).sum()),
    gallery_size=gallery_size,
    first_rank=np.where(found, first, -1).astype(np.int32)
    if per_query
    else None,
    query_average_precision=precision if per_query else None,
  )


def average_precision(
  positive_ranks: np.ndarray, *, ap: AveragePrecision = 'trapezoid'
) -> np.ndarray:
  """Average precision of every query.

  With r_0 < r_1 < ... the 0-based ranks of a query's n positives:

    plain:      1/n sum_i p_i,                  p_i = (i + 1) / (r_i + 1)
    trapezoid:  1/n sum_i (p_i + p'_i) / 2,     p'_i = i / r_i, 1 where r_i = 0

  The trapezoid scores a single positive on rank 2 with 0.25, not 0.5: the
  numbers of the University-1652 family are published so.

  Args:
    positive_ranks: [Q, P] integers, -1 fills; as in `summarize`.
    ap: 'trapezoid' or 'plain'.

  Returns:
    [Q] float64; 0 for queries without positives.
  """
  positive_ranks = np.asarray(positive_ranks)
  valid = positive_ranks >= 0
  # Float64, because int32 + 1 of the fill value would overflow.
  ordered = np.sort(np.where(valid, positive_ranks, np.inf), axis=1)  # [Q, P]
  index = np.arange(ordered.shape[1])[None]
  precision = (index + 1) / (ordered + 1)  # 0 at the filled places
  if ap == 'trapezoid':
    before = np.where(ordered > 0, index / np.maximum(ordered, 1), 1.0)
    precision = (precision + before) / 2
  return precision.sum(axis=1) / np.maximum(valid.sum(axis=1), 1)


def percent_rank(gallery_size: int, percent_index: PercentIndex) -> int:
  """The k of recall@1%.

  'university': CMC at the 0-based index round(0.01 G), so k is one more
    (University-1652, LPN, PLCD, Sample4Geo on University-1652).
  'floor': k = G // 100 (Sample4Geo, TransGeo, FRGeo on CVUSA, CVACT, VIGOR);
    galleries below 100 entries have k = 0 and recall 0.
  'floor_plus_one': k = int(0.01 G) + 1 (older papers, the VIGOR repository).
  """
  return {
    # Python's round is the reference's: halves go to the even number.
    'university': min(round(0.01 * gallery_size) + 1, gallery_size),
    'floor': gallery_size // 100,
    'floor_plus_one': int(0.01 * gallery_size) + 1,
  }[percent_index]


def _below(fill: int) -> list[tuple[int, int]]:
  return [(0, fill), (0, 0)]


def _check_options(ranks, percent_index, ap, ties) -> None:
  for name, value, valid in (
    ('percent_index', percent_index, ('university', 'floor', 'floor_plus_one')),
    ('ap', ap, ('trapezoid', 'plain')),
    ('ties', ties, ('lower', 'higher', 'optimistic')),
  ):
    if value not in valid:
      raise ValueError(f'{name} {value!r}: expected one of {valid}')
  if not ranks or min(ranks) < 1:
    raise ValueError(f'ranks {ranks!r}: expected integers from 1')


def _ground_truth(
  shape: tuple[int, int],
  query_place: np.ndarray,
  gallery_place: np.ndarray,
  junk: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
  """Positives [Q, P] int32 (rows of the gallery, -1 fills), keep [1|Q, G]."""
  query_place = _places(query_place, 'query', shape[0])
  gallery_place = _places(gallery_place, 'gallery', shape[1])
  keep = (gallery_place != JUNK)[None]
  if junk is not None:
    junk = np.asarray(junk)
    if junk.dtype != bool or junk.shape not in (shape[1:], shape):
      raise ValueError(
        f'junk: {junk.dtype} of shape {junk.shape}, expected bool of shape '
        f'{shape[1:]} or {shape}'
      )
    keep = keep & ~np.atleast_2d(junk)
  order = np.argsort(gallery_place, kind='stable')
  ordered = gallery_place[order]
  start = np.searchsorted(ordered, query_place, side='left')
  count = np.searchsorted(ordered, query_place, side='right') - start
  offset = np.arange(max(1, count.max()))[None]
  exists = offset < count[:, None]
  positives = order[np.minimum(start[:, None] + offset, shape[1] - 1)]  # [Q, P]
  query_row = np.arange(shape[0])[:, None] if len(keep) > 1 else 0
  positives = np.where(exists & keep[query_row, positives], positives, -1)
  return positives.astype(np.int32), keep


def _places(place: np.ndarray, name: str, size: int) -> np.ndarray:
  place = np.asarray(place)
  if place.shape != (size,):
    raise ValueError(
      f'{name}: {size} feature rows but places of shape {place.shape}; there '
      'must be one place for every row'
    )
  if not np.issubdtype(place.dtype, np.integer):
    raise ValueError(f'{name}: places are {place.dtype}, expected integers')
  return place


@jax.jit
def _score_block(
  query: jax.Array, gallery: jax.Array, keep: jax.Array
) -> jax.Array:
  """Scores [q, G]; junk is below everything."""
  return jnp.where(keep, search.similarity_matrix(query, gallery), -jnp.inf)


@functools.partial(jax.jit, static_argnames='ties')
def _count_block(
  query: jax.Array,
  gallery: jax.Array,
  positives: jax.Array,
  keep: jax.Array,
  *,
  ties: Ties,
) -> jax.Array:
  """Rank [q, P] of each positive = number of entries that stand before it."""
  scores = _score_block(query, gallery, keep)
  rows = jnp.arange(len(gallery))[None]

  def before(positive):  # [q] -> [q]
    row = positive[:, None]
    own = jnp.take_along_axis(scores, jnp.maximum(row, 0), axis=1)
    ahead = scores > own
    if ties != 'optimistic':
      first = rows < row if ties == 'lower' else rows > row
      ahead |= (scores == own) & first
    return jnp.where(positive < 0, -1, ahead.sum(axis=1, dtype=jnp.int32))

  return jax.lax.map(before, positives.T).T


def _sort_ranks(
  scores: np.ndarray, positives: np.ndarray, ties: Ties
) -> np.ndarray:
  """`_count_block` by sorting each row's values: faster for many positives.

  Only values are sorted, which NumPy does several times faster than indices;
  the rows of the few entries that tie are looked at one by one.
  """
  ranks = np.full(positives.shape, -1, np.int32)
  for index, (row, rows) in enumerate(zip(scores, positives, strict=True)):
    valid = rows >= 0
    rows = rows[valid]
    values = row[rows]
    ascending = np.sort(row)
    not_above = np.searchsorted(ascending, values, side='right')
    rank = len(row) - not_above
    tied = not_above - np.searchsorted(ascending, values, side='left') > 1
    if ties != 'optimistic':
      for i in np.flatnonzero(tied):
        equal = np.flatnonzero(row == values[i])
        first = equal < rows[i] if ties == 'lower' else equal > rows[i]
        rank[i] += first.sum()
    ranks[index, valid] = rank
  return ranks
