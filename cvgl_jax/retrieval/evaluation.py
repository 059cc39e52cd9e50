"""From features and ground truth to metrics and lists of the best answers.

`rank` puts the parts of this package together in the way of a published
evaluator, which is named by `Rules`, with or without re-ranking. Both the
evaluators of a run and `main.py evaluate --features` go through it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cvgl_jax.retrieval import features as feature_rows
from cvgl_jax.retrieval import (
  metrics,
  multiview,
  ranking,
  ranks,
  refinement,
  rerank_sparse,
  search,
  truth,
)
from cvgl_jax.retrieval import rerank as reranking
from cvgl_jax.retrieval.files import submission

Method = Literal['none', 'gnn', 'k_reciprocal']
Fusion = Literal['mean', 'mrm']
METHODS = ('none', 'gnn', 'k_reciprocal')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What published evaluators do differently.

  Attributes:
    ranks: the k of recall@k.
    percent_index: see `metrics.percent_rank`.
    ap: see `metrics.average_precision`.
    ties: see `ranking.evaluate_ranking`.
    similarity: 'cosine', or 'dot' for features as they are.
    junk_distractors: gallery entries of places that no query shows are taken
      out of the ranking, as Sample4Geo does on University-1652; the official
      protocol keeps them.
  """

  ranks: tuple[int, ...] = (1, 5, 10)
  percent_index: metrics.PercentIndex = 'university'
  ap: metrics.AveragePrecision = 'trapezoid'
  ties: metrics.Ties = 'lower'
  similarity: feature_rows.Similarity = 'cosine'
  junk_distractors: bool = False

  @property
  def list_ties(self) -> search.Ties:
    """The tie rule of lists, in which no entry is a right answer yet."""
    return 'higher' if self.ties == 'higher' else 'lower'


# Where published evaluators differ; whatever else they do is an option.
_UNIVERSITY = Rules()
_CVUSA = Rules(percent_index='floor', ties='optimistic')
PROTOCOLS = {
  'university1652': _UNIVERSITY,
  'lpn': _UNIVERSITY,
  'plcd': _UNIVERSITY,
  'pfed': _UNIVERSITY,
  # Means of views are ranked by their dot product, as they are.
  'video2bev': dataclasses.replace(_UNIVERSITY, similarity='dot'),
  # Distractors are taken out of the gallery (Game4Loc too).
  'sample4geo_university': dataclasses.replace(
    _UNIVERSITY, junk_distractors=True
  ),
  'sample4geo': _CVUSA,
  'transgeo': _CVUSA,
  'frgeo': _CVUSA,
  'vigor': dataclasses.replace(_CVUSA, percent_index='floor_plus_one'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranking:
  """How the first ranking is improved.

  Attributes:
    method: 'none', 'gnn' or 'k_reciprocal'; see `rerank`.
    k1: size of the neighbourhoods; None takes the method's default.
    k2: neighbours that are fused; None takes the method's default.
    candidates: re-rank so many of the best, with `rerank_sparse`; 0 re-ranks
      the whole gallery, in (Q + G)^2 memory.
  """

  method: Method = 'none'
  k1: int | None = None
  k2: int | None = None
  candidates: int = 0

  def __post_init__(self):
    metrics.check_choice('rerank', self.method, METHODS)
    if self.candidates < 0:
      raise ValueError(
        f'rerank_candidates {self.candidates}: expected at least 0 (0: all)'
      )
    options = (self.k1, self.k2, self.candidates or None)
    if self.method == 'none' and any(value is not None for value in options):
      raise ValueError(
        'rerank_k1, rerank_k2 and rerank_candidates need a rerank method: '
        "'gnn' or 'k_reciprocal'"
      )

  @property
  def settings(self) -> dict[str, int]:
    """k1 and k2, where they are not left to the method."""
    chosen = {'k1': self.k1, 'k2': self.k2}
    return {name: k for name, k in chosen.items() if k is not None}


class Ranked(NamedTuple):
  """Metrics and lists.

  Attributes:
    result: with per-query arrays; None without ground truth.
    best: [Q, K] the best gallery rows, junk among them.
  """

  result: metrics.RankingResult | None
  best: search.TopK


class Merged(NamedTuple):
  """One feature for every place.

  Attributes:
    features: [K, D] float32.
    place: [K] the places, ascending.
    row: [K] the first row of each.
  """

  features: np.ndarray
  place: np.ndarray
  row: np.ndarray


def rank(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  answers: dict[str, np.ndarray] | None,
  rules: Rules,
  rerank: Reranking = Reranking(),
  top: int = 10,
) -> Ranked:
  """Ranks a gallery for every query.

  Args:
    query: [Q, D] features, in memory or memory-mapped.
    gallery: [G, D] features, the same.
    answers: what `ranking.evaluate_ranking` takes as ground truth:
      query_place and gallery_place, or positives; and semi_positives if there
      are any. None: only the lists are made.
    rules: of the metrics.
    rerank: how the first ranking is improved.
    top: entries in the lists.

  Returns:
    `Ranked`, K = min(top, G).

  Raises:
    ValueError: options that do not go together, too little memory, features
      that cannot be ranked, ground truth that does not fit.
  """
  if rerank.method == 'none':
    best = search.top_k(
      query,
      gallery,
      k=top,
      similarity=rules.similarity,
      ties=rules.list_ties,
    )
    if answers is None:
      return Ranked(None, best)
    result = ranking.evaluate_ranking(
      query,
      gallery,
      similarity=rules.similarity,
      **_answer_options(answers, rules),
      **_metric_options(rules),
      ties=rules.ties,
    )
    return Ranked(result, best)
  if rules.similarity != 'cosine':
    raise ValueError(
      f're-ranking compares directions: similarity {rules.similarity!r} has no '
      "re-ranked form; use 'cosine'"
    )
  if rerank.candidates:
    return _rank_candidates(
      query, gallery, answers=answers, rules=rules, rerank=rerank, top=top
    )
  if rerank.method == 'gnn':
    scores = reranking.gnn(query, gallery, **rerank.settings)
  else:
    scores = -reranking.k_reciprocal(query, gallery, **rerank.settings)
  return rank_scores(scores, answers=answers, rules=rules, top=top)


def rank_scores(
  scores: np.ndarray,
  *,
  answers: dict[str, np.ndarray] | None,
  rules: Rules,
  top: int = 10,
) -> Ranked:
  """`rank` of given scores [Q, G], the higher the better."""
  best = search.top_k_scores(scores, k=top, ties=rules.list_ties)
  if answers is None:
    return Ranked(None, best)
  result = ranking.evaluate_scores(
    scores,
    **_answer_options(answers, rules),
    **_metric_options(rules),
    ties=rules.ties,
  )
  return Ranked(result, best)


def merge(
  features: np.ndarray, place: np.ndarray, *, fusion: Fusion, unit: bool = True
) -> Merged:
  """All features of a place as one; see `multiview`.

  Args:
    features: [N, D].
    place: [N] integers.
    fusion: 'mean', or 'mrm' for PFED's multi-view refinement.
    unit: divide means by their norm.
  """
  _, row = np.unique(place, return_index=True)
  if fusion == 'mrm':
    merged = multiview.refine_by_place(
      features, place, settings=refinement.Refinement()
    )
  else:
    merged = multiview.mean_by_place(features, place, normalize=unit)
  return Merged(merged.features, merged.place, row)


def answer_text(
  top_rows: np.ndarray,
  *,
  query_paths: Sequence[str] | None,
  gallery_paths: Sequence[str],
  names_file: str = '',
  challenge: submission.Challenge = '160k',
) -> str:
  """The answer file of a challenge; see `submission`.

  Args:
    top_rows: [Q, K] gallery rows, best first, K >= 10.
    query_paths: [Q]; only needed with `names_file`.
    gallery_paths: [G].
    names_file: the challenge's list of query file names, which says the order
      of the lines; '' keeps that of `top_rows`.
    challenge: '160k' or '160k_wx'.

  Raises:
    ValueError: see `submission.challenge_answer`.
  """
  gallery_paths = [str(path) for path in gallery_paths]
  if names_file:
    return submission.challenge_answer(
      top_rows,
      query_paths=[str(path) for path in query_paths],
      gallery_paths=gallery_paths,
      names=submission.read_names(names_file),
      challenge=challenge,
    )
  return submission.answer(
    top_rows[:, : submission.LABELS_PER_LINE],
    [submission.label(path) for path in gallery_paths],
    separator=submission.SEPARATORS[challenge],
  )


def _answer_options(answers, rules) -> dict[str, Any]:
  return {**answers, 'ignore_distractors': rules.junk_distractors}


def _metric_options(rules: Rules) -> dict[str, Any]:
  return {
    'ranks': rules.ranks,
    'percent_index': rules.percent_index,
    'ap': rules.ap,
    'per_query': True,
  }


def _rank_candidates(query, gallery, *, answers, rules, rerank, top) -> Ranked:
  """Re-ranks the best of every query; the others keep their places.

  Optimistic ties would need the re-ranked score of every entry; here the lower
  row stands first.
  """
  ties = rules.list_ties
  count = min(rerank.candidates, len(gallery))
  before = search.top_k(query, gallery, k=max(count, top), ties=ties)
  by_graph = rerank.method == 'gnn'
  k1 = rerank.k1 or (26 if by_graph else 20)
  near = rerank_sparse.neighbours(query, gallery, k=k1 if by_graph else k1 + 1)
  candidates = before.rows[:, :count]
  if by_graph:
    scores = rerank_sparse.gnn(near, candidates, **rerank.settings)
  else:
    scores = -rerank_sparse.k_reciprocal(near, candidates, **rerank.settings)
  after = reranking.rerank_candidates(before, scores)
  best = search.TopK(after.scores[:, :top], after.rows[:, :top])
  if answers is None:
    return Ranked(None, best)
  known = truth.ground_truth(
    (len(query), len(gallery)), **_answer_options(answers, rules)
  )

  def ranks_without(exclude=None):
    return ranks.rank_of_positive(
      query, gallery, known.positives, ties=ties, exclude=exclude
    )

  everything = ranks_without()
  # Looked up, not counted, in the lists: near ties may round otherwise there.
  position = _positions(known.positives, after.rows)
  listed = position >= 0
  moved = np.where(
    listed, position, np.maximum(everything, after.rows.shape[1])
  )

  def without(exclude):
    """How many of these rows stand before each positive."""
    out = (
      exclude[after.rows]
      if exclude.ndim == 1
      else truth.is_listed(after.rows, exclude)
    )
    ahead = np.cumsum(np.pad(out, [(0, 0), (1, 0)]), axis=1)  # [Q, T + 1]
    within = np.take_along_axis(ahead, np.where(listed, position, 0), axis=1)
    # Behind the candidates nothing has moved.
    return np.where(listed, within, everything - ranks_without(exclude))

  if known.junk.any():
    moved = moved - without(known.junk)
  fill = known.positives < 0
  forgiving = None
  if known.semi_positives is not None:
    forgiving = np.where(fill, -1, moved - without(known.semi_positives))
  found = np.where(fill, -1, moved)
  result = metrics.summarize(
    found,
    len(gallery),
    forgiving_ranks=forgiving,
    **_metric_options(rules),
  )
  return Ranked(result, best)


def _positions(rows: np.ndarray, lists: np.ndarray) -> np.ndarray:
  """Where each of the rows [Q, P] stands in its query's list [Q, T], or -1."""
  found = np.full(rows.shape, -1)
  for p in range(rows.shape[1]):
    equal = (lists == rows[:, p, None]) & (rows[:, p, None] >= 0)
    found[:, p] = np.where(equal.any(axis=1), equal.argmax(axis=1), -1)
  return found
