import tracemalloc

import numpy as np
import pytest

from cvgl_jax.retrieval import rerank, rerank_sparse, search


def features(seed, *, num_queries=17, size=60, dim=6, places=12):
  """Places of several pictures, some of them equal."""
  rng = np.random.default_rng(seed)
  centres = rng.standard_normal((places, dim))
  joint = centres[rng.integers(0, places, num_queries + size)]
  joint = joint + 0.5 * rng.standard_normal(joint.shape)
  joint[num_queries : num_queries + 3] = joint[0]
  return joint[:num_queries], joint[num_queries:]


def candidates_of(values, top):
  return np.take_along_axis(values, top.rows, axis=1)


@pytest.mark.parametrize(
  ('k1', 'k2', 'weight'),
  [(9, 4, 0.0), (8, 1, 0.3), (5, 5, 0.1), (200, 90, 0.0)],
)
def test_gnn_scores_of_candidates_are_the_dense_ones(k1, k2, weight):
  options = {'k1': k1, 'k2': k2, 'original_weight': weight}
  for seed in range(3):
    query, gallery = features(seed)
    top = search.top_k(query, gallery, k=11)
    near = rerank_sparse.neighbours(query, gallery, k=k1)
    found = rerank_sparse.gnn(near, top.rows, query_chunk=5, **options)
    assert found.dtype == np.float32
    dense = candidates_of(rerank.gnn(query, gallery, **options), top)
    np.testing.assert_allclose(found, dense, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('square', [False, True])
@pytest.mark.parametrize(
  ('k1', 'k2', 'weight'),
  [(9, 4, 0.3), (8, 1, 0.0), (5, 5, 1.0), (200, 90, 0.0)],
)
def test_k_reciprocal_scores_of_candidates_are_the_dense_ones(
  k1, k2, weight, square
):
  options = {'k1': k1, 'k2': k2, 'original_weight': weight, 'square': square}
  for seed in range(3):
    query, gallery = features(seed)
    top = search.top_k(query, gallery, k=11)
    near = rerank_sparse.neighbours(query, gallery, k=k1 + 1)
    found = rerank_sparse.k_reciprocal(near, top.rows, **options)
    assert found.dtype == np.float32
    dense = candidates_of(rerank.k_reciprocal(query, gallery, **options), top)
    np.testing.assert_allclose(found, dense, rtol=2e-6, atol=2e-6)


def test_more_equals_than_neighbours_give_the_dense_scores():
  same = np.ones((9, 3))
  rows = np.tile(np.arange(5), (4, 1))
  near = rerank_sparse.neighbours(same[:4], same[4:], k=3)
  for method in ('gnn', 'k_reciprocal'):
    found = getattr(rerank_sparse, method)(near, rows, k1=2, k2=2)
    dense = getattr(rerank, method)(same[:4], same[4:], k1=2, k2=2)
    np.testing.assert_allclose(found, dense, atol=1e-6)


def test_all_candidates_give_the_dense_ranking():
  query, gallery = features(7)
  top = search.top_k(query, gallery, k=len(gallery))
  near = rerank_sparse.neighbours(query, gallery, k=10)
  scores = rerank_sparse.gnn(near, top.rows, k1=10, k2=4)
  best = rerank.rerank_candidates(top, scores)
  dense = rerank.gnn(query, gallery, k1=10, k2=4)
  along = np.take_along_axis(dense, best.rows, axis=1)
  assert np.diff(along, axis=1).max() < 2e-6


def test_one_search_serves_several_settings():
  query, gallery = features(3)
  top = search.top_k(query, gallery, k=5)
  wide = rerank_sparse.neighbours(query, gallery, k=20, gallery_chunk=16)
  for k1 in (4, 12):
    narrow = rerank_sparse.neighbours(query, gallery, k=k1 + 1)
    for method in (rerank_sparse.gnn, rerank_sparse.k_reciprocal):
      np.testing.assert_allclose(
        method(wide, top.rows, k1=k1, k2=3),
        method(narrow, top.rows, k1=k1, k2=3),
        rtol=2e-6,
        atol=2e-6,
      )


@pytest.mark.parametrize('method', ['gnn', 'k_reciprocal'])
def test_memory_stays_below_one_dense_matrix(method):
  query, gallery = features(0, num_queries=40, size=2960, dim=16, places=200)
  top = search.top_k(query, gallery, k=20)
  near = rerank_sparse.neighbours(query, gallery, k=21)
  near.lowest  # noqa: B018, the search before the measurement
  tracemalloc.start()
  try:
    getattr(rerank_sparse, method)(near, top.rows, k1=20, k2=4)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 3000**2 * 4


@pytest.mark.parametrize(
  ('rows', 'options', 'message'),
  [
    (np.zeros((17, 2), int), {'k1': 10}, '10 neighbours.*there are 8'),
    (np.zeros((17, 2), int), {'k1': 3, 'k2': 4}, 'k1=3, k2=4'),
    (np.zeros((16, 2), int), {'k1': 5}, r'\(16, 2\).*\[17, k\]'),
    (np.zeros((17, 2)), {'k1': 5}, 'float64'),
    (np.full((17, 2), 60), {'k1': 5}, 'row 60 is not one of the 60'),
    (np.full((17, 2), -1), {'k1': 5}, 'row -1'),
    (np.zeros((17, 2), int), {'k1': 5, 'query_chunk': 0}, 'query_chunk=0'),
  ],
)
def test_wrong_arguments_are_errors(rows, options, message):
  near = rerank_sparse.neighbours(*features(0), k=8)
  with pytest.raises(ValueError, match=message):
    rerank_sparse.gnn(near, rows, **{'k2': 3, **options})


def test_k_reciprocal_needs_a_neighbour_more():
  near = rerank_sparse.neighbours(*features(0), k=8)
  with pytest.raises(ValueError, match='k1=8 needs 9 neighbours'):
    rerank_sparse.k_reciprocal(near, np.zeros((17, 1), int), k1=8, k2=2)


def test_features_that_cannot_be_ranked_are_errors():
  query, gallery = features(0)
  gallery[4] = np.nan
  with pytest.raises(ValueError, match=r'gallery.*rows 4'):
    rerank_sparse.neighbours(query, gallery, k=8)
