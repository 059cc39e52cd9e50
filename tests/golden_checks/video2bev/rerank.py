"""Video2BEV: the order of the second stage, from its match probabilities."""

import numpy as np

from cvgl_jax.retrieval import multiview, ranking, rerank, search
from tests.golden_case import Case

_BRANCHES = ('second-stage-training', 'second-stage-evalution')


def _by_id(case: Case, key: str, ids: np.ndarray) -> np.ndarray:
  """Features of videos (the mean of their frames) or pictures: [ids, D]."""
  mean = multiview.mean_by_place(case[f'{key}_feature'], case[f'{key}_label'])
  return mean.features[np.searchsorted(mean.place, ids)]


def check_two_stages(case: Case) -> None:
  query_place, gallery_place = case['in/query_ids'], case['in/gallery_ids']
  for direction in ('v2s', 's2v'):
    into, out = f'in/{direction}', f'out/{direction}'
    query = _by_id(case, f'{into}/query', query_place)
    gallery = _by_id(case, f'{into}/gallery', gallery_place)
    case.close(f'{out}/stage1_score', query @ gallery.T, rtol=1e-5)
    first = search.top_k(query, gallery, k=len(gallery), similarity='dot')
    topk = case.scalar('in/topk')
    case.equal(f'{out}/topk_index', first.rows[:, :topk])
    best = rerank.rerank_candidates(first, case[f'{out}/topk_match_prob'])
    case.equal(f'{out}/ranking', best.rows)

    # Position in the ranking as a score, to evaluate the order.
    scores = np.empty(best.rows.shape, np.float32)
    order = -np.arange(len(gallery), dtype=np.float32)
    np.put_along_axis(scores, best.rows, order[None], axis=1)
    result = ranking.evaluate_scores(
      scores, query_place, gallery_place, per_query=True
    )
    case.close(f'{out}/ap', result.query_average_precision, rtol=1e-6)
    case.close(f'{out}/cmc_mean', result.cmc, rtol=1e-6)
    for branch in _BRANCHES:
      # The training branch counts the pictures of the gallery, by mistake.
      entries = len(gallery)
      if branch == 'second-stage-training':
        entries = len(case[f'{into}/gallery_label'])
      index = round(0.01 * entries)
      case.equal(f'{out}/{branch}_rtop1_index', index)
      recall = [result.cmc[k] for k in (0, 4, 9, index)]
      printed = 100 * np.array([*recall, result.average_precision])
      # Two decimals; half a step more for rounding at a border.
      np.testing.assert_allclose(
        case[f'{out}/printed_{branch}_r1_r5_r10_rtop1_ap'],
        printed,
        rtol=0,
        atol=0.0051,
      )
  for pattern in ('param/*', 'in/sat_seq', 'in/bev_seq', 'in/bev_frames'):
    case.ignore(
      pattern,
      'arguments of the matching network, which is not implemented yet; its '
      'probabilities are read from the file',
    )


CHECKS = {'rerank_two_stage': check_two_stages}
