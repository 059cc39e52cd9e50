"""Search and metrics at the sizes of University-1652, on random features.

  python -m benchmarks.retrieval [--share=0.1]

Each task runs through `retrieval.metrics` and through the loop that the
published evaluator is (`evaluate_gpu.py`: one product, one index sort and one
pass over the ranks for every query), told again in NumPy and timed on a part of
the queries. Numbers are CPU seconds, so other load on the machine and the
number of threads do not flatter either side.
"""

import argparse
import sys
import time

import numpy as np

from cvgl_jax.retrieval import metrics, search

DIM = 512
LOOP_QUERIES = 100
# Name, queries, gallery entries, places of the gallery.
TASKS = (
  ('drone -> satellite', 37_854, 951, 951),
  ('satellite -> drone', 701, 51_355, 951),
)


def features(rng: np.random.Generator, count: int) -> np.ndarray:
  """[count, DIM] float32 of unit norm."""
  values = rng.standard_normal((count, DIM), np.float32)
  return values / np.linalg.norm(values, axis=1, keepdims=True)


def published_loop(query, gallery, query_place, gallery_place):
  """Mean AP and CMC as `evaluate_gpu.py` computes them, query by query."""
  total_ap, total_cmc = 0.0, np.zeros(len(gallery))
  for feature, place in zip(query, query_place, strict=True):
    score = gallery @ feature
    index = np.argsort(score)[::-1]
    good = np.argwhere(gallery_place == place)
    junk = np.argwhere(gallery_place == -1)
    index = index[np.isin(index, junk, invert=True)]
    rows = np.argwhere(np.isin(index, good)).flatten()
    if not len(rows):
      continue
    total_cmc[rows[0] :] += 1
    ap = 0.0
    for i, rank in enumerate(rows):
      old = i / rank if rank else 1.0
      ap += (old + (i + 1) / (rank + 1)) / (2 * len(rows))
    total_ap += ap
  return total_ap / len(query), total_cmc / len(query)


def cpu_seconds(run) -> tuple[float, object]:
  """CPU seconds of the second of two calls (the first compiles)."""
  run()
  start = time.process_time()
  result = run()
  return time.process_time() - start, result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--share', type=float, default=1.0, help='of the queries (default: all)'
  )
  share = parser.parse_args().share
  rng = np.random.default_rng(0)
  for name, num_queries, size, places in TASKS:
    query = features(rng, max(LOOP_QUERIES, int(share * num_queries)))
    gallery = features(rng, size)
    gallery_place = np.arange(size) % places
    query_place = rng.integers(0, places, len(query))
    arguments = (query, gallery, query_place, gallery_place)
    ours, result = cpu_seconds(lambda a=arguments: metrics.evaluate_ranking(*a))
    top, _ = cpu_seconds(lambda a=arguments: search.top_k(*a[:2], k=10))
    few = (query[:LOOP_QUERIES], gallery, query_place[:LOOP_QUERIES])
    loop, (ap, _) = cpu_seconds(
      lambda few=few, places=gallery_place: published_loop(*few, places)
    )
    check = metrics.evaluate_ranking(*few, gallery_place)
    np.testing.assert_allclose(check.average_precision, ap, rtol=1e-5)
    loop *= len(query) / LOOP_QUERIES
    sys.stdout.write(
      f'{name}: {len(query):,} x {size:,} x {DIM}\n'
      f'  metrics        {ours:8.2f} CPU s  (R@1 {100 * result.recall[0]:.2f} %)\n'
      f'  top 10         {top:8.2f} CPU s\n'
      f'  published loop {loop:8.2f} CPU s  ({LOOP_QUERIES} queries measured)\n'
      f'  ratio          {loop / ours:8.1f}\n'
    )


if __name__ == '__main__':
  main()
