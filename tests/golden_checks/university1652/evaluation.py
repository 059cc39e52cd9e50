"""University-1652: evaluation, submission file and re-ranking."""

import numpy as np

from cvgl_jax.retrieval import metrics, multiview, ranking, rerank, search
from cvgl_jax.retrieval.files import submission
from tests.golden_case import Case


def _report(result: metrics.RankingResult) -> list[float]:
  report = result.report()
  return [report[key] for key in ('R@1', 'R@5', 'R@10', 'R@1%', 'AP')]


def _evaluate(case: Case, query: np.ndarray) -> metrics.RankingResult:
  return ranking.evaluate_ranking(
    query,
    case['in/gallery_f'],
    case['in/query_label'],
    case['in/gallery_label'],
    ties='higher',
    similarity='dot',
    per_query=True,
  )


def _cmc_rows(first_rank: np.ndarray, size: int) -> np.ndarray:
  """The reference's CMC of every query: all zero, then -1 first, if orphan."""
  rows = (np.arange(size)[None] >= first_rank[:, None]).astype(np.int64)
  rows[first_rank < 0] = 0
  rows[first_rank < 0, 0] = -1
  return rows


def _check_summary(case: Case, result: metrics.RankingResult) -> None:
  case.close('out/ap', result.query_average_precision, rtol=1e-6)
  case.close('out/cmc', result.cmc, rtol=1e-6)
  case.close('out/report_R1_R5_R10_Rtop1_AP', _report(result), rtol=1e-6)


def _check_top(case: Case, key: str) -> np.ndarray:
  """The first rows of every query's ranking, as many as are stored."""
  found = search.top_k(
    case['in/query_f'],
    case['in/gallery_f'],
    k=case[key].shape[1],
    similarity='dot',
    ties='higher',
  )
  case.equal(key, found.rows)
  return found.rows


def check_eval(case: Case) -> None:
  result = _evaluate(case, case['in/query_f'])
  _check_summary(case, result)
  rows = _cmc_rows(result.first_rank, result.gallery_size)
  case.equal('out/cmc_per_query', rows)
  # The stored value is an index, ours the number of entries up to it.
  case.equal('out/top1_index', result.percent_rank - 1)
  for key in case.keys('out/rank_top'):
    _check_top(case, key)


def check_multi_query(case: Case) -> None:
  mean = multiview.mean_by_place(case['in/mquery_f'], case['in/mquery_label'])
  order = np.searchsorted(mean.place, case['in/query_label'])
  query = mean.features[order]
  case.close('out/mean_query', query, rtol=1e-6)
  _check_summary(case, _evaluate(case, query))


def check_answer(case: Case) -> None:
  rows = _check_top(case, 'out/top10_gallery_index')
  # The published script reads labels from file names; the README gives these.
  labels = [f'sat{row:03d}' for row in range(len(case['in/gallery_f']))]
  text = submission.answer(rows, labels)
  case.equal('out/answer_txt_bytes', list(text.encode()))


def check_gnn(case: Case) -> None:
  query, gallery = case['in/query_f'], case['in/gallery_f']
  options = {'k1': case.scalar('in/k1'), 'k2': case.scalar('in/k2')}
  similarity = rerank.gnn(query, gallery, **options)
  case.close('out/similarity', similarity, rtol=1e-5)
  _check_order(similarity, case['out/ranking'], rtol=1e-5)

  # The neighbourhoods that the graph is made of, by the search it is made with.
  features = np.concatenate([query, gallery])
  nearest = search.top_k(features, features, k=options['k1'])
  case.equal('out/initial_rank', nearest.rows)
  case.close('out/S_squared', nearest.scores**2, rtol=1e-5)
  # The graph does not depend on which rows are queries, so every product of
  # two of its rows is a similarity of some split.
  products = case['out/A_final'] @ case['out/A_final'].T
  for count in range(1, len(features), max(1, len(features) // 4)):
    ours = rerank.gnn(features[:count], features[count:], **options)
    np.testing.assert_allclose(
      ours, products[:count, count:], rtol=0, atol=1e-5 * products.max()
    )
  for pattern in ('A_build', 'A_sym_*', 'A_prop_*'):
    case.ignore(
      f'out/{pattern}', 'not kept by the code; A_final follows from them'
    )

  # The reference's evaluator, on the reference's ranking (with k2 = 1 most
  # similarities are small integers, so the order of ties is its own).
  order = case['out/ranking']
  scores = np.empty(order.shape, np.float32)
  np.put_along_axis(
    scores,
    order,
    -np.arange(order.shape[1], dtype=np.float32)[None],
    axis=1,
  )
  query_place, gallery_place = case['in/query_label'], case['in/gallery_label']
  same_place = query_place[:, None] == gallery_place[None]
  same_camera = case['in/query_cam'][:, None] == case['in/gallery_cam'][None]
  result = ranking.evaluate_scores(
    scores,
    query_place,
    gallery_place,
    junk=same_place & same_camera,
    per_query=True,
  )
  case.close('out/reid_ap', result.query_average_precision, rtol=1e-6)
  rows = _cmc_rows(result.first_rank, result.gallery_size)
  case.equal('out/reid_cmc', rows)


def check_k_reciprocal(case: Case) -> None:
  distance = rerank.k_reciprocal(
    case['in/query_f'],
    case['in/gallery_f'],
    k1=case.scalar('in/k1'),
    k2=case.scalar('in/k2'),
    original_weight=case.scalar('in/lambda_value'),
  )
  case.close('out/final_dist', distance, rtol=1e-5)
  _check_order(-distance, case['out/order'], rtol=1e-5)


def _check_order(scores: np.ndarray, order: np.ndarray, rtol: float) -> None:
  """Every row of `order` lists all columns, and our scores fall along it.

  Scores that differ by less than the tolerance may stand in either order.
  """
  columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
  np.testing.assert_array_equal(np.sort(order, axis=1), columns)
  steps = np.diff(np.take_along_axis(scores, order, axis=1), axis=1)
  assert steps.max(initial=0.0) <= 2 * rtol * np.abs(scores).max()


CHECKS = {
  'gnn_rerank': check_gnn,
  'k_reciprocal': check_k_reciprocal,
  'rank10_answer': check_answer,
  'eval_': check_eval,
  'eval_multi_query': check_multi_query,
}
