"""What an evaluator found, and its files in `eval/` of the workdir."""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cvgl_jax import writer
from cvgl_jax.retrieval import evaluation, metrics


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
    positives: [Q, P] or [Q] indices into `gallery`, -1 fills: the right answers
      where they are listed; None: the gallery entries of the query's place.
    semi_positives: [Q, S] the same for entries that show the place off their
      middle; None: not known.
    error_m: [Q] float64, metres from the best answer to the query; None: not
      measured.
  """

  settings: Mapping[str, Any]
  metrics: Mapping[str, float]
  result: metrics.RankingResult
  query: Side
  gallery: Side
  top_scores: np.ndarray
  top_rows: np.ndarray
  positives: np.ndarray | None = None
  semi_positives: np.ndarray | None = None
  error_m: np.ndarray | None = None

  def write(self, workdir: str, name: str, *, step: int) -> None:
    """Writes `eval/<name>.json` and `eval/<name>.npz`, each at once.

    The .npz holds for every query its place, path, row, top rows and scores,
    rank of the first positive (-1: none) and AP, and what is known of listed
    answers and errors in metres; place, path and row of the gallery; and the
    features of some places. Only process 0 writes.

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
    if self.settings['answer_file']:
      writer.replace_text(folder / f'{name}_answer.txt', self._answer_text())

  def _answer_text(self) -> str:
    return evaluation.answer_text(
      self.top_rows,
      query_paths=self.query.path,
      gallery_paths=self.gallery.path,
      names_file=self.settings['query_names'],
      challenge=self.settings['answer_file'],
    )

  def _arrays(self) -> dict[str, np.ndarray]:
    arrays = {
      'top_rows': self.top_rows,
      'top_scores': self.top_scores,
      'first_rank': self.result.first_rank,
      'average_precision': self.result.query_average_precision,
    }
    if self.positives is not None:
      arrays['positives'] = self.positives.reshape(len(self.top_rows), -1)
    for name in ('semi_positives', 'error_m'):
      if getattr(self, name) is not None:
        arrays[name] = getattr(self, name)
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
