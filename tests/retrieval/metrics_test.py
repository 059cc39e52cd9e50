import numpy as np
import pytest

from cvgl_jax.retrieval import metrics
from tests.retrieval import oracle

SEEDS = range(5)


def check(result, expected):
  first, precision, cmc = expected
  np.testing.assert_array_equal(result.first_rank, first)
  np.testing.assert_allclose(
    result.query_average_precision, precision, rtol=1e-12
  )
  np.testing.assert_allclose(result.average_precision, precision.mean())
  np.testing.assert_allclose(result.cmc, cmc, rtol=1e-12)
  assert result.num_orphans == (first < 0).sum()


@pytest.mark.parametrize('ap', ['trapezoid', 'plain'])
@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_ranking_equals_a_loop_with_ties_junk_and_orphans(seed, ties, ap):
  query, gallery, query_place, gallery_place = oracle.case(seed)
  scores = query @ gallery.T
  expected = oracle.evaluate(
    scores, query_place, gallery_place, ties=ties, ap=ap
  )
  options = {'ties': ties, 'ap': ap, 'per_query': True}
  check(
    metrics.evaluate_ranking(
      query, gallery, query_place, gallery_place, similarity='dot', **options
    ),
    expected,
  )
  check(
    metrics.evaluate_scores(scores, query_place, gallery_place, **options),
    expected,
  )


@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_one_positive_is_counted_like_a_loop(seed, ties):
  rng = np.random.default_rng(seed)
  query, gallery, _, _ = oracle.case(seed)
  gallery_place = rng.permutation(len(gallery))
  query_place = rng.integers(0, len(gallery), len(query))
  expected = oracle.evaluate(
    query @ gallery.T, query_place, gallery_place, ties=ties, ap='trapezoid'
  )
  result = metrics.evaluate_ranking(
    query,
    gallery,
    query_place,
    gallery_place,
    ties=ties,
    similarity='dot',
    per_query=True,
  )
  check(result, expected)


@pytest.mark.parametrize('positives', [1, 6])
@pytest.mark.parametrize('seed', SEEDS)
def test_junk_may_depend_on_the_query(seed, positives, monkeypatch):
  # Small blocks, so that the mask is cut and filled up like the queries.
  monkeypatch.setattr(metrics, '_BLOCK_BYTES', 5 * 4 * 40)
  query, gallery, query_place, gallery_place = oracle.case(
    seed, places=40 // positives
  )
  junk = np.random.default_rng(seed).random((len(query), len(gallery))) < 0.2
  expected = oracle.evaluate(
    query @ gallery.T,
    query_place,
    gallery_place,
    ties='lower',
    ap='trapezoid',
    junk=junk,
  )
  result = metrics.evaluate_ranking(
    query,
    gallery,
    query_place,
    gallery_place,
    similarity='dot',
    junk=junk,
    per_query=True,
  )
  check(result, expected)


def test_junk_of_the_whole_gallery_takes_entries_out():
  scores = np.array([[0.9, 0.8, 0.7, 0.6]])
  junk = np.array([True, False, False, False])
  result = metrics.evaluate_scores(
    scores, np.array([5]), np.array([1, 2, 5, -1]), junk=junk, per_query=True
  )
  assert result.first_rank.tolist() == [1]


@pytest.mark.parametrize('counted', [0, 100])
@pytest.mark.parametrize('ties', ['lower', 'higher', 'optimistic'])
def test_counting_equals_sorting(counted, ties, monkeypatch):
  monkeypatch.setattr(metrics, '_COUNTED_POSITIVES', counted)
  query, gallery, query_place, gallery_place = oracle.case(7)
  result = metrics.evaluate_ranking(
    query,
    gallery,
    query_place,
    gallery_place,
    ties=ties,
    similarity='dot',
    per_query=True,
  )
  scores = (query @ gallery.T).astype(np.float64)
  if ties == 'optimistic':
    same = query_place[:, None] == gallery_place[None]
    # A nudge below the score steps puts each positive before its ties.
    first = []
    for row, good in zip(scores, same, strict=True):
      kept = row[gallery_place != -1]
      first.append((kept > row[good].max()).sum() if good.any() else -1)
    np.testing.assert_array_equal(result.first_rank, first)
  else:
    check(
      result,
      oracle.evaluate(
        scores, query_place, gallery_place, ties=ties, ap='trapezoid'
      ),
    )


def test_blocks_of_queries_do_not_change_the_result(monkeypatch):
  query, gallery, query_place, gallery_place = oracle.case(3, coarse=False)
  whole = metrics.evaluate_ranking(
    query, gallery, query_place, gallery_place, per_query=True
  )
  monkeypatch.setattr(metrics, '_BLOCK_BYTES', 3 * 4 * len(gallery))
  parts = metrics.evaluate_ranking(
    query, gallery, query_place, gallery_place, per_query=True
  )
  np.testing.assert_array_equal(parts.first_rank, whole.first_rank)
  assert parts.report() == whole.report()


def test_a_perfect_ranking_scores_everything():
  features = np.eye(6)
  place = np.arange(6)
  for ap in ('trapezoid', 'plain'):
    result = metrics.evaluate_ranking(features, features, place, place, ap=ap)
    assert result.report() == {
      'R@1': 100.0,
      'R@5': 100.0,
      'R@10': 100.0,
      'R@1%': 100.0,
      'AP': 100.0,
    }


def test_several_positives_in_front_are_perfect_too():
  ranks = np.array([[2, 0, 1, -1]])
  for ap in ('trapezoid', 'plain'):
    np.testing.assert_allclose(metrics.average_precision(ranks, ap=ap), [1.0])


@pytest.mark.parametrize(
  ('ap', 'expected'), [('trapezoid', 0.25), ('plain', 0.5)]
)
def test_one_positive_on_rank_two(ap, expected):
  result = metrics.average_precision(np.array([[1]]), ap=ap)
  np.testing.assert_allclose(result, [expected])


def test_metrics_ignore_the_scale_of_features():
  query, gallery, query_place, gallery_place = oracle.case(1, coarse=False)
  scale = np.random.default_rng(0).uniform(0.01, 100, (len(gallery), 1))
  plain = metrics.evaluate_ranking(query, gallery, query_place, gallery_place)
  scaled = metrics.evaluate_ranking(
    3 * query, scale * gallery, query_place, gallery_place
  )
  assert plain.report() == scaled.report()


def test_orphans_count_in_the_denominator():
  scores = np.array([[1.0, 0.0], [1.0, 0.0]])
  result = metrics.evaluate_scores(scores, np.array([1, 9]), np.array([1, 2]))
  assert result.report()['R@1'] == 50
  assert result.report()['AP'] == 50
  assert result.num_orphans == 1


def test_only_orphans_find_nothing():
  scores = np.array([[1.0, 0.0]])
  result = metrics.evaluate_scores(scores, np.array([9]), np.array([1, 2]))
  assert result.report()['R@10'] == 0
  assert result.average_precision == 0


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


def test_one_percent_of_a_small_gallery_can_be_nothing():
  scores = np.eye(3)
  place = np.arange(3)
  result = metrics.evaluate_scores(scores, place, place, percent_index='floor')
  assert result.recall_percent == 0
  assert result.recall[0] == 1


def test_recall_beyond_the_gallery_counts_all_of_it():
  scores = np.array([[0.0, 1.0, 2.0]])
  result = metrics.evaluate_scores(
    scores, np.array([0]), np.arange(3), ranks=(1, 3, 100)
  )
  assert result.recall == (0.0, 1.0, 1.0)


def test_per_query_results_come_on_request_only():
  scores, place = np.eye(3), np.arange(3)
  assert metrics.evaluate_scores(scores, place, place).first_rank is None
  result = metrics.evaluate_scores(scores, place, place, per_query=True)
  assert result.first_rank.tolist() == [0, 0, 0]
  assert result.query_average_precision.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'query_place': np.arange(3)}, r'query: 4 feature rows.*\(3,\)'),
    ({'gallery_place': np.arange(6)}, r'gallery: 5 feature rows.*\(6,\)'),
    ({'gallery_place': np.arange(5.0)}, 'float64, expected integers'),
    ({'query': np.full((4, 2), np.nan)}, 'query: 4 of 4 .*NaN'),
    ({'gallery': np.zeros((5, 2))}, 'gallery: 5 of 5 .*zero'),
    ({'gallery': np.ones((5, 3))}, 'dimension 2.*3'),
    ({'junk': np.zeros(5)}, 'junk: float64'),
    ({'junk': np.zeros((2, 5), bool)}, r'shape \(2, 5\)'),
    ({'ap': 'best'}, "ap 'best'"),
    ({'percent_index': 'x'}, "percent_index 'x'"),
    ({'ties': 'x'}, "ties 'x'"),
    ({'ranks': (0,)}, 'ranks'),
  ],
)
def test_unusable_input_is_an_error(change, message):
  arguments = {
    'query': np.ones((4, 2)),
    'gallery': np.ones((5, 2)),
    'query_place': np.arange(4),
    'gallery_place': np.arange(5),
  }
  with pytest.raises(ValueError, match=message):
    metrics.evaluate_ranking(**(arguments | change))


def test_scores_that_are_not_finite_are_refused():
  scores = np.ones((3, 3))
  scores[1, 2] = np.nan
  with pytest.raises(ValueError, match=r'1 of 3 query rows \(first: 1\)'):
    metrics.evaluate_scores(scores, np.arange(3), np.arange(3))
