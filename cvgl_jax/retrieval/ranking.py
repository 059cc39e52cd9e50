"""Evaluation of a ranking: features or scores in, one named result out.

`evaluate_ranking` serves every data set of the field:

* University-1652 and its family, SUES-200: places.
* CVUSA, CVACT: one row each, `positives=labels`, `ties='optimistic'`,
  `percent_index='floor'`; so do FRGeo, TransGeo and Sample4Geo.
* VIGOR: the same with the three `semi_positives`, for the hit rate.
* CVACT_test by distance: `positives=metres.rows_within(utm, utm, radius_m=5)`.
* multi-query: one query per place from `multiview`.

`evaluate_scores` does the same for scores that are no dot product, and
`evaluate_metres` measures how far the best answers lie from the truth.

Differs from the published evaluators: no loop over queries and no sort, ties
have a rule (there, mostly the order of an unstable sort), and nothing is ranked
on NaN (there, a network that returns NaN finds everything).
"""

from collections.abc import Sequence

import jax
import numpy as np

from cvgl_jax.retrieval import counting, features, metres, metrics, search
from cvgl_jax.retrieval import ranks as rank_counts
from cvgl_jax.retrieval import truth as truths


def evaluate_ranking(
  query: np.ndarray,
  gallery: np.ndarray,
  query_place: np.ndarray | None = None,
  gallery_place: np.ndarray | None = None,
  *,
  positives: np.ndarray | None = None,
  semi_positives: np.ndarray | None = None,
  ranks: Sequence[int] = (1, 5, 10),
  percent_index: metrics.PercentIndex = 'university',
  ap: metrics.AveragePrecision = 'trapezoid',
  ties: metrics.Ties = 'lower',
  junk: np.ndarray | None = None,
  ignore_distractors: bool = False,
  inp: bool = False,
  per_query: bool = False,
  similarity: features.Similarity = 'cosine',
  query_chunk: int | None = None,
  gallery_chunk: int = 65536,
  mesh: jax.sharding.Mesh | None = None,
) -> metrics.RankingResult:
  """Ranks a gallery for every query and measures where the positives are.

  Positives are the gallery rows of the query's place, or the rows that
  `positives` lists. Memory beyond the features: see `ranks.count`; never of the
  size Q x G.

  Args:
    query: [Q, D] features, any float dtype, memory-mapped or not; ranked in
      float32.
    gallery: [G, D] features, the same.
    query_place: [Q] integers.
    gallery_place: [G] integers; -1 marks junk.
    positives: [Q, P] or [Q] integers instead of places, rows of the gallery;
      -1 fills.
    semi_positives: [Q, S] rows that show the place too, -1 fills: ordinary
      wrong answers, but the hit rate forgives them.
    ranks: the k of recall@k; k > G counts the whole gallery.
    percent_index: see `metrics.percent_rank`.
    ap: see `metrics.average_precision`.
    ties: equal scores rank by gallery row, 'lower' or 'higher' first (the
      latter is a stable ascending sort reversed, as University-1652's);
      'optimistic' ranks a positive before everything that it ties with (FRGeo,
      Sample4Geo).
    junk: bool [G], or [Q, G] where it depends on the query; True takes the
      entry out of the ranking, in addition to places of -1.
    ignore_distractors: take the rows of places without a query out of the
      ranking, as Sample4Geo does on University-1652; the official protocol
      keeps them.
    inp: measure mINP too, see `metrics.inverse_penalty`.
    per_query: keep the per-query arrays in the result.
    similarity: 'cosine' or 'dot'.
    query_chunk: see `ranks.count`.
    gallery_chunk: see `ranks.count`.
    mesh: see `ranks.count`.

  Returns:
    `metrics.RankingResult`.

  Raises:
    ValueError: empty sides, mismatched dimensions or lengths, non-integer
      places, unknown options, features that cannot be ranked.
  """
  _check_options(ranks, percent_index, ap, ties)
  pair = features.pair(query, gallery, similarity=similarity)
  size = (len(pair[0]), len(pair[1]))
  truth = truths.ground_truth(
    size,
    query_place,
    gallery_place,
    positives=positives,
    semi_positives=semi_positives,
    junk=junk,
    ignore_distractors=ignore_distractors,
  )
  counted = rank_counts.count(
    query,
    gallery,
    truth.positives,
    watched=_watched(truth),
    junk=truth.junk,
    similarity=similarity,
    ties=ties,
    query_chunk=query_chunk,
    gallery_chunk=gallery_chunk,
    mesh=mesh,
  )
  return _summary(
    truth,
    counted,
    ties,
    ranks=ranks,
    percent_index=percent_index,
    ap=ap,
    inp=inp,
    per_query=per_query,
  )


def evaluate_scores(
  scores: np.ndarray,
  query_place: np.ndarray | None = None,
  gallery_place: np.ndarray | None = None,
  *,
  positives: np.ndarray | None = None,
  semi_positives: np.ndarray | None = None,
  ranks: Sequence[int] = (1, 5, 10),
  percent_index: metrics.PercentIndex = 'university',
  ap: metrics.AveragePrecision = 'trapezoid',
  ties: metrics.Ties = 'lower',
  junk: np.ndarray | None = None,
  ignore_distractors: bool = False,
  inp: bool = False,
  per_query: bool = False,
) -> metrics.RankingResult:
  """`evaluate_ranking` of given scores [Q, G], the higher the better.

  For scores that are no dot product: re-ranked ones, or minus a distance. They
  are compared in their own dtype.

  Raises:
    ValueError: see `evaluate_ranking`; scores that are empty, not a matrix, or
      not finite.
  """
  _check_options(ranks, percent_index, ap, ties)
  scores = np.asarray(scores)
  if scores.ndim != 2 or not scores.size:
    raise ValueError(f'scores of shape {scores.shape}, expected [Q, G]')
  finite = np.isfinite(scores).all(axis=1)
  if not finite.all():
    rows = np.flatnonzero(~finite)
    raise ValueError(
      f'scores: NaN or infinite values in {len(rows)} of {len(scores)} query '
      f'rows (first: {rows[0]}); nothing is ranked on them'
    )
  truth = truths.ground_truth(
    scores.shape,
    query_place,
    gallery_place,
    positives=positives,
    semi_positives=semi_positives,
    junk=junk,
    ignore_distractors=ignore_distractors,
  )
  watched = _watched(truth)
  found, own = counting.on_host(
    [scores],
    [~truth.junk],
    np.concatenate([truth.positives, watched], axis=1),
    None,
    0,
    num_positives=truth.positives.shape[1],
    ties=ties,
  )
  split = truth.positives.shape[1]
  counted = rank_counts.Counted(
    np.where(truth.positives < 0, -1, found), own[:, :split], own[:, split:]
  )
  return _summary(
    truth,
    counted,
    ties,
    ranks=ranks,
    percent_index=percent_index,
    ap=ap,
    inp=inp,
    per_query=per_query,
  )


def evaluate_metres(
  query: np.ndarray,
  gallery: np.ndarray,
  query_latlon_deg: np.ndarray,
  gallery_latlon_deg: np.ndarray,
  *,
  offset_px: np.ndarray | None = None,
  metres_per_px: float = 0.114,
  thresholds_m: Sequence[float] = metres.THRESHOLDS_M,
  similarity: features.Similarity = 'cosine',
) -> metres.MetreResult:
  """How many metres the best gallery row of each query is off.

    predicted = latlon of the best row, shifted by the predicted offset
    accuracy(t) = 1/Q sum_q [great circle(predicted, truth) < t]

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    query_latlon_deg: [Q, 2] float64 latitude and longitude of the queries.
    gallery_latlon_deg: [G, 2] float64, of the centres of the gallery's tiles.
    offset_px: [Q, 2] predicted offset within the best tile, as VIGOR's label
      files list them (see `metres.shift_deg`); None predicts the centre, as
      SAFA, TransGeo and FRGeo do.
    metres_per_px: ground resolution of the tiles, for the offsets.
    thresholds_m: distances in metres; VIGOR's 1.1^(i/5), i = 1..499.
    similarity: 'cosine' or 'dot'.

  Returns:
    `metres.MetreResult`.

  Raises:
    ValueError: coordinates of another length than the features or not finite,
      features that cannot be ranked.
  """
  truth = metres.check_degrees(query_latlon_deg, 'query_latlon_deg')
  centre = metres.check_degrees(gallery_latlon_deg, 'gallery_latlon_deg')
  for name, side, points in (
    ('query', query, truth),
    ('gallery', gallery, centre),
  ):
    if len(side) != len(points):
      raise ValueError(
        f'{name}: {len(side)} feature rows but {len(points)} coordinates'
      )
  best = search.top_k(query, gallery, k=1, similarity=similarity).rows[:, 0]
  predicted = centre[np.asarray(best)]
  if offset_px is not None:
    if np.shape(offset_px) != predicted.shape:
      raise ValueError(
        f'offset_px: shape {np.shape(offset_px)}, expected {predicted.shape}'
      )
    predicted = metres.shift_deg(
      predicted, offset_px, metres_per_px=metres_per_px
    )
  error_m = metres.great_circle_m(predicted, truth)
  return metres.metre_accuracy(error_m, thresholds_m=thresholds_m)


def _check_options(ranks, percent_index, ap, ties) -> None:
  # Before anything is computed; `summarize` would find out at the end.
  metrics.check_ranks(ranks)
  metrics.check_choice('percent_index', percent_index, metrics.PERCENT_INDICES)
  metrics.check_choice('ap', ap, metrics.AVERAGE_PRECISIONS)
  metrics.check_choice('ties', ties, metrics.TIES)


def _watched(truth: truths.Truth) -> np.ndarray:
  """Rows whose scores tell how ranks change without them: [Q, E + S]."""
  semi = truth.semi_positives
  lists = [truth.exclude] if semi is None else [truth.exclude, semi]
  return np.concatenate(lists, axis=1)


def _summary(
  truth: truths.Truth,
  counted: rank_counts.Counted,
  ties: metrics.Ties,
  **options,
) -> metrics.RankingResult:
  """Takes excluded rows out of the ranks, and semi-positives for the hits."""
  missing = truth.positives < 0
  split = truth.exclude.shape[1]

  def without(found, rows, row_scores):
    before = counting.standing_before(
      truth.positives, counted.scores, rows, row_scores, ties=ties
    )
    return np.where(missing, -1, found - before)

  found = without(counted.ranks, truth.exclude, counted.watched[:, :split])
  forgiving = None
  if truth.semi_positives is not None:
    forgiving = without(found, truth.semi_positives, counted.watched[:, split:])
  return metrics.summarize(
    found, len(truth.junk), forgiving_ranks=forgiving, **options
  )
