"""Video2BEV: first-stage evaluation of videos and its average precision."""

import numpy as np

from cvgl_jax.retrieval import metrics, multiview, ranking, search
from tests.golden_case import Case


def _videos(features: np.ndarray, label: np.ndarray):
  """A video's feature is the mean of its frames', not normalised again."""
  mean = multiview.mean_by_place(features, label)
  return mean.features, mean.place


def check_first_stage(case: Case) -> None:
  for task in ('v2s', 's2v'):
    query, query_place = (
      case[f'in/{task}/query_feature'],
      case[f'in/{task}/query_label'],
    )
    gallery, gallery_place = (
      case[f'in/{task}/gallery_feature'],
      case[f'in/{task}/gallery_label'],
    )
    pictures = len(gallery_place)
    if task == 'v2s':
      query, query_place = _videos(query, query_place)
    else:
      gallery, gallery_place = _videos(gallery, gallery_place)
    result = ranking.evaluate_ranking(
      query,
      gallery,
      query_place,
      gallery_place,
      similarity='dot',
      per_query=True,
    )
    best = search.top_k(query, gallery, k=len(gallery), similarity='dot')
    case.equal(f'out/{task}/ranking', best.rows)
    case.close(f'out/{task}/ap', result.query_average_precision, rtol=1e-6)
    case.close(f'out/{task}/cmc_mean', result.cmc, rtol=1e-6)
    # reference-bug: 1 % of the gallery's pictures, also where it is of videos.
    index = metrics.percent_rank(pictures, 'university') - 1
    case.equal(f'out/{task}/rtop1_index', index)
    report = result.report()
    printed = [report[name] for name in ('R@1', 'R@5', 'R@10')]
    printed += [100 * result.cmc[index], report['AP']]
    case.close(
      f'out/{task}/printed_r1_r5_r10_rtop1_ap',
      printed,
      rtol=0.00501,  # two decimals are printed
      scale=1,
    )


def check_compute_map(case: Case) -> None:
  names = sorted({key.split('/')[1] for key in case.keys('in/')}, key=int)
  for name in names:
    order = case[f'in/{name}/ranking']
    good, junk = case[f'in/{name}/good'], case[f'in/{name}/junk']
    scores = np.empty((1, len(order)))
    scores[0, order] = -np.arange(len(order))
    result = ranking.evaluate_scores(
      scores,
      positives=good[None],
      junk=np.isin(np.arange(len(order)), junk),
      per_query=True,
    )
    case.close(f'out/{name}/ap', result.average_precision, rtol=1e-6)
    cmc = result.cmc.copy()
    if result.num_orphans:
      cmc[0] = -1  # the reference's mark
    case.equal(f'out/{name}/cmc', cmc)


CHECKS = {
  'evaluate_first_stage': check_first_stage,
  'compute_map': check_compute_map,
}
