"""Truncated systems, solved block by block."""

import jax
import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.retrieval.diffusion import graph, truncated_solve
from tests.retrieval.diffusion import oracle


def make(seed: int = 0, kd: int = 6, n_trunc: int = 20) -> graph.Graph:
  rng = np.random.default_rng(seed)
  features = oracle.clustered(rng, clusters=9, each=12)
  # Nodes without an edge converge after one step, beside others that do not.
  features[::25] = oracle.unit(rng.standard_normal((5, 16)))
  return graph.build(features, kd=kd, n_trunc=n_trunc)


def expected(built: graph.Graph, iterations: int):
  """(values, counts, residuals) by the oracle, on the graph's own matrix."""
  matrix = np.eye(len(built))
  for i, near in enumerate(built.neighbours[:, : built.kd]):
    matrix[i, near] -= built.coupling[i]
  solved = [
    oracle.cg(matrix[np.ix_(near, near)], iterations)
    for near in built.neighbours
  ]
  return tuple(map(np.array, zip(*solved, strict=True)))


def assert_rows_close(got, wanted, rtol=1e-3):
  """Within the noise that rounding of the matrix makes (spec plcd 8.5)."""
  largest = np.abs(wanted).max(axis=1, keepdims=True)
  assert np.all(np.abs(got - wanted) <= rtol * largest + 1e-6)


@pytest.mark.parametrize('block', [1, 5, 32, 200])
@pytest.mark.parametrize('iterations', [3, 12])
def test_rows_equal_the_recurrence_for_every_block_size(block, iterations):
  built = make()
  nodes = np.arange(len(built))
  got = truncated_solve.solve(built, nodes, iterations=iterations, block=block)
  values, count, residual = expected(built, iterations)
  assert_rows_close(got.values, values, rtol=1e-4)
  assert np.abs(got.iterations - count).max() <= 1
  np.testing.assert_allclose(got.residual, residual, atol=1e-3)
  assert got.iterations.max() == iterations
  assert got.iterations.min() == 1


def test_an_isolated_node_keeps_its_mass():
  built = make()
  alone = np.flatnonzero(built.degree == 0)
  assert len(alone) > 1
  got = truncated_solve.solve(built, np.arange(len(built)))
  np.testing.assert_array_equal(got.values[alone, 0], 1)
  np.testing.assert_array_equal(got.values[alone, 1:], 0)
  np.testing.assert_array_equal(got.iterations[alone], 1)


def test_any_choice_of_nodes_gives_the_same_rows():
  built = make(1)
  whole = truncated_solve.solve(built, np.arange(len(built)))
  nodes = np.random.default_rng(1).permutation(len(built))[:37]
  some = truncated_solve.solve(built, nodes)
  assert_rows_close(some.values, whole.values[nodes], rtol=1e-4)


def test_the_cap_is_part_of_the_result():
  built = make(kd=4, n_trunc=60)
  nodes = np.arange(len(built))
  few = truncated_solve.solve(built, nodes, iterations=4)
  many = truncated_solve.solve(built, nodes, iterations=400)
  assert np.abs(few.values - many.values).max() > 0.1
  assert many.residual.max() < 1e-6
  matrix = np.eye(len(built))
  for i, near in enumerate(built.neighbours[:, : built.kd]):
    matrix[i, near] -= built.coupling[i]
  exact = [
    np.linalg.solve(matrix[np.ix_(near, near)], np.eye(60)[0])
    for near in built.neighbours
  ]
  assert_rows_close(many.values, np.array(exact))


def test_wide_unions_are_split_and_change_nothing(monkeypatch):
  built = make(2)
  nodes = np.arange(len(built))
  whole = truncated_solve.solve(built, nodes)
  monkeypatch.setattr(truncated_solve, '_WIDEST', 1)
  linked, _ = truncated_solve._edges(built)
  blocks = list(truncated_solve._blocks(built, nodes, linked, 32))
  assert min(len(places) for places, _ in blocks) < 32 / 2
  np.testing.assert_array_equal(
    np.sort(np.concatenate([places for places, _ in blocks])),
    np.flatnonzero(built.degree > 0),
  )
  split = truncated_solve.solve(built, nodes)
  assert_rows_close(split.values, whole.values, rtol=1e-4)


def test_blocks_solved_together_equal_single_ones(monkeypatch):
  built = make(3)
  nodes = np.arange(len(built))
  single = truncated_solve.solve(built, nodes, block=8)
  monkeypatch.setattr(truncated_solve, '_GROUP', {})  # As off the CPU.
  linked, _ = truncated_solve._edges(built)
  blocks = truncated_solve._blocks(built, nodes, linked, 8)
  groups = truncated_solve._groups(blocks, group=16, padding=len(built))
  assert {len(members) for _, members, _ in groups} == {16}
  together = truncated_solve.solve(built, nodes, block=8)
  assert_rows_close(together.values, single.values, rtol=1e-4)
  assert np.abs(together.iterations - single.iterations).max() <= 1


def test_unions_without_padding_give_the_same_rows(monkeypatch):
  built = make(5)
  nodes = np.arange(len(built))
  padded = truncated_solve.solve(built, nodes)
  monkeypatch.setattr(truncated_solve, '_PAD', 1)
  exact = truncated_solve.solve(built, nodes)
  assert_rows_close(exact.values, padded.values, rtol=1e-4)


def test_devices_of_a_mesh_give_the_same_bits():
  built = make(4)
  nodes = np.arange(len(built))
  mesh = sharding.make_mesh()
  assert mesh.size == len(jax.devices()) == 8
  one = truncated_solve.solve(built, nodes, block=4)
  all_of_them = truncated_solve.solve(built, nodes, block=4, mesh=mesh)
  for a, b in zip(one, all_of_them, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('size', [1, 7, 32, 500])
def test_bisection_puts_every_row_in_one_full_set(size):
  features = np.random.default_rng(size).standard_normal((150, 6))
  sets = truncated_solve.bisect(features, size=size)
  np.testing.assert_array_equal(np.sort(np.concatenate(sets)), np.arange(150))
  sizes = sorted(map(len, sets))
  assert all(n == size for n in sizes[1:]) and sizes[0] <= size


def test_nodes_that_no_edge_leads_to_are_left_out_of_a_block():
  built = make()
  linked, _ = truncated_solve._edges(built)
  nodes = np.array([3, 40])
  reached = truncated_solve._reached(nodes, built.neighbours, linked)
  inside = set(built.neighbours[nodes].ravel())
  wanted, ahead = set(), set(nodes)
  while ahead:
    wanted |= ahead
    near = {j for i in ahead for j in linked[i]}
    ahead = (near & inside) - wanted
  assert wanted < inside
  np.testing.assert_array_equal(reached, sorted(wanted))


def test_bisection_finds_clusters():
  rng = np.random.default_rng(0)
  label = rng.permutation(np.repeat(np.arange(8), 16))
  features = 5 * rng.standard_normal((8, 12))[label]
  features += rng.standard_normal(features.shape)
  for rows in truncated_solve.bisect(features, size=16):
    assert len(set(label[rows])) == 1


def test_equal_rows_can_be_bisected():
  sets = truncated_solve.bisect(np.ones((40, 3), np.float32), size=8)
  assert [len(rows) for rows in sets] == [8] * 5


def test_options_that_make_no_sense_are_refused():
  with pytest.raises(ValueError, match='block=0'):
    truncated_solve.solve(make(), np.arange(3), block=0)
