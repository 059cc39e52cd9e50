"""Offline rows, the online sum, and cross-diffusion of two spaces."""

import dataclasses

import numpy as np
import pytest
from absl import logging

from cvgl_jax.retrieval import search
from cvgl_jax.retrieval.diffusion import cross, graph
from tests.retrieval.diffusion import oracle

OPTIONS = cross.Options(kq=4, kd=6, n_trunc=15)


@dataclasses.dataclass
class Spaces:
  """A tiny ground-to-drone and drone-to-satellite world."""

  ground: np.ndarray
  drone_g2d: np.ndarray
  drone_d2s: np.ndarray
  satellite: np.ndarray

  @property
  def arrays(self):
    return self.ground, self.drone_g2d, self.drone_d2s, self.satellite


def spaces(seed: int = 0, places: int = 8, vectors: int = 1) -> Spaces:
  """Six drone pictures, one satellite and two ground pictures of each place."""
  rng = np.random.default_rng(seed)

  def view(dim, count, spread):
    center = np.random.default_rng([seed, dim]).standard_normal((places, dim))
    rows = np.repeat(center, count, axis=0)
    return oracle.unit(rows + spread * rng.standard_normal(rows.shape))

  return Spaces(
    ground=view(12, 2, 0.9),
    drone_g2d=view(12, 6 * vectors, 0.7),
    drone_d2s=view(10, 6, 0.6),
    satellite=view(10, 1, 0.6),
  )


def expected(world: Spaces, options: cross.Options) -> np.ndarray:
  nodes = np.concatenate([world.drone_d2s, world.satellite])
  rows = oracle.offline(
    nodes,
    kd=options.kd,
    n_trunc=options.n_trunc,
    iterations=options.cg_iterations,
  )
  found = oracle.seeds(
    world.ground, world.drone_g2d, options.kq, options.hiera + 1
  )
  return oracle.online(found, rows)[:, len(world.drone_d2s) :]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('hiera', [0, 2])
def test_cross_diffusion_equals_its_definition(seed, hiera):
  world = spaces(seed, vectors=hiera + 1)
  options = dataclasses.replace(OPTIONS, hiera=hiera)
  names = [f'{i}.jpeg' for i in range(len(world.drone_d2s))]
  got = cross.cross_diffusion(
    *world.arrays, options=options, drone_paths=(names, np.array(names))
  )
  wanted = expected(world, options)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, wanted, atol=1e-4 * wanted.max())
  # Satellites that no seed reaches tie at 0, lower rows first.
  assert (wanted == 0).any()
  order = np.argsort(-np.round(wanted, 4), axis=1, kind='stable')
  zero = np.take_along_axis(wanted, order, axis=1) == 0
  rows = search.top_k_scores(got, k=got.shape[1]).rows
  np.testing.assert_array_equal(rows[zero], order[zero])


def test_one_query_is_enough():
  world = spaces()
  got = cross.cross_diffusion(*world.arrays, options=OPTIONS)
  world.ground = world.ground[:1]
  one = cross.cross_diffusion(*world.arrays, options=OPTIONS)
  np.testing.assert_allclose(one, got[:1], rtol=1e-4, atol=1e-6)


def test_rows_of_some_nodes_equal_those_of_all():
  world = spaces(3)
  nodes = np.concatenate([world.drone_d2s, world.satellite])
  built = graph.build(nodes, **OPTIONS.graph)
  whole = cross.offline(built, options=OPTIONS)
  some = cross.offline(built, options=OPTIONS, nodes=[9, 4, 4, 17])
  np.testing.assert_array_equal(some.nodes, [4, 9, 17])
  np.testing.assert_array_equal(some.ids, whole.ids[some.nodes])
  np.testing.assert_allclose(
    some.values, whole.values[some.nodes], rtol=1e-4, atol=1e-5
  )


def test_converge_goes_on_after_the_cap_and_says_what_happened(monkeypatch):
  lines = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(
      logging, level, lambda text, *args: lines.append(text % args)
    )
  world = spaces(1)
  built = graph.build(world.drone_d2s, **OPTIONS.graph)
  capped = dataclasses.replace(OPTIONS, cg_iterations=3)
  stopped = cross.offline(built, options=capped)
  assert stopped.iterations.max() == 3
  assert 'stopped after 3 iterations' in lines.pop()
  free = dataclasses.replace(capped, converge=True)
  rows = cross.offline(built, options=free)
  assert rows.residual.max() < OPTIONS.cg_tolerance
  assert not lines
  near = rows.ids[0]
  matrix = np.eye(len(built))
  for i, columns in enumerate(built.neighbours[:, : built.kd]):
    matrix[i, columns] -= built.coupling[i]
  exact = np.linalg.solve(matrix[np.ix_(near, near)], np.eye(len(near))[0])
  np.testing.assert_allclose(rows.values[0], exact, atol=1e-4 * exact.max())
  monkeypatch.setattr(cross, '_CONVERGE_ITERATIONS', 2)
  cross.offline(built, options=free)
  assert 'did not converge' in lines.pop()


def test_online_sums_weighted_rows(monkeypatch):
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(30)[:9] for _ in range(5)]).astype(np.int32)
  values = rng.standard_normal(ids.shape).astype(np.float32)
  nodes = np.array([2, 3, 5, 7, 11])
  rows = cross.Offline(nodes, ids, values, nodes, nodes)
  # Negative similarities weigh negatively; a seed may come twice.
  similarity = rng.uniform(-1, 1, (6, 4)).astype(np.float32)
  chosen = rng.integers(0, 5, (6, 4))
  dense = np.zeros((5, 30))
  np.put_along_axis(dense, ids.astype(int), values, axis=1)
  wanted = np.einsum('qk,qkn->qn', similarity.astype(float) ** 3, dense[chosen])
  assert (similarity < 0).any()
  seeds = search.TopK(similarity, nodes[chosen])
  for terms in (1, 40, 2**20):
    monkeypatch.setattr(cross, '_TERMS', terms)
    got = cross.online(seeds, rows, gamma=3, columns=(8, 25))
    np.testing.assert_allclose(got, wanted[:, 8:25], atol=1e-6)
  seeds = search.TopK(similarity, nodes[chosen] + 1)
  with pytest.raises(ValueError, match='was not diffused'):
    cross.online(seeds, rows, gamma=3, columns=(8, 25))


@pytest.mark.parametrize('vectors', [1, 3])
def test_places_count_with_their_most_similar_vector(vectors):
  rng = np.random.default_rng(vectors)
  query = oracle.unit(rng.standard_normal((7, 5)))
  places = oracle.unit(rng.standard_normal((10 * vectors, 5)))
  places[vectors : 2 * vectors] = places[4 * vectors : 5 * vectors]  # A tie.
  got = cross.nearest_places(query, places, k=10, vectors=vectors)
  wanted = oracle.seeds(query, places, 10, vectors)
  np.testing.assert_array_equal(got.rows, [[j for _, j in q] for q in wanted])
  np.testing.assert_allclose(
    got.scores, [[s for s, _ in q] for q in wanted], atol=1e-6
  )


def test_another_list_of_pictures_is_refused():
  world = spaces()
  names = [f'{i:02d}.jpeg' for i in range(len(world.drone_d2s))]
  other = [*names[:5], 'low/05.jpeg', *names[6:]]
  with pytest.raises(ValueError, match=r"row 5 is '05.jpeg' .* 'low/05.jpeg'"):
    cross.cross_diffusion(
      *world.arrays, options=OPTIONS, drone_paths=(names, other)
    )
  with pytest.raises(ValueError, match='48 and 47 entries for 48'):
    cross.cross_diffusion(
      *world.arrays, options=OPTIONS, drone_paths=(names, names[:-1])
    )


def test_another_number_of_pictures_is_refused():
  world = spaces()
  world.drone_g2d = world.drone_g2d[:-6]
  with pytest.raises(ValueError, match=r'42 drone rows .* and 48'):
    cross.cross_diffusion(*world.arrays, options=OPTIONS)
  with pytest.raises(ValueError, match=r'with hiera=2 .* 3 times'):
    cross.cross_diffusion(
      *spaces().arrays, options=dataclasses.replace(OPTIONS, hiera=2)
    )


def test_missing_paths_are_mentioned(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lines.append)
  cross.cross_diffusion(*spaces().arrays, options=OPTIONS)
  assert 'nothing checks' in lines[0]


def test_queries_that_reach_no_satellite_are_mentioned(monkeypatch):
  lines, world = [], spaces()
  monkeypatch.setattr(logging, 'warning', lines.append)
  paths = [str(i) for i in range(len(world.drone_d2s))]
  run = lambda: cross.cross_diffusion(
    *world.arrays, options=OPTIONS, drone_paths=(paths, paths)
  )
  assert run().any(axis=1).all() and not lines
  # All in one corner, so that they are neighbours of each other only.
  world.satellite = oracle.unit(
    world.satellite * 0.01 - world.drone_d2s.mean(0)
  )
  assert not run().any()
  assert '16 of 16 queries reach no satellite' in lines[0]


@pytest.mark.parametrize(
  ('side', 'name'),
  [
    ('ground', 'ground pictures'),
    ('drone_g2d', r'drone pictures \(ground-to-drone'),
    ('drone_d2s', r'drone pictures \(drone-to-satellite'),
    ('satellite', 'satellite pictures'),
  ],
)
def test_bad_features_are_refused_by_side_and_row(side, name):
  world = spaces()
  getattr(world, side)[2] = np.nan
  with pytest.raises(ValueError, match=rf'{name}.* NaN .*rows 2\)'):
    cross.cross_diffusion(*world.arrays, options=OPTIONS)


def test_models_of_other_dimensions_are_refused():
  world = spaces()
  world.ground = world.ground[:, :-1]
  with pytest.raises(ValueError, match=r'dimension 11, .* 12'):
    cross.cross_diffusion(*world.arrays, options=OPTIONS)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kd': 16}, 'kd=16 is larger than n_trunc=15'),
    ({'kq': 0}, 'kq=0'),
    ({'gamma': 2.5}, 'gamma=2.5'),
    ({'alpha': 1.0}, 'alpha=1.0'),
    ({'cg_tolerance': 0.0}, 'cg_tolerance=0.0'),
    ({'hiera': -1}, 'hiera=-1'),
    ({'block': 0}, 'block=0'),
  ],
)
def test_options_that_make_no_sense_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(OPTIONS, **change)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kq': 49}, 'kq=49, but there are 48'),
    ({'n_trunc': 57}, 'n_trunc=57 with 56 nodes'),
  ],
)
def test_options_beyond_the_data_are_refused(change, message):
  options = dataclasses.replace(OPTIONS, **change)
  with pytest.raises(ValueError, match=message):
    cross.cross_diffusion(*spaces().arrays, options=options)
