"""PLCD: graph, offline rows and rankings of cross-diffusion; fyang93/diffusion.

A graph's features are stored in `diffusion_<case>_graph` only; the checks of
`..._offline` and `..._rank` read them from there.
"""

import dataclasses
import pathlib

import numpy as np

from cvgl_jax.retrieval import ranking, search
from cvgl_jax.retrieval.diffusion import cross, graph, rerank
from tests import golden_case
from tests.golden_case import Case

# README: of the array's maximum; other cases go by `_ROW_TOLERANCE`, as `b`.
_ROWS = {'a': 2e-6, 'hiera4': 2e-6, 'tiny': 5e-5}
_ROW_TOLERANCE = 1e-3
_SCORES = {'a': 1e-6, 'hiera4': 1e-6}
_SCORES_TOLERANCE = 5e-4


def _options(case: Case) -> cross.Options:
  return cross.Options(
    kq=case.scalar('in/kq'),
    kd=case.scalar('in/kd'),
    n_trunc=case.scalar('in/n_trunc'),
    gamma=case.argument('gamma', 3),
    alpha=case.argument('alpha', 0.99),
    hiera=case.argument('hiera', 0),
  )


def _graph_file(case: Case) -> Case:
  """The file with the features of the same case."""
  name, _, kind = case.stem.partition('_offline')
  if name == case.stem:
    name, _, kind = case.stem.partition('_rank')
  delivered = golden_case.DEFAULT / case.path.parent.name
  for folder in (case.path.parent, delivered):
    path: pathlib.Path = folder / f'{name}_graph{kind}.npz'
    if path.exists():
      return Case(path)
  raise FileNotFoundError(f'{case.path.name}: its features are in {path.name}')


def _tolerance(case: Case, known: dict[str, float], other: float) -> float:
  return known.get(case.stem.split('_')[1], other)


def _triplets(columns: np.ndarray, values: np.ndarray):
  """Non-zeros of ELL rows as row, column, value, sorted by row and column."""
  row, place = np.nonzero(values)
  column = columns[row, place]
  order = np.lexsort((column, row))
  return row[order], column[order], values[row, place][order]


def _scatter(ids: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
  """Rows by node number [M, N]: near ties swap places, not nodes."""
  dense = np.zeros((len(ids), size))
  np.put_along_axis(dense, ids.astype(np.int64), values, axis=1)
  return dense


def check_graph(case: Case) -> None:
  options = _options(case)
  nodes = np.concatenate([case['in/drone'], case['in/sat']])
  built = graph.build(nodes, **options.graph)
  case.close('out/knn_sims', built.similarity, rtol=5e-7, scale=1.0)
  expected = case['out/knn_ids']
  # Other nodes only where the reference's own similarities tie.
  exact = nodes.astype(np.float64) @ nodes.T.astype(np.float64)
  np.testing.assert_allclose(
    np.take_along_axis(exact, built.neighbours, 1)[
      built.neighbours != expected
    ],
    np.take_along_axis(exact, expected, 1)[built.neighbours != expected],
    atol=5e-7,
    rtol=0,
  )
  case.close('out/degree', built.degree, rtol=1e-6)
  columns = built.neighbours[:, : options.kd]
  laplacian = np.where(
    columns == np.arange(len(nodes))[:, None], 1, -built.coupling
  )
  for name, values in (('aff', built.affinity), ('lap', laplacian)):
    row, column, value = _triplets(columns, values)
    case.equal(f'out/{name}_row', row)
    case.equal(f'out/{name}_col', column)
    case.close(f'out/{name}_val', value, rtol=1e-6)
  case.ignore('in/kq', 'the graph does not depend on it')


def check_offline(case: Case) -> None:
  options = _options(case)
  source = _graph_file(case)
  nodes = np.concatenate([source['in/drone'], source['in/sat']])
  built = graph.build(nodes, **options.graph)
  rows = cross.offline(built, options=options)
  assert np.array_equal(rows.nodes, np.arange(len(nodes)))
  got = _scatter(rows.ids, rows.values, len(nodes))
  ids = source['out/knn_ids']
  rtol = _tolerance(case, _ROWS, 0)
  for name in ('offline_scipy110_tol', 'offline_scipy117_rtol'):
    expected = _scatter(ids, case[f'out/{name}'], len(nodes))
    if rtol:
      allowed = rtol * np.abs(expected).max()
    else:
      largest = np.abs(expected).max(axis=1, keepdims=True)
      allowed = _ROW_TOLERANCE * largest + 1e-6
    assert np.all(np.abs(got - expected) <= allowed), name
  difference = np.abs(rows.iterations - case['out/cg_iterations'])
  assert difference.max() <= 1, difference.max()
  # Theirs is computed again in float64, ours is that of the recurrence. Beside
  # a right-hand side of norm 1, as the rows.
  residual = case['out/cg_final_residual']
  assert np.abs(rows.residual - residual).max() <= _ROW_TOLERANCE
  if 'out/offline_exact_f64' in case:
    converged = dataclasses.replace(options, converge=True)
    rows = cross.offline(built, options=converged)
    expected = _scatter(ids, case['out/offline_exact_f64'], len(nodes))
    error = np.abs(_scatter(rows.ids, rows.values, len(nodes)) - expected).max(
      axis=1
    )
    assert np.all(error <= 2e-5 * np.abs(expected).max(axis=1))
  case.ignore('in/kq', 'offline rows do not depend on it')


def check_rank(case: Case) -> None:
  options = _options(case)
  source = _graph_file(case)
  seeds = cross.nearest_places(
    case['in/g2d_query'],
    case['in/g2d_drone'],
    k=options.kq,
    vectors=options.hiera + 1,
  )
  case.equal('out/top_ids', seeds.rows)
  names = [f'drone_{i:04d}.jpeg' for i in range(len(source['in/drone']))]
  scores = cross.cross_diffusion(
    case['in/g2d_query'],
    case['in/g2d_drone'],
    source['in/drone'],
    source['in/sat'],
    options=options,
    drone_paths=(names, names),
  )
  rtol = _tolerance(case, _SCORES, _SCORES_TOLERANCE)
  case.close('out/scores', scores, rtol=rtol)
  found = search.top_k_scores(scores, k=scores.shape[1])
  case.equal('out/rank_stable', found.rows)
  result = ranking.evaluate_scores(
    scores, case['in/label_query'], case['in/label_sat'], per_query=True
  )
  case.close('out/CMC', result.cmc, rtol=1e-6)
  case.close('out/mAP', result.average_precision, rtol=1e-6)
  case.close('out/ap_per_query', result.query_average_precision, rtol=1e-6)
  case.equal('out/first_hit_rank0', result.first_rank)
  recall = [*result.recall, result.recall_percent]
  case.close('out/recall_1_5_10_1pct', recall, rtol=1e-6)
  case.ignore('in/label_drone', 'only satellites are ranked')
  case.ignore(
    'out/*_published_run',
    'the published order of ties changes from run to run; ours is stable',
  )


def check_search(case: Case) -> None:
  query, gallery = case['in/queries'], case['in/gallery']
  options = _options(case)
  joint = rerank.joint_diffusion(query, gallery, options=options)
  case.close('out/search_scores', joint, rtol=1e-5)
  order = search.top_k_scores(joint, k=len(gallery)).rows
  case.equal('out/search_rank_stable', order)
  old = rerank.gallery_diffusion(query, gallery, options=options)
  case.close('out/search_old_scores', old, rtol=1e-5)
  listed = case['out/search_old_rank_stable']
  best = search.top_k_scores(old, k=listed.shape[1]).rows
  case.equal('out/search_old_rank_stable', best)
  junk = np.zeros(joint.shape, bool)
  np.put_along_axis(junk, case['in/gnd_junk'], True, axis=1)
  positives = case['in/gnd_ok']
  result = ranking.evaluate_scores(
    joint, positives=positives, junk=junk, per_query=True
  )
  case.close('out/map', result.average_precision, rtol=1e-6)
  case.close('out/ap_per_query', result.query_average_precision, rtol=1e-6)
  # Positions of the positives once junk is taken out.
  ordered_junk = np.take_along_axis(junk, order, axis=1)
  precision = np.zeros((len(query), 3))
  for i, row in enumerate(order):
    found = np.flatnonzero(np.isin(row[~ordered_junk[i]], positives[i])) + 1
    for j, k in enumerate((1, 5, 10)):
      k = min(k, found.max())
      precision[i, j] = np.count_nonzero(found <= k) / k
  case.close('out/precision_at_1_5_10', precision.mean(axis=0), rtol=1e-6)


def check_probe(case: Case) -> None:
  """Parts of a larger result, on the benchmark's features."""
  size, dim = case.scalar('in/N'), case.scalar('in/D')
  seed = case.scalar('in/seed')
  nodes, query = bench_features(size, dim, seed)
  case.close('in/X_head', nodes[:4], rtol=1e-7)
  options = _options(case)
  built = graph.build(nodes, **options.graph)
  head = case['out/knn_ids_head']
  case.equal('out/knn_ids_head', built.neighbours[: len(head), : head.shape[1]])
  rows = cross.offline(built, options=options)
  case.close('out/row_first', rows.values[:, 0], rtol=1e-3)
  total = rows.values.sum(axis=1, dtype=np.float64)
  error = np.abs(total / case['out/row_sum'] - 1)
  # A near tie at the edge of the kd nearest moves single rows (README).
  assert np.count_nonzero(error > 1e-4) <= size // 2500, np.sort(error)[-5:]
  assert error.max() <= 2e-3
  ids = case['out/rows_head_ids']
  expected = _scatter(ids, case['out/rows_head'], size)
  got = _scatter(rows.ids[: len(ids)], rows.values[: len(ids)], size)
  largest = np.abs(expected).max(axis=1, keepdims=True)
  assert np.all(np.abs(got - expected) <= 1e-3 * largest)
  drones = size - size // 20
  seeds = cross.nearest_places(query, nodes[:drones], k=options.kq)
  case.equal('out/query_top_ids', seeds.rows)
  scores = cross.online(
    seeds, rows, gamma=options.gamma, columns=(drones, size)
  )
  case.equal('out/query_best_satellite', np.argmax(scores, axis=1))
  listed = len(case['out/query_scores_head'])
  case.close('out/query_scores_head', scores[:listed], rtol=1e-3)


def bench_features(size: int, dim: int, seed: int):
  """Nodes [N, D] and 100 queries by the rule of `bench.json`."""
  rng = np.random.default_rng(seed)
  label = np.arange(size) // 20
  center = rng.standard_normal((size // 20, dim))
  place = rng.standard_normal((size, 3))
  axes = rng.standard_normal((3, dim))
  noise = rng.standard_normal((size, dim))
  nodes = 0.3 * center[label] + place @ axes + 0.2 * noise
  nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
  nodes = nodes.astype(np.float32)
  rng = np.random.default_rng(seed + 1)
  query = nodes[rng.integers(0, size - size // 20, 100)]
  query = query + np.float32(0.08) * rng.standard_normal((100, dim)).astype(
    np.float32
  )
  return nodes, query / np.linalg.norm(query, axis=1, keepdims=True)


def check_diffusion(case: Case) -> None:
  """By the part of the case that the file's name says."""
  kinds = {
    '_graph': check_graph,
    '_offline': check_offline,
    '_rank': check_rank,
    '_search': check_search,
  }
  found = [check for kind, check in kinds.items() if kind in case.stem]
  assert len(found) == 1, f'{case.stem}: not one of {sorted(kinds)}'
  found[0](case)


CHECKS = {'diffusion_': check_diffusion, 'bench_probe_': check_probe}
