"""PFED: the evaluation of feature files (MobileGeo `Tools/evaluate_norm.py`)."""

import numpy as np

from cvgl_jax.retrieval import ranking, search
from tests.golden_case import Case


def check_eval(case: Case) -> None:
  query, gallery = case['in/query_f'], case['in/gallery_f']
  places = case['in/query_label'], case['in/gallery_label']
  result = ranking.evaluate_ranking(
    query, gallery, *places, similarity='dot', per_query=True
  )
  case.close('out/ap', result.query_average_precision, rtol=1e-6)
  case.equal('out/first_hit_row', result.first_rank)
  case.equal('out/n_good', (places[0][:, None] == places[1][None]).sum(axis=1))
  case.close('out/cmc_mean', result.cmc, rtol=1e-6)
  case.close(
    'out/mean_ap_over_all_queries', result.average_precision, rtol=1e-6
  )
  printed = np.array(list(result.report().values()))
  # Two decimals are printed.
  case.close('out/printed_R1_R5_R10_R1p_AP', printed, rtol=0.00501, scale=1)
  # The stored value is an index, ours the number of entries up to it.
  case.equal('out/r1p_index', result.percent_rank - 1)
  # The stored order has all of the gallery, junk too.
  best = search.top_k(query, gallery, k=len(gallery), similarity='dot')
  case.equal('out/ranking', best.rows)
  for key in ('out/roc_pos', 'out/roc_neg', 'out/fpr', 'out/tpr'):
    case.ignore(key, 'lists that the script computes and throws away')


CHECKS = {'eval_': check_eval}
