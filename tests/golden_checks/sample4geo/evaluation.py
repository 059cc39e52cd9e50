"""Sample4Geo: recall, hit rate, nearest neighbours and the University rules."""

import numpy as np

from cvgl_jax.data import neighbours
from cvgl_jax.retrieval import features, ranking
from tests.golden_case import Case

RANKS = (1, 5, 10)
SIDES = ('query', 'reference')


def _evaluate(case: Case, positives: np.ndarray, **options):
  result = ranking.evaluate_ranking(
    case['in/query'],
    case['in/reference'],
    positives=positives,
    ranks=RANKS,
    percent_index='floor',
    ties='optimistic',
    per_query=True,
    **options,
  )
  case.equal('out/rank', result.first_rank)
  recalls = [100 * r for r in (*result.recall, result.recall_percent)]
  case.close('out/recalls', recalls, rtol=1e-6)
  return result


def _check_nearest(case: Case, keys: np.ndarray, names: np.ndarray) -> None:
  """For each key the references that look most like it, but itself."""
  k = case.scalar('in/neighbour_range')
  order = np.argsort(names)
  found = neighbours.most_similar(
    *(features.prepare(case[f'in/{side}'], side) for side in SIDES),
    k=k,
    own=order[np.searchsorted(names[order], keys)],
  )
  nearest = {}
  for key, rows in zip(keys.tolist(), found, strict=True):
    # A later query of the same key replaces the earlier one, in its place.
    nearest[key] = np.where(rows >= 0, names[rows], -1)
  case.equal('out/nearest_keys', list(nearest))
  case.equal('out/nearest', list(nearest.values()))


def check_one_to_one(case: Case) -> None:
  query, reference = case['in/query_labels'], case['in/reference_labels']
  order = np.argsort(reference)
  _evaluate(case, order[np.searchsorted(reference[order], query)])
  _check_nearest(case, query, reference)


def check_vigor(case: Case) -> None:
  labels = case['in/labels']
  positive, semi = labels[:, 0], labels[:, 1:]
  result = _evaluate(case, positive, semi_positives=semi)
  case.equal('out/hit', result.query_hit)
  case.close('out/hit_rate', 100 * result.hit_rate, rtol=1e-6)
  covers = ranking.evaluate_ranking(
    case['in/query'], case['in/reference'], positives=labels, ties='optimistic'
  )
  case.close('out/top1_covers_rate', 100 * covers.recall[0], rtol=1e-6)
  names = np.arange(len(case['in/reference']))
  _check_nearest(case, positive, names)


def check_university(case: Case) -> None:
  result = ranking.evaluate_ranking(
    case['in/query'],
    case['in/gallery'],
    case['in/query_labels'],
    case['in/gallery_labels'],
    ranks=RANKS,
    per_query=True,
  )
  orphan = result.first_rank < 0
  precision = np.where(orphan, np.nan, result.query_average_precision)
  case.close('out/ap_per_query', precision, rtol=1e-6)
  case.close('out/cmc_mean', result.cmc, rtol=1e-6)
  # Four decimals are stored.
  case.close(
    'out/recall1_5_10_top1pct_AP',
    list(result.report().values()),
    rtol=1e-4,
    scale=1,
  )


CHECKS = {
  'eval_cvusa_cvact': check_one_to_one,
  'eval_vigor': check_vigor,
  'eval_university': check_university,
}
