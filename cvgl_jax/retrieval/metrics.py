"""Retrieval metrics from the ranks of the right answers.

One set of formulas for all systems of the field; where published code differs,
the difference is an option named here:

* `ap`: 'trapezoid' (University-1652 family) or 'plain'.
* `percent_index`: how many gallery entries "1 %" is.
* `ties`: how equal scores rank.

Queries without any positive (orphans) find nothing, but they count in the
denominator of every mean.

Sources: layumi/University1652-Baseline `evaluate_gpu.py` (trapezoid AP, CMC,
1 % rule); Skyy93/Sample4Geo `evaluate/cvusa_and_cvact.py`, `evaluate/vigor.py`
and Jeff-Zilence/VIGOR `train_SAFA.py` (the other 1 % rules, hit rate);
JDAI-CV/fast-reid `rank.py` (mINP).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

PercentIndex = Literal['university', 'floor', 'floor_plus_one']
AveragePrecision = Literal['trapezoid', 'plain']
Ties = Literal['lower', 'higher', 'optimistic']

PERCENT_INDICES = ('university', 'floor', 'floor_plus_one')
AVERAGE_PRECISIONS = ('trapezoid', 'plain')
TIES = ('lower', 'higher', 'optimistic')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingResult:
  """Metrics of one query set against one gallery; fractions in 0..1.

  Attributes:
    ranks: the k of `recall`.
    recall: recall@k for each of `ranks`: share of all queries whose first
      positive has a 0-based rank below k.
    recall_percent: recall@1%.
    percent_rank: the k that "1 %" means here.
    average_precision: mean over all queries.
    cmc: [G] float64, cmc[k - 1] = recall@k.
    num_queries: Q, orphans included.
    num_orphans: queries without any positive.
    gallery_size: G, junk included.
    hit_rate: see `summarize`; None without semi-positives.
    mean_inp: see `inverse_penalty`; None unless asked for.
    first_rank: [Q] int32, 0-based rank of the first positive, -1 for orphans;
      None, like all below, unless asked for.
    query_average_precision: [Q] float64, 0 for orphans.
    query_hit: [Q] bool; None without semi-positives.
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
  hit_rate: float | None = None
  mean_inp: float | None = None
  first_rank: np.ndarray | None = None
  query_average_precision: np.ndarray | None = None
  query_hit: np.ndarray | None = None

  def report(self) -> dict[str, float]:
    """'R@1', ..., 'R@1%' and 'AP' in percent, as papers print them.

    'hit rate' and 'mINP' stand behind them where they were measured.
    """
    numbers = {
      f'R@{k}': r for k, r in zip(self.ranks, self.recall, strict=True)
    }
    numbers |= {'R@1%': self.recall_percent, 'AP': self.average_precision}
    extra = {'hit rate': self.hit_rate, 'mINP': self.mean_inp}
    numbers |= {
      name: value for name, value in extra.items() if value is not None
    }
    return {name: 100 * value for name, value in numbers.items()}


def summarize(
  positive_ranks: np.ndarray,
  gallery_size: int,
  *,
  ranks: Sequence[int] = (1, 5, 10),
  percent_index: PercentIndex = 'university',
  ap: AveragePrecision = 'trapezoid',
  forgiving_ranks: np.ndarray | None = None,
  inp: bool = False,
  per_query: bool = False,
) -> RankingResult:
  """Metrics from the ranks of the positives.

  With f_q the lowest rank of query q's positives and N all queries, orphans
  included:

    recall@k = CMC(k) = 1/N sum_q [f_q < k]
    hit rate          = 1/N sum_q [f'_q = 0],  f' with the semi-positives gone

  A query hits if nothing but semi-positives stands before its positive. That
  is at least recall@1, and less than how often the first entry is a positive
  or a semi-positive.

  Args:
    positive_ranks: [Q, P] integers, 0-based rank of every positive in the
      ranking without junk, in any order; -1 fills rows with fewer positives.
    gallery_size: G.
    ranks: the k of recall@k; k > G counts the whole gallery.
    percent_index: see `percent_rank`.
    ap: see `average_precision`.
    forgiving_ranks: [Q, P], the same ranks with each query's semi-positives
      taken out of the ranking; None if there are none.
    inp: measure mINP too.
    per_query: keep the per-query arrays in the result.

  Returns:
    `RankingResult`.

  Raises:
    ValueError: unknown options, ranks below 1, no queries, or ranks beyond the
      gallery.
  """
  check_choice('percent_index', percent_index, PERCENT_INDICES)
  check_choice('ap', ap, AVERAGE_PRECISIONS)
  check_ranks(ranks)
  positive_ranks = np.asarray(positive_ranks)
  if positive_ranks.ndim != 2 or not len(positive_ranks):
    raise ValueError(
      f'ranks of positives: shape {positive_ranks.shape}, expected [Q, P], Q > 0'
    )
  if positive_ranks.size and positive_ranks.max() >= gallery_size:
    raise ValueError(
      f'ranks of positives: {positive_ranks.max()} in a gallery of '
      f'{gallery_size}; ranks are 0-based'
    )
  precision = average_precision(positive_ranks, ap=ap)
  first = first_rank(positive_ranks)
  found = first >= 0
  cmc = np.cumsum(np.bincount(first[found], minlength=gallery_size))
  cmc = cmc / len(first)
  recall_at = lambda k: float(cmc[min(k, gallery_size) - 1]) if k else 0.0
  one_percent = percent_rank(gallery_size, percent_index)
  hit = None if forgiving_ranks is None else first_rank(forgiving_ranks) == 0
  penalty = inverse_penalty(positive_ranks).mean() if inp else None
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
    hit_rate=None if hit is None else float(hit.mean()),
    mean_inp=None if penalty is None else float(penalty),
    first_rank=first if per_query else None,
    query_average_precision=precision if per_query else None,
    query_hit=hit if per_query else None,
  )


def first_rank(positive_ranks: np.ndarray) -> np.ndarray:
  """Lowest rank [Q] int32 of each query's positives [Q, P]; -1 if it has none."""
  missing = np.iinfo(np.int32).max
  filled = np.where(positive_ranks < 0, missing, positive_ranks)
  first = filled.min(axis=1, initial=missing)
  return np.where(first < missing, first, -1).astype(np.int32)


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


def inverse_penalty(positive_ranks: np.ndarray) -> np.ndarray:
  """How deep one must look to find every positive: INP = n / (r_last + 1).

  n is the number of a query's positives, r_last the 0-based rank of the last;
  mINP is the mean over all queries. No system of this field publishes it.

  Args:
    positive_ranks: [Q, P] integers, -1 fills; as in `summarize`.

  Returns:
    [Q] float64; 0 for queries without positives.
  """
  positive_ranks = np.asarray(positive_ranks)
  last = positive_ranks.max(axis=1, initial=-1)
  return (positive_ranks >= 0).sum(axis=1) / np.maximum(last + 1, 1)


def percent_rank(gallery_size: int, percent_index: PercentIndex) -> int:
  """The k of recall@1%.

  'university': CMC at the 0-based index round(0.01 G), so k is one more
    (University-1652, LPN, PLCD, Video2BEV, Sample4Geo on University-1652).
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


def check_choice(name: str, value: str, valid: Sequence[str]) -> None:
  """Raises for an option that does not exist."""
  if value not in valid:
    raise ValueError(f'{name} {value!r}: expected one of {tuple(valid)}')


def check_ranks(ranks: Sequence[int]) -> None:
  """Raises for the k of recall@k that make no sense."""
  if not len(ranks) or min(ranks) < 1:
    raise ValueError(f'ranks {ranks!r}: expected integers from 1')
