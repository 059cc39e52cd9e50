import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.retrieval import metres, ranking
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


def both(query, gallery, *places, **options):
  """The result from features, and from their products."""
  yield ranking.evaluate_ranking(
    query, gallery, *places, similarity='dot', per_query=True, **options
  )
  yield ranking.evaluate_scores(
    query @ gallery.T, *places, per_query=True, **options
  )


@pytest.mark.parametrize('ap', ['trapezoid', 'plain'])
@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_ranking_equals_a_loop_with_ties_junk_and_orphans(seed, ties, ap):
  query, gallery, *places = oracle.case(seed)
  expected = oracle.evaluate(query @ gallery.T, *places, ties=ties, ap=ap)
  for result in both(query, gallery, *places, ties=ties, ap=ap):
    check(result, expected)


@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_one_positive_is_ranked_like_a_loop(seed, ties):
  rng = np.random.default_rng(seed)
  query, gallery, _, _ = oracle.case(seed)
  places = rng.integers(0, len(gallery), len(query)), rng.permutation(40)
  expected = oracle.evaluate(
    query @ gallery.T, *places, ties=ties, ap='trapezoid'
  )
  for result in both(query, gallery, *places, ties=ties):
    check(result, expected)


@pytest.mark.parametrize('positives', [1, 6])
@pytest.mark.parametrize('seed', SEEDS)
def test_junk_may_depend_on_the_query(seed, positives):
  query, gallery, *places = oracle.case(seed, places=40 // positives)
  rng = np.random.default_rng(seed)
  for junk in (rng.random((len(query), 40)) < 0.2, rng.random(40) < 0.2):
    expected = oracle.evaluate(
      query @ gallery.T, *places, ties='lower', ap='trapezoid', junk=junk
    )
    for result in both(query, gallery, *places, junk=junk):
      check(result, expected)


@pytest.mark.parametrize('ties', ['lower', 'higher', 'optimistic'])
@pytest.mark.parametrize('seed', SEEDS)
def test_hit_rate_equals_a_loop(seed, ties):
  query, gallery, _, _ = oracle.case(seed)
  rng = np.random.default_rng(seed)
  listed = np.argsort(rng.random((len(query), 40)), axis=1)[:, :9]
  positive, semi = listed[:, 0], listed[:, 1:]
  semi = np.where(rng.random(semi.shape) < 0.2, -1, semi)
  expected = oracle.hits(query @ gallery.T, positive, semi, ties=ties)
  options = {'positives': positive, 'semi_positives': semi, 'ties': ties}
  for result in both(query, gallery, **options):
    np.testing.assert_array_equal(result.query_hit, expected)
    assert result.report()['hit rate'] == 100 * expected.mean()
    assert result.hit_rate >= result.recall[0]


@pytest.mark.parametrize('seed', SEEDS)
def test_optimistic_ties_count_what_scores_strictly_more(seed):
  query, gallery, *places = oracle.case(seed)
  same = places[0][:, None] == places[1][None]
  scores = query @ gallery.T
  expected = [
    (row[places[1] != -1] > row[good].max()).sum() if good.any() else -1
    for row, good in zip(scores, same, strict=True)
  ]
  for result in both(query, gallery, *places, ties='optimistic'):
    np.testing.assert_array_equal(result.first_rank, expected)


@pytest.mark.parametrize('seed', SEEDS)
def test_ignored_distractors_are_junk(seed):
  query, gallery, query_place, gallery_place = oracle.case(seed)
  query_place = query_place % 3
  marked = np.where(np.isin(gallery_place, query_place), gallery_place, -1)
  for ignored, junk in zip(
    both(query, gallery, query_place, gallery_place, ignore_distractors=True),
    both(query, gallery, query_place, marked),
    strict=True,
  ):
    assert ignored.report() == junk.report()
    assert ignored.percent_rank == junk.percent_rank


def test_listed_positives_rank_like_places():
  query, gallery, *places = oracle.case(8)
  same = places[0][:, None] == places[1][None]
  rows = np.where(same, np.arange(40)[None], -1)
  junk = places[1] == -1
  for a, b in zip(
    both(query, gallery, *places),
    both(query, gallery, positives=rows, junk=junk),
    strict=True,
  ):
    assert a.report() == b.report()
    np.testing.assert_array_equal(a.first_rank, b.first_rank)


@pytest.mark.parametrize('mesh', [False, True])
def test_chunks_and_devices_do_not_change_the_result(mesh):
  query, gallery, *places = oracle.case(
    3, num_queries=150, size=400, dim=30, coarse=False
  )
  rng = np.random.default_rng(3)
  junk = rng.random((150, 400)) < 0.05
  semi = np.argsort(rng.random((150, 400)), axis=1)[:, :3]
  options = {'junk': junk, 'semi_positives': semi, 'per_query': True}
  whole = ranking.evaluate_ranking(query, gallery, *places, **options)
  parts = ranking.evaluate_ranking(
    query,
    gallery,
    *places,
    query_chunk=64,
    gallery_chunk=100,
    mesh=sharding.make_mesh() if mesh else None,
    **options,
  )
  np.testing.assert_array_equal(parts.first_rank, whole.first_rank)
  np.testing.assert_array_equal(parts.query_hit, whole.query_hit)
  assert parts.report() == whole.report()


def test_a_perfect_ranking_scores_everything():
  place = np.arange(6)
  for ap in ('trapezoid', 'plain'):
    result = ranking.evaluate_ranking(
      np.eye(6), np.eye(6), place, place, ap=ap, inp=True
    )
    names = ('R@1', 'R@5', 'R@10', 'R@1%', 'AP', 'mINP')
    assert result.report() == dict.fromkeys(names, 100.0)


def test_metrics_ignore_the_scale_of_features():
  query, gallery, *places = oracle.case(1, coarse=False)
  scale = np.random.default_rng(0).uniform(0.01, 100, (len(gallery), 1))
  plain = ranking.evaluate_ranking(query, gallery, *places)
  scaled = ranking.evaluate_ranking(3 * query, scale * gallery, *places)
  assert plain.report() == scaled.report()


def test_orphans_count_in_the_denominator():
  scores = np.array([[1.0, 0.0], [1.0, 0.0]])
  result = ranking.evaluate_scores(scores, np.array([1, 9]), np.array([1, 2]))
  assert result.report()['R@1'] == 50
  assert result.report()['AP'] == 50
  assert result.num_orphans == 1


def test_only_orphans_find_nothing():
  scores = np.array([[1.0, 0.0]])
  result = ranking.evaluate_scores(scores, np.array([9]), np.array([1, 2]))
  assert result.report()['R@10'] == 0
  assert result.average_precision == 0


def test_one_query_in_a_gallery_of_one():
  result = ranking.evaluate_ranking(
    np.ones((1, 2)), np.ones((1, 2)), positives=np.array([0])
  )
  assert result.report()['R@1'] == 100


def test_recall_beyond_the_gallery_counts_all_of_it():
  scores = np.array([[0.0, 1.0, 2.0]])
  result = ranking.evaluate_scores(
    scores, np.array([0]), np.arange(3), ranks=(1, 3, 100)
  )
  assert result.recall == (0.0, 1.0, 1.0)


def test_scores_are_compared_in_their_own_precision():
  scores = np.array([[1 + 1e-12, 1 + 2e-12], [1 + 1e-12, 1.0]])
  result = ranking.evaluate_scores(
    scores, positives=np.array([0, 0]), per_query=True
  )
  assert result.first_rank.tolist() == [1, 0]


def test_answers_within_five_metres_are_right():
  utm = np.array([[0.0, 0.0], [4.0, 0.0], [100.0, 0.0]])
  scores = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])
  by_id = ranking.evaluate_scores(scores, positives=np.arange(3))
  near = ranking.evaluate_scores(scores, positives=metres.rows_within(utm, utm))
  assert by_id.recall[0] == 0
  np.testing.assert_allclose(near.recall[0], 2 / 3)


def test_metre_accuracy_takes_the_best_row_and_its_offset():
  gallery_deg = np.array([[40.0, -74.0], [41.0, -74.0], [42.0, -74.0]])
  offset = np.array([[0, 0], [100, -50]])
  truth = metres.shift_deg(gallery_deg[[2, 0]], offset)
  query = np.array([[0.1, 0, 2], [3, 0.2, 0]])
  arguments = (query, np.eye(3), truth, gallery_deg)
  exact = ranking.evaluate_metres(*arguments, offset_px=offset)
  np.testing.assert_allclose(exact.error_m, 0, atol=1e-6)
  centre = ranking.evaluate_metres(*arguments, thresholds_m=(1, 100))
  np.testing.assert_allclose(
    centre.error_m, [0, 0.114 * np.hypot(100, 50)], rtol=1e-4, atol=1e-6
  )
  assert centre.accuracy.tolist() == [0.5, 1]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'query_place': np.arange(3)}, r'query: 4 feature rows.*\(3,\)'),
    ({'gallery_place': np.arange(6)}, r'gallery: 5 feature rows.*\(6,\)'),
    ({'gallery_place': np.arange(5.0)}, 'float64, expected integers'),
    ({'query': np.full((4, 2), np.nan)}, 'query: 4 of 4 .*NaN'),
    ({'gallery': np.zeros((5, 2))}, 'gallery: 5 of 5 .*zero'),
    ({'gallery': np.ones((5, 3))}, 'dimension 2.*3'),
    ({'gallery': np.ones((0, 2))}, 'empty'),
    ({'junk': np.zeros(5)}, 'junk: float64'),
    ({'junk': np.zeros((2, 5), bool)}, r'shape \(2, 5\)'),
    ({'semi_positives': np.full((4, 1), 5)}, 'semi_positives: rows from 5'),
    ({'positives': np.zeros(4, int)}, 'must be given either'),
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
    ranking.evaluate_ranking(**(arguments | change))


@pytest.mark.parametrize(
  ('scores', 'message'),
  [
    (
      np.array([[1, 1, 1], [1, 1, np.nan], [1, 1, 1]]),
      r'1 of 3 .*\(first: 1\)',
    ),
    (np.full((3, 3), np.inf), '3 of 3'),
    (np.ones(3), r'\(3,\)'),
    (np.ones((3, 0)), r'\(3, 0\)'),
  ],
)
def test_unusable_scores_are_refused(scores, message):
  with pytest.raises(ValueError, match=message):
    ranking.evaluate_scores(scores, np.arange(3), np.arange(3))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'query_latlon_deg': np.zeros((4, 2))}, 'query: 3 feature rows but 4'),
    ({'gallery_latlon_deg': np.full((3, 2), np.nan)}, 'gallery_latlon_deg'),
    ({'offset_px': np.zeros(2)}, 'offset_px'),
  ],
)
def test_unusable_coordinates_are_an_error(change, message):
  arguments = {'query': np.eye(3), 'gallery': np.eye(3)}
  arguments |= {'query_latlon_deg': np.zeros((3, 2))}
  arguments |= {'gallery_latlon_deg': np.zeros((3, 2))}
  with pytest.raises(ValueError, match=message):
    ranking.evaluate_metres(**(arguments | change))
