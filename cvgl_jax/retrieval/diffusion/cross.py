"""Diffusion on a neighbourhood graph, and search across two spaces by it.

Offline, every node i of a graph spreads its own unit of mass over its n_trunc
nearest nodes t_i: row i of F solves L[t_i, t_i] x = e_0, with L the Laplacian
of `graph`. Online, a query picks its kq most similar nodes K and scores

  score(g) = sum over j in K of s_j^gamma F[j, g]

Cross-diffusion (PLCD): the similarities s come from one space (ground to drone)
and F from another (drone to satellite); they are joined by the drone pictures,
which both spaces must list in the same order.

Conjugate gradients stop after 20 iterations: on graphs where they have not
converged by then, that cap is part of the method (`Options.converge` removes
it). n_trunc = number of nodes with `converge` is the untruncated diffusion, a
different method that is not better in general.

Source: PLCD (ZelongZeng/PLCD `diffusion/`), fyang93/diffusion (`rank.py`).
Differs: equal scores go by the lower row (the published order of ties changes
from run to run; 10-50 % of satellites tie at 0); only rows that queries read
are solved; results are cached by content, not by model name.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from cvgl_jax.retrieval import search
from cvgl_jax.retrieval.diffusion import cache, graph, spaces, truncated_solve

# Iterations that `converge` allows. The condition number is at most
# (1 + alpha) / (1 - alpha), 199 for 0.99, where about 100 are enough.
_CONVERGE_ITERATIONS = 2000
# Terms of the online sum that are held at a time.
_TERMS = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Parameters of diffusion; the defaults are PLCD's published command.

  Attributes:
    kq: nodes that a query starts from.
    kd: neighbours that decide the edges of the graph, the node itself counted.
    n_trunc: nodes that one node spreads over.
    alpha: share of the mass that moves on, in (0, 1).
    gamma: power of the cosines, in the edges and in the query's weights.
    cg_iterations: at most so many conjugate-gradient iterations.
    cg_tolerance: residual norm at which a node is done.
    converge: iterate until every node is done, whatever `cg_iterations` says.
    hiera: every drone picture has hiera + 1 consecutive vectors in the query's
      space, and counts with the most similar of them.
    block: nodes solved together; changes speed, not results (1 solves each node
      alone).
  """

  kq: int = 20
  kd: int = 70
  n_trunc: int = 500
  alpha: float = 0.99
  gamma: int = 3
  cg_iterations: int = 20
  cg_tolerance: float = 1e-6
  converge: bool = False
  hiera: int = 0
  block: int = 32

  def __post_init__(self):
    for name in ('kq', 'kd', 'n_trunc', 'gamma', 'cg_iterations', 'block'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise ValueError(f'diffusion: {name}={value!r}, expected 1, 2, 3, ...')
    if not isinstance(self.hiera, int) or self.hiera < 0:
      raise ValueError(f'diffusion: hiera={self.hiera!r}, expected 0, 1, ...')
    if not 0 < self.alpha < 1:
      raise ValueError(f'diffusion: alpha={self.alpha}, expected in (0, 1)')
    if not 0 < self.cg_tolerance < 1:
      raise ValueError(
        f'diffusion: cg_tolerance={self.cg_tolerance}, expected in (0, 1)'
      )
    if self.kd > self.n_trunc:
      raise ValueError(
        f'diffusion: kd={self.kd} is larger than n_trunc={self.n_trunc}; the '
        'kd nearest must be among the nodes that are kept'
      )

  @property
  def graph(self) -> dict[str, int | float]:
    """Arguments of `graph.build`."""
    names = ('kd', 'n_trunc', 'alpha', 'gamma')
    return {name: getattr(self, name) for name in names}


class Offline(NamedTuple):
  """Rows of F.

  Attributes:
    nodes: [M] int64, ascending: which rows.
    ids: [M, T] int32, columns of the values; the node itself first.
    values: [M, T] float32; the other columns of the row are 0.
    iterations: [M] int32, conjugate-gradient iterations of each row.
    residual: [M] float32, norm of its recursive residual at the end.
  """

  nodes: np.ndarray
  ids: np.ndarray
  values: np.ndarray
  iterations: np.ndarray
  residual: np.ndarray


def offline(
  nodes_graph: graph.Graph,
  *,
  options: Options,
  nodes: np.ndarray | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Offline:
  """Rows of F for some nodes of a graph, or for all of them.

  Args:
    nodes_graph: of `graph.build(features, **options.graph)`.
    options: the conjugate-gradient part of them is used.
    nodes: node numbers; None means all. Rows do not depend on each other.
    mesh: deals the work out to its local devices; None uses the default one.

  Raises:
    ValueError: nodes outside the graph.
  """
  nodes = graph.check_nodes(nodes, len(nodes_graph))
  solution = truncated_solve.solve(
    nodes_graph,
    nodes,
    iterations=_CONVERGE_ITERATIONS
    if options.converge
    else options.cg_iterations,
    tolerance=options.cg_tolerance,
    block=options.block,
    mesh=mesh,
  )
  stopped = np.count_nonzero(solution.residual >= options.cg_tolerance)
  message = (
    f'diffusion: {stopped} of {len(nodes)} nodes stopped after '
    f'{solution.iterations.max()} iterations with a residual up to '
    f'{solution.residual.max():.1e}'
  )
  if stopped and options.converge:
    logging.warning('%s; they did not converge', message)
  elif stopped:
    logging.info('%s; the cap is part of the method', message)
  return Offline(nodes, nodes_graph.neighbours[nodes], *solution)


def online(
  seeds: search.TopK,
  rows: Offline,
  *,
  gamma: int = 3,
  columns: tuple[int, int],
) -> np.ndarray:
  """Diffused scores of queries.

  Memory: the result, and about 100 MiB.

  Args:
    seeds: scores and nodes [Q, kq] that each query starts from. Scores are not
      clipped: a negative one has a negative weight if gamma is odd.
    rows: must hold every node of `seeds`.
    gamma: power of the scores.
    columns: (first, end) of the nodes that are scored.

  Returns:
    [Q, end - first] float32; 0 for nodes that no seed reaches.

  Raises:
    ValueError: a seed without a row.
  """
  row = np.searchsorted(rows.nodes, seeds.rows)
  known = rows.nodes[np.minimum(row, len(rows.nodes) - 1)] == seeds.rows
  if not known.all():
    raise ValueError(
      f'node {seeds.rows[~known][0]} is a seed but was not diffused; pass all '
      'seeds as `nodes` to `offline`'
    )
  first, end = columns
  width = end - first
  weight = np.asarray(seeds.scores, np.float64) ** gamma
  scores = np.empty((len(row), width), np.float32)
  step = max(1, _TERMS // max(row.shape[1] * rows.ids.shape[1], width))
  for start in range(0, len(row), step):
    part = slice(start, start + step)
    ids = rows.ids[row[part]]  # [q, kq, T]
    inside = (ids >= first) & (ids < end)
    query, seed, _ = np.nonzero(inside)
    total = np.bincount(
      query * width + ids[inside] - first,
      weights=weight[part][query, seed] * rows.values[row[part]][inside],
      minlength=len(ids) * width,
    )
    scores[part] = total.reshape(-1, width)
  return scores


def diffused_rows(
  features: np.ndarray,
  *,
  read: np.ndarray,
  candidates: int,
  options: Options,
  cache_dir: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Offline:
  """Builds the graph of features and diffuses the nodes that are read.

  Args:
    features: [N, D] unit rows.
    read: nodes that will be seeds.
    candidates: nodes [0, candidates) can ever be seeds. With a cache all of them
      are diffused, so that other queries find them; without one only `read`.
    options: of the graph and of the rows.
    cache_dir: folder of the cache.
    mesh: as in `offline`.
  """

  def compute(nodes):
    built = graph.build(features, **options.graph)
    return offline(built, options=options, nodes=nodes, mesh=mesh)

  if cache_dir is None:
    return compute(read)
  # What only changes speed, or the online part, does not belong to the rows.
  parameters = dataclasses.asdict(options) | {'nodes': candidates}
  for name in ('kq', 'hiera', 'block'):
    del parameters[name]
  if options.converge:
    del parameters['cg_iterations']
  key = cache.key(features, parameters=parameters)
  found = cache.load(
    cache_dir, key, shape=(candidates, options.n_trunc), nodes=len(features)
  )
  if found is not None:
    return Offline(**found)
  rows = compute(np.arange(candidates))
  cache.store(cache_dir, key, rows._asdict())
  return rows


def cross_diffusion(
  ground: np.ndarray,
  drone_g2d: np.ndarray,
  drone_d2s: np.ndarray,
  satellite: np.ndarray,
  *,
  options: Options | None = None,
  drone_paths: tuple[Sequence[str], Sequence[str]] | None = None,
  cache_dir: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """Scores of satellite pictures for ground queries, by way of drone pictures.

  Memory: the features, the graph (see `graph`), 8 * M * n_trunc bytes for M
  diffused rows, and the result of 4 * Q * S bytes; split the queries if that is
  too large. Rank with `search.top_k_scores` or the evaluation of scores: stable,
  equal scores by the lower satellite.

  Args:
    ground: [Q, D] features of the queries, ground-to-drone model.
    drone_g2d: [(hiera + 1) n, D] features of the drone pictures, same model.
    drone_d2s: [n, E] features of the same pictures, drone-to-satellite model.
    satellite: [S, E] features of the satellite pictures, same model.
    options: defaults if None.
    drone_paths: paths of the drone pictures in either space; checked for being
      the same list. Without them only the counts can be checked.
    cache_dir: keeps the rows of all drone pictures in this folder, under a hash
      of features and options. Without it only rows that queries read are solved.
    mesh: deals the work out to its local devices; None uses the default one.

  Returns:
    [Q, S] float32.

  Raises:
    ValueError: the spaces list different drone pictures, kq or n_trunc exceed
      what there is, or features that cannot be ranked.
  """
  options = options or Options()
  count = len(drone_d2s)
  vectors = options.hiera + 1
  if len(drone_g2d) != vectors * count:
    raise ValueError(
      f'{len(drone_g2d)} drone rows of the ground-to-drone model and {count} of '
      f'the drone-to-satellite model; with hiera={options.hiera} the first must '
      f'be {vectors} times the second: extract both from the same pictures (a '
      'low-altitude list in one and the full list in the other do not match)'
    )
  spaces.check_paths(drone_paths, count)
  query, drone = spaces.pair(
    (ground, 'ground pictures'),
    (drone_g2d, 'drone pictures (ground-to-drone model)'),
  )
  seeds = nearest_places(query, drone, k=options.kq, vectors=vectors, mesh=mesh)
  drone, target = spaces.pair(
    (drone_d2s, 'drone pictures (drone-to-satellite model)'),
    (satellite, 'satellite pictures'),
  )
  rows = diffused_rows(
    np.concatenate([drone, target]),
    read=seeds.rows,
    candidates=count,
    options=options,
    cache_dir=cache_dir,
    mesh=mesh,
  )
  scores = online(
    seeds, rows, gamma=options.gamma, columns=(count, count + len(target))
  )
  spaces.mention_lost(scores, kq=options.kq, kd=options.kd)
  return scores


def nearest_places(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  k: int,
  vectors: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> search.TopK:
  """`search.top_k` over entries that have several consecutive vectors each.

  An entry's score is that of its most similar vector.

  Args:
    query: [Q, D] unit rows.
    gallery: [vectors * n, D] unit rows.
    k: entries per query.
    vectors: per entry.
    mesh: of the search.

  Returns:
    `TopK` with scores and entry numbers [Q, k].

  Raises:
    ValueError: k > n.
  """
  count = len(gallery) // vectors
  if k > count:
    raise ValueError(f'kq={k}, but there are {count} entries to start from')
  # Entries better than the k-th best hold less than k * vectors vectors.
  top = search.top_k(query, gallery, k=k * vectors, similarity='dot', mesh=mesh)
  if vectors == 1:
    return top
  entry = top.rows // vectors
  order = np.argsort(entry, axis=1, kind='stable')
  ordered = np.take_along_axis(entry, order, axis=1)
  is_first = np.ones(entry.shape, bool)
  is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  best = np.empty(entry.shape, bool)
  np.put_along_axis(best, order, is_first, axis=1)
  chosen = np.argsort(~best, axis=1, kind='stable')[:, :k]
  return search.TopK(
    np.take_along_axis(top.scores, chosen, axis=1),
    np.take_along_axis(entry, chosen, axis=1),
  )
