"""FRGeo and TransGeo: recall by counting what scores strictly more."""

from cvgl_jax.retrieval import metrics, ranking, ranks
from tests.golden_case import Case


def check_accuracy(case: Case) -> None:
  query, gallery = case['in/query'], case['in/reference']
  positives = case['in/labels']
  k = case['out/k']
  result = ranking.evaluate_ranking(
    query,
    gallery,
    positives=positives,
    ranks=[rank for rank in k.tolist() if rank],
    percent_index='floor',
    ties='optimistic',
    per_query=True,
  )
  case.equal('out/rank', result.first_rank)
  # The last k is 1 % of the gallery; recall@0 is 0.
  recall = dict(zip(result.ranks, result.recall, strict=True))
  case.close('out/recalls', [100 * recall.get(i, 0.0) for i in k], rtol=1e-6)
  one_percent = metrics.percent_rank(len(gallery), 'floor')
  case.equal('out/k', [*k[:-1], one_percent])
  assert result.recall_percent == recall.get(one_percent, 0.0)
  own = ranks.count(query, gallery, positives[:, None]).scores
  case.close('out/sim_true', own[:, 0], rtol=1e-6)


CHECKS = {'accuracy_': check_accuracy}
