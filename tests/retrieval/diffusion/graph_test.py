"""The neighbourhood graph and its Laplacian."""

import numpy as np
import pytest

from cvgl_jax.retrieval.diffusion import graph
from tests.retrieval.diffusion import oracle


def dense(built: graph.Graph, values: np.ndarray) -> np.ndarray:
  """ELL rows as [N, N]."""
  matrix = np.zeros((len(built), len(built)))
  np.put_along_axis(matrix, built.neighbours[:, : built.kd], values, axis=1)
  return matrix


@pytest.mark.parametrize('seed', range(5))
def test_graph_equals_its_definition(seed):
  rng = np.random.default_rng(seed)
  features = oracle.clustered(rng, clusters=4, each=int(rng.integers(3, 20)))
  n_trunc = int(rng.integers(4, len(features) + 1))
  kd = int(rng.integers(1, n_trunc + 1))
  built = graph.build(features, kd=kd, n_trunc=n_trunc, alpha=0.9, gamma=2)
  lists = oracle.neighbours(features, n_trunc)
  np.testing.assert_array_equal(built.neighbours, lists)
  weight = oracle.affinity(features, lists, kd, gamma=2)
  np.testing.assert_allclose(dense(built, built.affinity), weight, atol=2e-6)
  np.testing.assert_allclose(built.degree, weight.sum(axis=1), atol=2e-5)
  coupling = np.eye(len(features)) - oracle.laplacian(weight, alpha=0.9)
  np.testing.assert_allclose(dense(built, built.coupling), coupling, atol=2e-6)


def test_a_node_is_first_in_its_own_list_even_among_copies():
  rng = np.random.default_rng(0)
  features = oracle.unit(np.repeat(rng.standard_normal((3, 8)), 6, axis=0))
  # With four of six copies listed, the last copies are not found by similarity.
  listed = graph.nearest(features, k=4)
  np.testing.assert_array_equal(listed.rows[:, 0], np.arange(18))
  for i, row in enumerate(listed.rows):
    others = [j for j in range(i // 6 * 6, i // 6 * 6 + 6) if j != i]
    np.testing.assert_array_equal(row[1:], others[:3])
  np.testing.assert_allclose(listed.scores, 1, atol=1e-6)


@pytest.mark.parametrize('k', [1, 3, 12])
def test_selection_on_the_host_equals_that_on_a_device(k):
  rng = np.random.default_rng(k)
  # Few different values, so that ties stand at every place.
  scores = rng.integers(-2, 3, (20, 12)).astype(np.float32)
  found, rows = graph._best(scores, k)
  identity = np.eye(12, dtype=np.float32)
  wanted, wanted_rows = graph._best_on_device(scores, identity, k=k)
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_array_equal(rows, wanted_rows)


def test_neighbours_do_not_depend_on_the_parts(monkeypatch):
  features = oracle.clustered(np.random.default_rng(1), clusters=5, each=8)
  whole = graph.nearest(features, k=9)
  monkeypatch.setattr(graph, '_SIMILARITIES', 7 * len(features))
  parts = graph.nearest(features, k=9)
  np.testing.assert_array_equal(parts.rows, whole.rows)
  np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-6)


def test_an_isolated_node_has_no_edges():
  features = np.eye(6, dtype=np.float32)
  features[:5] += 0.9  # The last node is nobody's neighbour but its own.
  built = graph.build(features, kd=3, n_trunc=4)
  assert built.degree[5] == 0
  assert not built.coupling[5].any()
  assert np.isfinite(built.coupling).all()


def test_negative_similarities_make_no_edge():
  features = np.array([[1, 0], [-1, 0.1], [-1, -0.1]], np.float32)
  built = graph.build(features, kd=3, n_trunc=3)
  edges = dense(built, built.affinity) > 0
  np.testing.assert_array_equal(np.argwhere(edges), [[1, 2], [2, 1]])


@pytest.mark.parametrize(
  ('kd', 'n_trunc'), [(4, 3), (3, 11), (0, 5)], ids=['kd', 'trunc', 'none']
)
def test_sizes_that_do_not_fit_are_refused(kd, n_trunc):
  features = oracle.clustered(np.random.default_rng(0), clusters=2, each=5)
  with pytest.raises(ValueError, match=rf'kd={kd}, n_trunc={n_trunc} with 10'):
    graph.build(features, kd=kd, n_trunc=n_trunc)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 0])
def test_nodes_that_cannot_be_ranked_are_refused(bad):
  features = oracle.clustered(np.random.default_rng(0), clusters=2, each=5)
  features[7] = bad
  with pytest.raises(ValueError, match=r'satellites: 1 of 10 .* \(rows 7\)'):
    graph.build(features, kd=2, n_trunc=3, name='satellites')


def test_scale_of_features_does_not_matter():
  features = oracle.clustered(np.random.default_rng(2), clusters=3, each=6)
  scale = np.random.default_rng(3).uniform(0.1, 10, (18, 1)).astype(np.float32)
  built = graph.build(features, kd=4, n_trunc=8)
  scaled = graph.build(features * scale, kd=4, n_trunc=8)
  np.testing.assert_array_equal(scaled.neighbours, built.neighbours)
  np.testing.assert_allclose(scaled.coupling, built.coupling, atol=1e-6)


def test_node_numbers_are_checked():
  np.testing.assert_array_equal(graph.check_nodes(None, 3), [0, 1, 2])
  np.testing.assert_array_equal(
    graph.check_nodes([[4, 1], [1, 0]], 5), [0, 1, 4]
  )
  with pytest.raises(ValueError, match=r'in \[0, 5\)'):
    graph.check_nodes([5], 5)
  with pytest.raises(ValueError, match='node numbers'):
    graph.check_nodes([0.5], 5)
