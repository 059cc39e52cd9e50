"""University-1652: evaluation, submission file and re-ranking."""

import numpy as np

from cvgl_jax.retrieval import metrics, multiview, rerank, search, submission
from tests.golden_case import Case


def _report(result: metrics.RankingResult) -> list[float]:
  report = result.report()
  return [report[key] for key in ('R@1', 'R@5', 'R@10', 'R@1%', 'AP')]


def _evaluate(case: Case, query: np.ndarray) -> metrics.RankingResult:
  return metrics.evaluate_ranking(
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
  np.testing.assert_allclose(
    result.query_average_precision, case['out/ap'], rtol=1e-6, atol=1e-7
  )
  np.testing.assert_allclose(result.cmc, case['out/cmc'], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(
    _report(result), case['out/report_R1_R5_R10_Rtop1_AP'], rtol=1e-6, atol=1e-5
  )


def check_eval(case: Case) -> None:
  result = _evaluate(case, case['in/query_f'])
  _check_summary(case, result)
  size = result.gallery_size
  np.testing.assert_array_equal(
    _cmc_rows(result.first_rank, size), case['out/cmc_per_query']
  )
  # The stored value is an index, ours the number of entries up to it.
  assert result.percent_rank == case.scalar('out/top1_index') + 1
  expected = case['out/rank_top20']
  found = search.top_k(
    case['in/query_f'],
    case['in/gallery_f'],
    k=expected.shape[1],
    similarity='dot',
    ties='higher',
  )
  np.testing.assert_array_equal(found.rows, expected)


def check_multi_query(case: Case) -> None:
  mean = multiview.mean_by_place(case['in/mquery_f'], case['in/mquery_label'])
  order = np.searchsorted(mean.place, case['in/query_label'])
  query = mean.features[order]
  np.testing.assert_allclose(
    query, case['out/mean_query'], rtol=1e-6, atol=1e-7
  )
  _check_summary(case, _evaluate(case, query))


def check_answer(case: Case) -> None:
  expected = case['out/top10_gallery_index']
  found = search.top_k(
    case['in/query_f'],
    case['in/gallery_f'],
    k=expected.shape[1],
    similarity='dot',
    ties='higher',
  )
  np.testing.assert_array_equal(found.rows, expected)
  # The published script reads labels from file names; the README gives these.
  labels = [f'sat{row:03d}' for row in range(len(case['in/gallery_f']))]
  text = submission.answer(found.rows, labels)
  np.testing.assert_array_equal(
    list(text.encode()), case['out/answer_txt_bytes']
  )


def check_gnn(case: Case) -> None:
  similarity = rerank.gnn(
    case['in/query_f'],
    case['in/gallery_f'],
    k1=case.scalar('in/k1'),
    k2=case.scalar('in/k2'),
  )
  np.testing.assert_allclose(
    similarity, case['out/similarity'], rtol=1e-5, atol=1e-5
  )
  # The reference's evaluator, on the reference's ranking (with k2 = 1 most
  # similarities are small integers, so the order of ties is its own).
  ranking = case['out/ranking']
  scores = np.empty(ranking.shape, np.float32)
  np.put_along_axis(
    scores,
    ranking,
    -np.arange(ranking.shape[1], dtype=np.float32)[None],
    axis=1,
  )
  query_place, gallery_place = case['in/query_label'], case['in/gallery_label']
  same_place = query_place[:, None] == gallery_place[None]
  same_camera = case['in/query_cam'][:, None] == case['in/gallery_cam'][None]
  result = metrics.evaluate_scores(
    scores,
    query_place,
    gallery_place,
    junk=same_place & same_camera,
    per_query=True,
  )
  np.testing.assert_allclose(
    result.query_average_precision, case['out/reid_ap'], rtol=1e-6, atol=1e-7
  )
  np.testing.assert_array_equal(
    _cmc_rows(result.first_rank, result.gallery_size), case['out/reid_cmc']
  )


def check_k_reciprocal(case: Case) -> None:
  distance = rerank.k_reciprocal(
    case['in/query_f'],
    case['in/gallery_f'],
    k1=case.scalar('in/k1'),
    k2=case.scalar('in/k2'),
    original_weight=case.scalar('in/lambda_value'),
  )
  np.testing.assert_allclose(
    distance, case['out/final_dist'], rtol=1e-5, atol=1e-5
  )


CHECKS = {
  'gnn_rerank': check_gnn,
  'k_reciprocal': check_k_reciprocal,
  'rank10_answer': check_answer,
  'eval_': check_eval,
  'eval_multi_query': check_multi_query,
}
