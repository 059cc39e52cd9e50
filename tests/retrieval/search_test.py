import numpy as np
import pytest

from cvgl_jax.retrieval import search
from tests.retrieval import oracle

SEEDS = range(5)


@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_top_k_equals_a_sorted_loop_with_ties(seed, ties):
  query, gallery, _, _ = oracle.case(seed)
  scores = query @ gallery.T
  expected = np.stack([oracle.ranking(row, ties)[:7] for row in scores])
  found = search.top_k(
    query,
    gallery,
    k=7,
    similarity='dot',
    ties=ties,
    query_chunk=5,
    gallery_chunk=6,
  )
  np.testing.assert_array_equal(found.rows, expected)
  np.testing.assert_array_equal(
    found.scores, np.take_along_axis(scores, expected, axis=1)
  )
  given = search.top_k_scores(scores, k=7, ties=ties)
  np.testing.assert_array_equal(given.rows, expected)
  np.testing.assert_array_equal(given.scores, found.scores)


@pytest.mark.parametrize('chunks', [(1, 1), (4, 39), (13, 40), (100, 100)])
def test_chunks_do_not_change_the_result(chunks):
  query, gallery, _, _ = oracle.case(0, coarse=False)
  whole = search.top_k(query, gallery, k=9)
  parts = search.top_k(
    query, gallery, k=9, query_chunk=chunks[0], gallery_chunk=chunks[1]
  )
  np.testing.assert_array_equal(parts.rows, whole.rows)
  np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-6)


def test_k_above_the_gallery_size_gives_the_whole_gallery():
  query, gallery, _, _ = oracle.case(1, coarse=False)
  found = search.top_k(query, gallery, k=1000, gallery_chunk=7)
  assert found.rows.shape == (len(query), len(gallery))
  assert (np.sort(found.rows, axis=1) == np.arange(len(gallery))).all()
  assert (np.diff(found.scores, axis=1) <= 0).all()


def test_cosine_ignores_the_scale_of_features_and_dot_does_not():
  query, gallery, _, _ = oracle.case(2, coarse=False)
  scale = np.random.default_rng(0).uniform(0.01, 100, (len(gallery), 1))
  scaled = (gallery * scale).astype(np.float32)
  plain = search.top_k(query, gallery, k=5)
  np.testing.assert_array_equal(
    search.top_k(query * 7, scaled, k=5).rows, plain.rows
  )
  dot = search.top_k(query, scaled, k=5, similarity='dot')
  assert (dot.rows != plain.rows).any()


def test_one_query_and_float64_features_are_fine():
  gallery = np.eye(4)
  found = search.top_k(gallery[2:3], gallery, k=1)
  assert found.rows.tolist() == [[2]]
  assert found.scores.dtype == np.float32


@pytest.mark.parametrize(
  ('value', 'message'), [(np.nan, 'NaN or infinite'), (np.inf, 'NaN or inf')]
)
def test_features_that_are_not_finite_are_refused_by_row(value, message):
  query, gallery, _, _ = oracle.case(3, coarse=False)
  gallery[[4, 9], 1] = value
  with pytest.raises(ValueError, match=message) as error:
    search.top_k(query, gallery, k=1)
  assert 'gallery: 2 of 40' in str(error.value)
  assert 'rows 4, 9' in str(error.value)


def test_zero_features_have_no_cosine_but_a_dot_product():
  query, gallery, _, _ = oracle.case(4, coarse=False)
  query[0] = 0
  with pytest.raises(ValueError, match=r'query: 1 of 13 .* zero.*rows 0'):
    search.top_k(query, gallery, k=1)
  search.top_k(query, gallery, k=1, similarity='dot')


@pytest.mark.parametrize(
  ('query', 'gallery', 'options', 'message'),
  [
    (np.ones((2, 3)), np.ones((4, 5)), {'k': 1}, 'dimension 3.*5'),
    (np.ones((2, 3)), np.ones((0, 3)), {'k': 1}, 'gallery.*empty'),
    (np.ones((2, 3)), np.ones(3), {'k': 1}, r'gallery.*shape \(3,\)'),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 0}, 'k=0'),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 1, 'ties': 'x'}, "ties 'x'"),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 1, 'similarity': 'l2'}, "'l2'"),
    (np.ones((2, 3)), np.full((4, 3), 1e30), {'k': 1}, 'norm above'),
  ],
)
def test_unusable_input_is_an_error(query, gallery, options, message):
  with pytest.raises(ValueError, match=message):
    search.top_k(query, gallery, **options)
