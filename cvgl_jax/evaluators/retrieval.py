"""Retrieval between two splits: the tasks of the field.

Drone-view target localisation is (test_query_drone, test_gallery_satellite),
drone navigation (test_query_satellite, test_gallery_drone), and so on: a task
is nothing but two split names.

Source: layumi/University1652-Baseline `test.py`, `evaluate_gpu.py`, `demo.py`.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from cvgl_jax import writer
from cvgl_jax.data import stream
from cvgl_jax.evaluators import embedder as embedders
from cvgl_jax.retrieval import metrics, multiview, rerank, search

OpenSplit = Callable[[tuple[str, ...], str], stream.Split]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
  """One retrieval task; the fields are its config section.

  Attributes:
    query_split: such as 'test_query_drone'.
    gallery_split: such as 'test_gallery_satellite'.
    data_names: data sets to evaluate on; () takes the run's own.
    query_view: branch that embeds the queries; '' takes the split's view.
    gallery_view: the same for the gallery.
    flip: add the mirrored picture at test time.
    scales: picture scales at test time.
    cumulative: scales multiply up (as published), see `models/test_time`.
    multi_query: one query a place, the mean of its pictures' features.
    average_street: one gallery entry a place, if the gallery shows streets.
    ranks: the k of recall@k.
    percent_index: see `retrieval.metrics.percent_rank`.
    ap: see `retrieval.metrics.average_precision`.
    ties: see `retrieval.metrics.evaluate_ranking`.
    rerank: 'none', 'gnn' or 'k_reciprocal' (dense: (Q + G)^2 memory).
    rerank_k1: None takes the re-ranking's default.
    rerank_k2: None takes the re-ranking's default.
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
  ranks: tuple[int, ...] = (1, 5, 10)
  percent_index: metrics.PercentIndex = 'university'
  ap: metrics.AveragePrecision = 'trapezoid'
  ties: metrics.Ties = 'lower'
  rerank: Literal['none', 'gnn', 'k_reciprocal'] = 'none'
  rerank_k1: int | None = None
  rerank_k2: int | None = None
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

  @property
  def metric_names(self) -> tuple[str, ...]:
    """Names in `Evaluation.metrics`."""
    return (*(f'R@{k}' for k in self.ranks), 'R@1%', 'AP')

  @property
  def splits(self) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(data set names, split name) of what is read."""
    return tuple(
      (self.data_names, split)
      for split in (self.query_split, self.gallery_split)
    )

  def run(
    self, embedder: embedders.Embedder, open_split: OpenSplit
  ) -> 'Evaluation':
    """Embeds both splits, ranks, measures.

    Args:
      embedder: of the variables to evaluate.
      open_split: (data set names, split name) -> split; the names are
        `data_names`, so () must give the run's own data.

    Returns:
      `Evaluation`, the same on every process.

    Raises:
      ValueError: unknown splits, no common place, features that are not
        finite.
    """
    query = self._side(embedder, open_split(self.data_names, self.query_split))
    gallery = self._side(
      embedder, open_split(self.data_names, self.gallery_split), gallery=True
    )
    if not np.isin(query.place, gallery.place).any():
      raise ValueError(
        f'{self.query_split} and {self.gallery_split} have no place in common: '
        'no query has an answer'
      )
    result, best = self._rank(query, gallery)
    return Evaluation(
      settings=dataclasses.asdict(self),
      metrics=result.report(),
      result=result,
      query=query,
      gallery=gallery,
      top_scores=best.scores,
      top_rows=best.rows,
    )

  def _side(self, embedder, split, *, gallery: bool = False) -> 'Side':
    features = embedder(
      split,
      view=(self.gallery_view if gallery else self.query_view) or None,
      flip=self.flip,
      scales=self.scales,
      cumulative=self.cumulative,
    )
    row = np.arange(len(split))
    place = np.asarray(split.place)
    merged = (
      self.average_street and split.view in ('street', 'google')
      if gallery
      else self.multi_query
    )
    if merged:
      # A place is shown by its first picture.
      _, row = np.unique(place, return_index=True)
      features, place = multiview.mean_by_place(features, place, normalize=True)
    path = np.asarray(split.path, str)[row]
    return Side(features=features, place=place, row=row, path=path)

  def _rank(self, query, gallery) -> tuple[metrics.RankingResult, search.TopK]:
    options = {
      'ranks': self.ranks,
      'percent_index': self.percent_index,
      'ap': self.ap,
      'ties': self.ties,
      'per_query': True,
    }
    ties = 'higher' if self.ties == 'higher' else 'lower'
    if self.rerank == 'none':
      result = metrics.evaluate_ranking(
        query.features, gallery.features, query.place, gallery.place, **options
      )
      best = search.top_k(
        query.features, gallery.features, k=self.top, ties=ties
      )
      return result, best
    chosen = {'k1': self.rerank_k1, 'k2': self.rerank_k2}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if self.rerank == 'gnn':
      scores = rerank.gnn(query.features, gallery.features, **chosen)
    else:
      scores = -rerank.k_reciprocal(query.features, gallery.features, **chosen)
    result = metrics.evaluate_scores(
      scores, query.place, gallery.place, **options
    )
    return result, search.top_k_scores(scores, k=self.top, ties=ties)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
  """The queries or the gallery of an evaluation.

  Attributes:
    features: [N, D] float32.
    place: [N] int64.
    row: [N] row of the split that shows the entry.
    path: [N] text, the path of that row.
  """

  features: np.ndarray
  place: np.ndarray
  row: np.ndarray
  path: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What an evaluator found.

  Attributes:
    settings: the evaluator's fields.
    metrics: 'R@1', ..., 'AP' in percent.
    result: the same as fractions, with per-query arrays.
    query: Q queries.
    gallery: G gallery entries.
    top_scores: [Q, K] float32.
    top_rows: [Q, K] int32, indices into `gallery`, best first.
  """

  settings: Mapping[str, Any]
  metrics: Mapping[str, float]
  result: metrics.RankingResult
  query: Side
  gallery: Side
  top_scores: np.ndarray
  top_rows: np.ndarray

  def write(self, workdir: str, name: str, *, step: int) -> None:
    """Writes `eval/<name>.json` and `eval/<name>.npz`, each at once.

    The .npz holds for every query its place, path, row, top rows and scores,
    rank of the first positive (-1: none) and AP; place, path and row of the
    gallery; and the features of some places. Only process 0 writes.

    Args:
      workdir: of the run.
      name: of the evaluator in the config.
      step: of the variables.
    """
    if jax.process_index() != 0:
      return
    folder = pathlib.Path(workdir) / 'eval'
    arrays = self._arrays()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    writer.replace_bytes(folder / f'{name}.npz', buffer.getvalue())
    summary = {
      'name': name,
      'step': int(step),
      'metrics': dict(self.metrics),
      'published': dict(self.settings['published']),
      'num_queries': self.result.num_queries,
      'num_orphans': self.result.num_orphans,
      'gallery_size': self.result.gallery_size,
      'gallery_places': len(np.unique(self.gallery.place)),
      'percent_rank': self.result.percent_rank,
      'settings': dict(self.settings),
    }
    text = json.dumps(summary, indent=2, default=list) + '\n'
    writer.replace_text(folder / f'{name}.json', text)

  def _arrays(self) -> dict[str, np.ndarray]:
    arrays = {
      'top_rows': self.top_rows,
      'top_scores': self.top_scores,
      'first_rank': self.result.first_rank,
      'average_precision': self.result.query_average_precision,
    }
    places = np.intersect1d(self.query.place, self.gallery.place)
    count = min(self.settings['sample_places'], len(places))
    picks = np.linspace(0, len(places) - 1, count).round().astype(int)
    for name, side in (('query', self.query), ('gallery', self.gallery)):
      sample = _first_of_each(side.place, places[picks])
      arrays |= {
        f'{name}_place': side.place,
        f'{name}_path': side.path,
        f'{name}_row': side.row,
        f'{name}_sample': sample,
        f'{name}_sample_features': side.features[sample],
      }
    return arrays


def _first_of_each(place: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Indices of at most 10 entries of each chosen place."""
  each = [np.flatnonzero(place == p)[:10] for p in chosen]
  return np.concatenate([np.zeros(0, np.int64), *each])
