"""Retrieval between two splits: the tasks of the field.

Drone-view target localisation is (test_query_drone, test_gallery_satellite),
drone navigation (test_query_satellite, test_gallery_drone), and so on: a task
is nothing but two split names.

Source: layumi/University1652-Baseline `test.py`, `evaluate_gpu.py`, `demo.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from cvgl_jax.data import stream
from cvgl_jax.evaluators import embedder as embedders
from cvgl_jax.evaluators import result
from cvgl_jax.retrieval import evaluation, metres, metrics
from cvgl_jax.retrieval.files import submission

OpenSplit = Callable[[tuple[str, ...], str], stream.Split]
# How the pictures of a place become one, and what that adds to metric names.
_FUSIONS: dict[evaluation.Fusion, str] = {'mean': ' mean', 'mrm': ' w/ MRM'}
HIT_RATE = 'hit rate'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
  """One retrieval task; the fields are its config section.

  Attributes:
    query_split: such as 'test_query_drone'.
    gallery_split: such as 'test_gallery_satellite'; 'test_gallery_drone_low' is
      the part of a drone split at that altitude (`data.flight`).
    data_names: data sets to evaluate on; () takes the run's own.
    query_view: branch that embeds the queries; '' takes the split's view.
    gallery_view: the same for the gallery.
    flip: add the mirrored picture at test time.
    scales: picture scales at test time.
    cumulative: scales multiply up (as published), see `models/test_time`.
    multi_query: one query a place, the mean of its pictures' features.
    average_street: one query or gallery entry a place on a side that shows
      streets.
    refine: 'query' or 'gallery': measure with all pictures of a place on that
      side as one too, by their mean ('R@1 mean') and by the multi-view
      refinement of PFED ('R@1 w/ MRM'). They stand beside the plain numbers:
      the task is another one.
    ranks: the k of recall@k.
    percent_index: see `retrieval.metrics.percent_rank`.
    ap: see `retrieval.metrics.average_precision`.
    ties: see `retrieval.ranking.evaluate_ranking`.
    junk_distractors: see `retrieval.evaluation.Rules`.
    within_metres: right is what lies within so many metres of the query
      (CVACT_test: 5), instead of what has its place; None: off.
    metre_errors: measure how far the best answers are off ('median error m',
      'within 5 m %'), from the middle of the answer's picture to the query.
    rerank: 'none', 'gnn' or 'k_reciprocal'.
    rerank_k1: None takes the re-ranking's default.
    rerank_k2: None takes the re-ranking's default.
    rerank_candidates: re-rank so many of the best; 0: the whole gallery, in
      (Q + G)^2 memory.
    answer_file: '160k' or '160k_wx': write eval/<name>_answer.txt for that
      challenge's server.
    query_names: the challenge's list of query file names; '' keeps the order of
      the split.
    published: published numbers of this task by metric name, for the report.
    published_source: where they stand.
    top: gallery entries kept for every query.
    sample_places: places whose features are kept for the t-SNE figure.
  """

  query_split: str
  gallery_split: str
  data_names: tuple[str, ...] = ()
  query_view: str = ''
  gallery_view: str = ''
  flip: bool = True
  scales: tuple[float, ...] = (1.0,)
  cumulative: bool = True
  multi_query: bool = False
  average_street: bool = False
  refine: Literal['none', 'query', 'gallery'] = 'none'
  ranks: tuple[int, ...] = (1, 5, 10)
  percent_index: metrics.PercentIndex = 'university'
  ap: metrics.AveragePrecision = 'trapezoid'
  ties: metrics.Ties = 'lower'
  junk_distractors: bool = False
  within_metres: float | None = None
  metre_errors: bool = False
  rerank: evaluation.Method = 'none'
  rerank_k1: int | None = None
  rerank_k2: int | None = None
  rerank_candidates: int = 0
  answer_file: Literal['', '160k', '160k_wx'] = ''
  query_names: str = ''
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  published_source: str = ''
  top: int = 10
  sample_places: int = 20

  def __post_init__(self):
    if self.top < 1 or self.sample_places < 0:
      raise ValueError(
        f'top {self.top} must be at least 1, sample_places '
        f'{self.sample_places} at least 0'
      )
    if not self.scales or min(self.scales) <= 0:
      raise ValueError(f'scales {self.scales}: expected positive numbers')
    if not self.ranks or min(self.ranks) < 1:
      raise ValueError(f'ranks {self.ranks}: expected integers from 1')
    if self.refine == 'query' and self.multi_query:
      raise ValueError('multi_query leaves refine=query nothing to fuse')
    merges = self.multi_query or self.refine != 'none'
    if self.within_metres is not None and merges:
      raise ValueError(
        'within_metres judges pictures; multi_query and refine have places'
      )
    if self.answer_file and self.top < submission.LABELS_PER_LINE:
      raise ValueError(
        f'answer_file needs top >= {submission.LABELS_PER_LINE}, got {self.top}'
      )
    if self.query_names and not self.answer_file:
      raise ValueError('query_names belongs to answer_file')
    _ = self.reranking  # checks its own options

  @property
  def rules(self) -> evaluation.Rules:
    """The options of the metrics."""
    names = [field.name for field in dataclasses.fields(evaluation.Rules)]
    own = {name: getattr(self, name) for name in names if hasattr(self, name)}
    return evaluation.Rules(**own)

  @property
  def reranking(self) -> evaluation.Reranking:
    """The options of the re-ranking."""
    return evaluation.Reranking(
      method=self.rerank,
      k1=self.rerank_k1,
      k2=self.rerank_k2,
      candidates=self.rerank_candidates,
    )

  @property
  def metric_names(self) -> tuple[str, ...]:
    """Names of the metrics that are better when higher, the first by default.

    'hit rate', the last, is measured where the queries list semi-positives;
    `check` says whether they do. Errors in metres are not among them.
    """
    plain = (*(f'R@{k}' for k in self.ranks), 'R@1%', 'AP')
    suffixes = ('',) if self.refine == 'none' else ('', *_FUSIONS.values())
    names = tuple(name + suffix for suffix in suffixes for name in plain)
    if self.metre_errors:
      names = (*names, *metres.WITHIN_M)
    return (*names, HIT_RATE) if self._judges_pictures else names

  @property
  def splits(self) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(data set names, split name) of what is read."""
    return tuple(
      (self.data_names, split)
      for split in (self.query_split, self.gallery_split)
    )

  def embedding(self, side: Literal['query', 'gallery']) -> dict[str, Any]:
    """How the pictures of a side are embedded: options of `Embedder`."""
    return {
      'view': getattr(self, f'{side}_view') or None,
      'flip': self.flip,
      'scales': self.scales,
      'cumulative': self.cumulative,
    }

  @property
  def _judges_pictures(self) -> bool:
    """Whether lists of right pictures can be used, if the queries have them."""
    merges = self.multi_query or self.refine != 'none'
    return self.within_metres is None and not merges

  def check(self, open_split: OpenSplit, *, metric: str = '') -> None:
    """Finds out whether `run` can measure what is asked, before hours of it.

    Args:
      open_split: as for `run`.
      metric: one that must be measured, such as 'hit rate'; '' for any.

    Raises:
      ValueError: a split is missing; metres are asked for and pictures have no
        coordinates; the metric is not one of this evaluator on these splits.
    """
    splits = self._open(open_split)
    if self.within_metres is not None or self.metre_errors:
      self._coordinates(**splits)
    if metric and metric not in self.metric_names:
      raise ValueError(
        f'no metric {metric!r}; there are {list(self.metric_names)}'
      )
    asking = splits['query']
    merged = any(self._is_merged(split, name) for name, split in splits.items())
    if metric == HIT_RATE and (
      merged
      or getattr(asking, 'semi_positives', None) is None
      or asking.gallery != self.gallery_split
    ):
      raise ValueError(
        f'{metric!r} needs queries that list semi-positives of '
        f'{self.gallery_split}, as those of VIGOR do; {self.query_split} lists '
        'none'
      )

  def _open(self, open_split: OpenSplit) -> dict[str, stream.Split]:
    return {
      'query': open_split(self.data_names, self.query_split),
      'gallery': open_split(self.data_names, self.gallery_split),
    }

  def run(
    self, embedder: embedders.Embedder, open_split: OpenSplit
  ) -> result.Evaluation:
    """Embeds both splits, ranks, measures.

    Right answers are what lies within `within_metres`; or the rows that the
    query split lists of this gallery (`positive`, with `semi_positives` for the
    hit rate); or the gallery pictures of the query's place.

    Args:
      embedder: of the variables to evaluate.
      open_split: (data set names, split name) -> split; the names are
        `data_names`, so () must give the run's own data.

    Returns:
      `result.Evaluation`, the same on every process.

    Raises:
      ValueError: unknown splits, no query with an answer, features that are not
        finite.
    """
    splits = self._open(open_split)
    query, gallery = (
      self._side(embedder, split, name) for name, split in splits.items()
    )
    answers = self._answers(query, gallery, splits=splits)
    ranked = self._rank(query, gallery, answers)
    if ranked.result.num_orphans == ranked.result.num_queries:
      raise ValueError(
        f'{self.query_split} and {self.gallery_split} have no place in common: '
        'no query has an answer. (For a challenge whose answers are secret: '
        '`main.py embed`, then `main.py evaluate --features` with '
        '--save_answers)'
      )
    numbers, error_m = ranked.result.report(), None
    if self.metre_errors:
      found = self._metre_errors(**splits, best=(query, gallery, ranked.best))
      numbers |= found.report()
      error_m = found.error_m
    if self.refine != 'none':
      numbers |= self._refined(query, gallery, answers)
    return result.Evaluation(
      settings=dataclasses.asdict(self),
      metrics=numbers,
      result=ranked.result,
      query=query,
      gallery=gallery,
      top_scores=ranked.best.scores,
      top_rows=ranked.best.rows,
      positives=answers.get('positives'),
      semi_positives=answers.get('semi_positives'),
      error_m=error_m,
    )

  def _side(self, embedder, split, name) -> result.Side:
    features = embedder(split, **self.embedding(name))
    row = np.arange(len(split))
    place = np.asarray(split.place)
    if self._is_merged(split, name):
      # A place is shown by its first picture.
      features, place, row = evaluation.merge(features, place, fusion='mean')
    path = np.asarray(split.path, str)[row]
    return result.Side(features=features, place=place, row=row, path=path)

  def _is_merged(self, split, name) -> bool:
    """Whether a side has one entry a place, in the order of the places."""
    street = self.average_street and split.view in ('street', 'google')
    return street or (self.multi_query and name == 'query')

  def _answers(self, query, gallery, *, splits) -> dict[str, np.ndarray]:
    """The ground truth of what is ranked."""
    merged = any(self._is_merged(split, name) for name, split in splits.items())
    if self.within_metres is not None:
      if merged:
        raise ValueError('within_metres judges pictures, not means of places')
      kind, points = self._coordinates(**splits)
      rows = metres.rows_within(
        *points, radius_m=self.within_metres, coordinates=kind
      )
      return {'positives': rows}
    asking = splits['query']
    positive = getattr(asking, 'positive', None)
    if positive is None or asking.gallery != self.gallery_split or merged:
      return {'query_place': query.place, 'gallery_place': gallery.place}
    answers = {'positives': positive}
    if asking.semi_positives is not None:
      answers['semi_positives'] = asking.semi_positives
    return answers

  def _coordinates(self, query, gallery):
    for kind, name in (('metres', 'utm_m'), ('degrees', 'latlon_deg')):
      points = [getattr(split, name, None) for split in (query, gallery)]
      known = [x is not None and np.isfinite(x).all() for x in points]
      if all(known):
        return kind, points
    raise ValueError(
      f'{self.query_split} and {self.gallery_split} have pictures without '
      'coordinates; within_metres and metre_errors need those of all'
    )

  def _metre_errors(self, query, gallery, *, best) -> metres.MetreResult:
    kind, (truth, centre) = self._coordinates(query, gallery)
    query_side, gallery_side, found = best
    truth = truth[query_side.row]
    predicted = centre[gallery_side.row[found.rows[:, 0]]]
    if kind == 'degrees':
      error_m = metres.great_circle_m(predicted, truth)
    else:
      error_m = np.linalg.norm(predicted - truth, axis=1)
    return metres.metre_accuracy(error_m)

  def _rank(self, query, gallery, answers) -> evaluation.Ranked:
    return evaluation.rank(
      query.features,
      gallery.features,
      answers=answers,
      rules=self.rules,
      rerank=self.reranking,
      top=self.top,
    )

  def _refined(self, query, gallery, answers) -> dict[str, float]:
    """Metrics with the pictures of a place as one."""
    if 'query_place' not in answers:
      raise ValueError(
        f'refine fuses places, but {self.query_split} lists its answers picture '
        'by picture'
      )
    numbers = {}
    for fusion, suffix in _FUSIONS.items():
      sides = {'query': query, 'gallery': gallery}
      one = evaluation.merge(
        sides[self.refine].features, sides[self.refine].place, fusion=fusion
      )
      sides[self.refine] = one
      ranked = self._rank(
        **sides,
        answers={f'{name}_place': side.place for name, side in sides.items()},
      )
      report = ranked.result.report()
      numbers |= {name + suffix: value for name, value in report.items()}
    return numbers
