import numpy as np
import pytest

from cvgl_jax.retrieval import rerank, search


def features(seed, num_queries=7, size=23, dim=6):
  rng = np.random.default_rng(seed)
  joint = rng.standard_normal((num_queries + size, dim))
  joint /= np.linalg.norm(joint, axis=1, keepdims=True)
  return joint[:num_queries], joint[num_queries:]


def gnn_loop(query, gallery, k1, k2, weight):
  joint = np.concatenate([query, gallery])
  cosine = joint @ joint.T
  near = np.argsort(-cosine, axis=1, kind='stable')[:, :k1]
  graph = np.zeros_like(cosine)
  for i, row in enumerate(near):
    graph[i, row] = 1
  for _ in range(2 if k2 != 1 else 0):
    graph = graph + graph.T
    new = np.zeros_like(graph)
    for i in range(len(graph)):
      for t in range(k2):
        new[i] += cosine[i, near[i, t]] ** 2 * graph[near[i, t]]
    graph = new / np.linalg.norm(new, axis=1, keepdims=True)
  count = len(query)
  similarity = graph[:count] @ graph[count:].T
  return (1 - weight) * similarity + weight * cosine[:count, count:]


def k_reciprocal_loop(query, gallery, k1, k2, weight, square):
  """With Python sets, as the published description reads."""
  joint = np.concatenate([query, gallery])
  distance = 2 - 2 * joint @ joint.T
  distance = distance**2 if square else distance
  distance = distance / distance.max(axis=1, keepdims=True)
  size, count = len(joint), len(query)
  order = np.argsort(distance, axis=1, kind='stable')

  def reciprocal(i, k):
    near = order[i, : k + 1]
    return {int(j) for j in near if i in order[j, : k + 1]}

  code = np.zeros((size, size))
  for i in range(size):
    core = reciprocal(i, k1)
    members = set(core)
    for j in core:
      other = reciprocal(j, round(k1 / 2))
      if 3 * len(other & core) > 2 * len(other):
        members |= other
    members = sorted(members)
    weights = np.exp(-distance[i, members])
    code[i, members] = weights / weights.sum()
  if k2 != 1:
    code = np.stack([code[order[i, :k2]].mean(axis=0) for i in range(size)])
  final = np.zeros((count, size - count))
  for q in range(count):
    for g in range(size - count):
      shared = np.minimum(code[q], code[count + g]).sum()
      final[q, g] = 1 - shared / (2 - shared)
  return (1 - weight) * final + weight * distance[:count, count:]


@pytest.mark.parametrize(
  ('k1', 'k2', 'weight'), [(6, 3, 0.0), (5, 1, 0.0), (4, 4, 0.3)]
)
def test_gnn_equals_a_loop(k1, k2, weight):
  for seed in range(2):
    query, gallery = features(seed)
    found = rerank.gnn(query, gallery, k1=k1, k2=k2, original_weight=weight)
    expected = gnn_loop(query, gallery, k1, k2, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('k1', 'k2', 'square'), [(6, 3, False), (5, 1, False), (7, 7, True)]
)
def test_k_reciprocal_equals_a_loop_over_sets(k1, k2, square):
  for seed in range(2):
    query, gallery = features(seed)
    found = rerank.k_reciprocal(
      query, gallery, k1=k1, k2=k2, original_weight=0.3, square=square
    )
    expected = k_reciprocal_loop(query, gallery, k1, k2, 0.3, square)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_weight_one_is_the_original_ranking():
  query, gallery = features(3)
  cosine = query @ gallery.T
  found = rerank.gnn(query, gallery, k1=5, k2=3, original_weight=1.0)
  np.testing.assert_allclose(found, cosine, atol=1e-6)
  found = rerank.k_reciprocal(query, gallery, k1=5, k2=3, original_weight=1.0)
  np.testing.assert_array_equal(np.argsort(found), np.argsort(-cosine))


def test_neighbourhoods_larger_than_the_data_are_cut():
  query, gallery = features(4, num_queries=2, size=4)
  for method in (rerank.gnn, rerank.k_reciprocal):
    assert np.isfinite(method(query, gallery, k1=50, k2=20)).all()


def test_equal_features_do_not_divide_by_zero():
  same = np.ones((4, 3))
  for method in (rerank.gnn, rerank.k_reciprocal):
    assert np.isfinite(method(same[:2], same, k1=3, k2=2)).all()


def test_more_equals_than_neighbours_give_no_nan():
  # Rows 5 and up are in nobody's list of the first three.
  same = np.ones((9, 3))
  for method in (rerank.gnn, rerank.k_reciprocal):
    assert np.isfinite(method(same[:4], same[4:], k1=2, k2=2)).all()


@pytest.mark.parametrize('method', [rerank.gnn, rerank.k_reciprocal])
def test_too_little_memory_is_said_before_the_work(method, monkeypatch):
  monkeypatch.setattr(rerank, '_memory_bytes', lambda: 1000)
  query, gallery = features(0)
  with pytest.raises(
    ValueError, match=r're-ranking 7 queries with 23.*rerank_sparse'
  ):
    method(query, gallery)


def test_k2_above_k1_is_an_error():
  query, gallery = features(0)
  with pytest.raises(ValueError, match='k1=3, k2=4'):
    rerank.gnn(query, gallery, k1=3, k2=4)


TOP = search.TopK(
  np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]], np.float32),
  np.array([[3, 1, 0, 2], [2, 0, 1, 3]], np.int32),
)


def test_candidates_take_the_order_of_their_new_scores():
  best = rerank.rerank_candidates(TOP, np.array([[0.1, 0.3, 0.2], [1, 1, 2]]))
  # Equal scores keep their order, and the fourth candidate its place.
  assert best.rows.tolist() == [[1, 0, 3, 2], [1, 2, 0, 3]]
  np.testing.assert_allclose(
    best.scores, [[0.3, 0.2, 0.1, 0.6], [2, 1, 1, 0.2]]
  )
  assert best.scores.dtype == np.float32 and best.rows.dtype == np.int32


def test_equal_scores_of_many_candidates_keep_their_order():
  rows = np.random.default_rng(0).permutation(200)[None]
  top = search.TopK(np.linspace(1, 0, 200)[None], rows)
  best = rerank.rerank_candidates(top, (np.arange(200) % 2)[None])
  assert best.rows.tolist() == [[*rows[0, 1::2], *rows[0, ::2]]]


def test_scores_of_both_stages_can_be_added():
  scores = np.array([[0.1, 0.3], [0.0, 0.0]])
  best = rerank.rerank_candidates(TOP, scores, fusion='sum', weight=3.0)
  assert best.rows.tolist() == [[3, 1, 0, 2], [2, 0, 1, 3]]
  np.testing.assert_allclose(
    best.scores[:, :2], [[2.8, 2.7], [1.5, 1.2]], rtol=1e-6
  )
  slight = rerank.rerank_candidates(TOP, scores, fusion='sum', weight=0.5)
  assert slight.rows.tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]


@pytest.mark.parametrize(
  ('scores', 'options', 'message'),
  [
    (np.zeros((2, 5)), {}, '5 scores a query for 4 candidates'),
    (np.zeros((3, 2)), {}, r'\(3, 2\) for candidates of shape \(2, 4\)'),
    (np.array([[0], [np.nan]]), {}, 'NaN.*query 1'),
    (np.zeros((2, 1)), {'fusion': 'product'}, "fusion 'product'"),
    (np.zeros((2, 1)), {'weight': 0.5}, 'no effect'),
  ],
)
def test_wrong_candidate_scores_are_errors(scores, options, message):
  with pytest.raises(ValueError, match=message):
    rerank.rerank_candidates(TOP, scores, **options)
