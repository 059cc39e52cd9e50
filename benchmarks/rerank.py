"""Re-ranking of candidates against the dense form, and at challenge size.

  python -m benchmarks.rerank [--size=small|default|full]

Both forms run in one process on the same features (places of 20 pictures, 512
dimensions); CPU seconds of all threads. Searching all entries among themselves
is most of the candidate form's work and serves both methods, so it has a line
of its own. `full` is University-160k (37,855 queries, 168,437 gallery entries),
where a dense matrix has 170 GB; about 15 CPU minutes, by extrapolation of the
searches (with 64 dimensions it took 5).
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cvgl_jax.retrieval import rerank, rerank_sparse, search

DIM = 512
# Name: (queries, gallery entries) of the comparison, and of the large run.
SIZES = {
  'small': ((50, 750), (100, 1900)),
  'default': ((500, 3500), (3700, 16_300)),
  'full': ((500, 3500), (37_855, 168_437)),
}
CANDIDATES = 100
# Of both methods' defaults: GNN 26, k-reciprocal 20 and one.
NEIGHBOURS = 26


def features(num_queries: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Queries and gallery, float32 of unit norm, about 20 pictures a place."""
  rng = np.random.default_rng(0)
  count = num_queries + size
  joint = rng.standard_normal((count, DIM), np.float32)
  joint *= 0.9
  joint += rng.standard_normal((count // 20, DIM), np.float32)[
    rng.integers(0, count // 20, count)
  ]
  joint /= np.linalg.norm(joint, axis=1, keepdims=True)
  return joint[:num_queries], joint[num_queries:]


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
  """CPU seconds of one call."""
  start = time.process_time()
  result = run()
  return time.process_time() - start, result


def row(*cells: str) -> None:
  """One line of a Markdown table."""
  sys.stdout.write('| ' + ' | '.join(cells) + ' |\n')
  sys.stdout.flush()


def compare(num_queries: int, size: int) -> None:
  """Dense against candidates, where both fit."""
  query, gallery = features(num_queries, size)
  top = search.top_k(query, gallery, k=min(CANDIDATES, size))
  row(f'n = {num_queries + size:,}', 'dense', 'candidates', 'ratio')
  row('---', '---', '---', '---')
  for name in ('gnn', 'k_reciprocal'):
    full, some = getattr(rerank, name), getattr(rerank_sparse, name)

    def sparse(some=some):
      near = rerank_sparse.neighbours(query, gallery, k=NEIGHBOURS)
      return some(near, top.rows)

    dense = lambda full=full: full(query, gallery)
    dense(), sparse()  # compiles
    ours, scores = cpu_seconds(sparse)
    theirs, expected = cpu_seconds(dense)
    np.testing.assert_allclose(
      scores, np.take_along_axis(expected, top.rows, axis=1), atol=1e-5
    )
    row(
      f'{name}, search included',
      f'{theirs:.1f} CPU s',
      f'{ours:.1f} CPU s',
      f'{theirs / ours:.1f} x',
    )


def large(num_queries: int, size: int) -> None:
  """The candidate form where the dense one takes too much."""
  query, gallery = features(num_queries, size)
  count = num_queries + size
  dense_gb = 4 * count**2 / 1e9
  row(f'n = {count:,} (a dense matrix: {dense_gb:.1f} GB)', 'CPU s', 'peak GB')
  row('---', '---', '---')

  def line(name: str, run: Callable[[], Any]) -> Any:
    seconds, result = cpu_seconds(run)
    # Of the process until now, features and compiled code included.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    row(name, f'{seconds:.1f}', f'{peak:.2f}')
    return result

  top = line('candidates', lambda: search.top_k(query, gallery, k=CANDIDATES))
  near = line(
    'neighbours of all',
    lambda: rerank_sparse.neighbours(query, gallery, k=NEIGHBOURS),
  )
  line('farthest of all (k_reciprocal)', lambda: near.lowest)
  for name in ('k_reciprocal', 'gnn'):
    method = getattr(rerank_sparse, name)
    line(name, lambda method=method: method(near, top.rows))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=SIZES, default='default')
  both, alone = SIZES[parser.parse_args().size]
  compare(*both)
  sys.stdout.write('\n')
  large(*alone)


if __name__ == '__main__':
  main()
