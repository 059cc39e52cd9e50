"""PLCD: the evaluation of feature files (`evaluate_h5.py`)."""

from cvgl_jax.retrieval import ranking, search
from tests.golden_case import Case


def check_eval(case: Case) -> None:
  query, gallery = case['in/query_feature'], case['in/gallery_feature']
  result = ranking.evaluate_ranking(
    query,
    gallery,
    case['in/query_label'],
    case['in/gallery_label'],
    per_query=True,
    similarity='dot',
  )
  case.close('out/ap_per_query', result.query_average_precision, rtol=1e-6)
  case.equal('out/first_hit_rank0', result.first_rank)
  case.close('out/CMC', result.cmc, rtol=1e-6)
  for name in ('R@1', 'R@5', 'R@10', 'R@1%'):
    case.close(f'out/{name}', result.report()[name] / 100, rtol=1e-6)
  # The stored value is an index, ours the number of entries up to it.
  case.equal('out/r1pct_index0', result.percent_rank - 1)
  case.close('out/mAP', result.average_precision, rtol=1e-6)
  # Junk is not taken out of the stored order.
  head = case['out/ranking_head'].shape[1]
  best = search.top_k(query, gallery, k=head, similarity='dot')
  case.equal('out/ranking_head', best.rows)


CHECKS = {'eval_h5': check_eval}
