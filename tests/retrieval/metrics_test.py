import numpy as np
import pytest

from cvgl_jax.retrieval import metrics

# Three queries: positives on ranks 0 and 3, on rank 1, none.
RANKS = np.array([[3, 0], [1, -1], [-1, -1]])


@pytest.mark.parametrize(
  ('ap', 'expected'),
  [
    # (1 + 1) / 2 and (2/4 + 1/3) / 2; (1/2 + 0) / 2
    ('trapezoid', [(1 + (1 / 2 + 1 / 3) / 2) / 2, 0.25, 0]),
    ('plain', [(1 + 1 / 2) / 2, 0.5, 0]),
  ],
)
def test_average_precision_follows_its_formula(ap, expected):
  result = metrics.average_precision(RANKS, ap=ap)
  np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_several_positives_in_front_are_perfect():
  ranks = np.array([[2, 0, 1, -1]])
  for ap in ('trapezoid', 'plain'):
    np.testing.assert_allclose(metrics.average_precision(ranks, ap=ap), [1.0])


def test_recall_counts_the_first_positive_and_every_query():
  result = metrics.summarize(RANKS, 5, ranks=(1, 2, 5, 100), per_query=True)
  np.testing.assert_allclose(result.recall, [1 / 3, 2 / 3, 2 / 3, 2 / 3])
  np.testing.assert_allclose(result.cmc, np.array([1, 2, 2, 2, 2]) / 3)
  assert (result.num_queries, result.num_orphans) == (3, 1)
  assert result.first_rank.tolist() == [0, 1, -1]


def test_inverse_penalty_looks_at_the_last_positive():
  result = metrics.summarize(RANKS, 5, inp=True)
  np.testing.assert_allclose(metrics.inverse_penalty(RANKS), [2 / 4, 1 / 2, 0])
  np.testing.assert_allclose(result.report()['mINP'], 100 / 3)


def test_a_query_hits_if_only_semi_positives_stand_before_its_positive():
  forgiving = np.array([[2, 0], [0, -1], [-1, -1]])
  result = metrics.summarize(
    RANKS, 5, forgiving_ranks=forgiving, per_query=True
  )
  assert result.query_hit.tolist() == [True, True, False]
  np.testing.assert_allclose(result.report()['hit rate'], 200 / 3)


def test_extra_metrics_are_reported_only_where_they_were_measured():
  report = metrics.summarize(RANKS, 5).report()
  assert list(report) == ['R@1', 'R@5', 'R@10', 'R@1%', 'AP']


def test_per_query_results_come_on_request_only():
  result = metrics.summarize(RANKS, 5, forgiving_ranks=RANKS)
  assert result.first_rank is None
  assert result.query_average_precision is None
  assert result.query_hit is None


@pytest.mark.parametrize(
  ('size', 'rule', 'expected'),
  [
    (951, 'university', 11),
    (51355, 'university', 515),
    (50, 'university', 1),
    (150, 'university', 3),
    (8884, 'floor', 88),
    (90618, 'floor', 906),
    (99, 'floor', 0),
    (90618, 'floor_plus_one', 907),
    (99, 'floor_plus_one', 1),
  ],
)
def test_one_percent_follows_the_published_rules(size, rule, expected):
  assert metrics.percent_rank(size, rule) == expected


@pytest.mark.parametrize('size', [1, 2])
@pytest.mark.parametrize('rule', metrics.PERCENT_INDICES)
def test_one_percent_of_a_tiny_gallery_stays_inside_it(size, rule):
  result = metrics.summarize(np.array([[0]]), size, percent_index=rule)
  assert result.recall_percent == (0 if rule == 'floor' else 1)


@pytest.mark.parametrize(
  ('ranks', 'options', 'message'),
  [
    (RANKS, {'ap': 'best'}, "ap 'best'"),
    (RANKS, {'percent_index': 'x'}, "percent_index 'x'"),
    (RANKS, {'ranks': (0,)}, 'ranks'),
    (RANKS, {'ranks': ()}, 'ranks'),
    (RANKS[:0], {}, r'shape \(0, 2\)'),
    (RANKS[0], {}, r'shape \(2,\)'),
    (RANKS + 3, {}, '6 in a gallery of 5'),
  ],
)
def test_unusable_ranks_are_an_error(ranks, options, message):
  with pytest.raises(ValueError, match=message):
    metrics.summarize(ranks, 5, **options)
