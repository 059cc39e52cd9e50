"""Cross-diffusion against scipy's `cg` for one node after the other.

  python -m benchmarks.diffusion [--size=small|published|full]

The baseline tells the published algorithm again (PLCD `diffusion/`): exact
neighbours by NumPy, the sparse Laplacian, and for every node a slice of it and
`scipy.sparse.linalg.cg` with at most 20 iterations. Its solves are timed on 500
random nodes, and scaled; those that 100 queries read are solved besides, to
compare rankings. Both sides run in this process on one
core with one thread, ours once before the clock so that nothing is compiled;
numbers are CPU milliseconds a node. On an accelerator ours runs there, numbers
of ours are wall time, and nodes/s are what counts.

small: 2,000 nodes. published: 18,069 nodes, PLCD's low-altitude set, and the
cost of a node at 2,000 and 5,000. full: 50,000 nodes besides.
"""

import argparse
import os
import sys
import time

# Before anything starts threads: both sides get one.
os.environ['OPENBLAS_NUM_THREADS'] = os.environ['OMP_NUM_THREADS'] = '1'
os.environ['MKL_NUM_THREADS'] = '1'
os.environ['XLA_FLAGS'] = (
  '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 '
  + os.environ.get('XLA_FLAGS', '')
)

import jax
import numpy as np

from cvgl_jax.retrieval import search
from cvgl_jax.retrieval.diffusion import cross, graph

DIM = 512
SIZES = {
  'small': (2_000,),
  'published': (2_000, 5_000, 18_069),
  'full': (2_000, 5_000, 18_069, 50_000),
}
# The largest of these is compared with the baseline.
COMPARED = (2_000, 18_069)
OPTIONS = cross.Options()
# Nodes that the baseline's solves are timed on.
TIMED = 500


def features(size: int, seed: int = 2024) -> tuple[np.ndarray, np.ndarray]:
  """Unit nodes [N, 512], twenty to a cluster on a 3-d manifold; 100 queries.

  The rule of the golden file `bench.json`; sizes that are no multiple of 20
  leave out the last nodes of the next one that is.
  """
  count = -(-size // 20) * 20
  rng = np.random.default_rng(seed)
  center = rng.standard_normal((count // 20, DIM))
  nodes = rng.standard_normal((count, 3)) @ rng.standard_normal((3, DIM))
  nodes += 0.3 * center[np.arange(count) // 20]
  nodes += 0.2 * rng.standard_normal((count, DIM))
  nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
  nodes = nodes[:size].astype(np.float32)
  rng = np.random.default_rng(seed + 1)
  query = nodes[rng.integers(0, size - size // 20, 100)]
  noise = rng.standard_normal((100, DIM)).astype(np.float32)
  query = query + np.float32(0.08) * noise
  return nodes, query / np.linalg.norm(query, axis=1, keepdims=True)


class Clock:
  """Seconds by stage: CPU time here, wall time on an accelerator."""

  def __init__(self, now=time.process_time):
    self.now, self.seconds, self.last = now, {}, now()

  def stop(self, stage: str) -> None:
    self.seconds[stage] = self.now() - self.last
    self.last = self.now()


def ours(nodes: np.ndarray, query: np.ndarray):
  """(seconds by stage, graph, scores of the last twentieth of the nodes)."""
  size = len(nodes)
  drones = size - size // 20
  on_cpu = jax.default_backend() == 'cpu'
  clock = Clock(time.process_time if on_cpu else time.perf_counter)
  listed = graph.nearest(nodes, k=OPTIONS.n_trunc)
  clock.stop('neighbours')
  built = graph.from_neighbours(
    nodes, listed, kd=OPTIONS.kd, alpha=OPTIONS.alpha, gamma=OPTIONS.gamma
  )
  clock.stop('Laplacian')
  rows = cross.offline(built, options=OPTIONS)
  clock.stop('offline rows')
  seeds = cross.nearest_places(query, nodes[:drones], k=OPTIONS.kq)
  scores = cross.online(
    seeds, rows, gamma=OPTIONS.gamma, columns=(drones, size)
  )
  clock.stop('100 queries')
  return clock.seconds, built, scores


def published(nodes: np.ndarray, query: np.ndarray, listed: np.ndarray):
  """(seconds by stage, share of equal neighbours, scores), for all nodes.

  From the Laplacian on it goes by the neighbours of ours, `listed`, so that
  rankings do not differ by near ties between two matrix products.
  """
  from scipy import sparse
  from scipy.sparse import linalg

  size, width = len(nodes), OPTIONS.n_trunc
  drones = size - size // 20
  clock = Clock()
  equal = 0
  for start in range(0, size, 256):
    part = nodes[start : start + 256] @ nodes.T
    best = np.argpartition(-part, width - 1, axis=1)[:, :width]
    value = np.take_along_axis(part, best, axis=1)
    order = np.argsort(-value, axis=1)
    best = np.take_along_axis(best, order, axis=1)
    equal += np.count_nonzero(best == listed.rows[start : start + 256])
  clock.stop('neighbours')

  ids = listed.rows[:, : OPTIONS.kd]
  similarity = np.maximum(listed.scores[:, : OPTIONS.kd], 0) ** OPTIONS.gamma
  for i in range(size):
    similarity[i, ~np.isin(ids[ids[i]], i).any(axis=1)] = 0
    similarity[i, ids[i] == i] = 0
  row = np.repeat(np.arange(size), OPTIONS.kd)
  weight = sparse.csr_matrix(
    (similarity.ravel(), (row, ids.ravel())), (size, size), np.float32
  )
  weight.eliminate_zeros()
  degree = np.asarray(weight.sum(axis=1, dtype=np.float64)) + 1e-12
  scale = sparse.diags(degree.ravel() ** -0.5)
  laplacian = sparse.identity(size, np.float32) - OPTIONS.alpha * (
    scale @ weight @ scale
  ).astype(np.float32)
  laplacian = laplacian.tocsr().astype(np.float32)
  clock.stop('Laplacian')

  similarity = query @ nodes[:drones].T
  seeds = np.argsort(-similarity, axis=1)[:, : OPTIONS.kq]
  weights = np.take_along_axis(similarity, seeds, axis=1) ** OPTIONS.gamma
  clock.stop('100 queries')

  def solve(chosen):
    first = np.zeros(width)
    first[0] = 1
    values = np.empty((len(chosen), width), np.float32)
    for i, node in enumerate(chosen):
      near = listed.rows[node]
      matrix = laplacian[near][:, near]
      values[i], _ = linalg.cg(
        matrix, first, rtol=OPTIONS.cg_tolerance, maxiter=OPTIONS.cg_iterations
      )
    return values

  solve(np.random.default_rng(0).permutation(size)[:TIMED])
  clock.stop('offline rows')
  clock.seconds['offline rows'] *= size / TIMED

  read = np.unique(seeds)
  values = solve(read)
  rows = sparse.csr_matrix(
    (
      values.ravel(),
      (np.repeat(read, width), listed.rows[read].ravel()),
    ),
    (size, size),
  )
  last = clock.now()
  scores = np.stack(
    [w @ rows[j][:, drones:] for w, j in zip(weights, seeds, strict=True)]
  )
  clock.seconds['100 queries'] += clock.now() - last
  return clock.seconds, equal / listed.rows.size, scores


def compare(seconds, built, nodes, query, scores) -> None:
  """Prints ours beside the baseline."""
  listed = search.TopK(built.similarity, built.neighbours)
  base, equal, expected = published(nodes, query, listed)
  size = len(nodes)
  order, wanted = (
    np.argsort(-s, axis=1, kind='stable') for s in (scores, expected)
  )
  error = np.abs(scores - expected).max() / np.abs(expected).max()
  sys.stdout.write(
    f'\n{size:,} nodes, n_trunc {OPTIONS.n_trunc}, kd {OPTIONS.kd}; baseline '
    f'solves timed on {TIMED} nodes and scaled\n\n'
    '| stage | ours, ms/node | scipy, ms/node | ratio |\n'
    '| --- | ---: | ---: | ---: |\n'
  )
  for stage in (*seconds, 'total'):
    a, b = (s.get(stage, sum(s.values())) / size * 1e3 for s in (seconds, base))
    sys.stdout.write(f'| {stage} | {a:.3f} | {b:.3f} | {b / a:.1f} |\n')
  sys.stdout.write(
    f'\nequal neighbours {100 * equal:.2f} %; rankings of all satellites equal '
    f'for {(order == wanted).all(axis=1).sum()} of {len(query)} queries, the '
    f'first for {(order[:, 0] == wanted[:, 0]).sum()}; scores differ by '
    f'{error:.1e} of the largest\n'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=SIZES, default='published')
  sizes = SIZES[parser.parse_args().size]
  lines = []
  for size in sizes:
    nodes, query = features(size)
    ours(nodes, query)
    seconds, built, scores = ours(nodes, query)
    numbers = ' | '.join(f'{s / size * 1e3:.3f}' for s in seconds.values())
    rate = size / seconds['offline rows']
    linked = np.count_nonzero(built.degree)
    each = seconds['offline rows'] / linked * 1e3
    lines.append(
      f'| {size:,} | {numbers} | {linked / size:.2f} | {each:.3f} | '
      f'{rate:,.0f} |\n'
    )
    if size == max(s for s in COMPARED if s <= sizes[-1]):
      compare(seconds, built, nodes, query, scores)
  sys.stdout.write(
    f'\n| nodes ({jax.devices()[0].device_kind}) | '
    + ' | '.join(f'{stage}, ms/node' for stage in seconds)
    + ' | share with edges | offline rows, ms/such node | offline nodes/s |\n'
    + 8 * '| ---: '
    + '|\n'
    + ''.join(lines)
  )


if __name__ == '__main__':
  main()
