"""Evaluation at the sizes of University-1652 and VIGOR, on random features.

  python -m benchmarks.retrieval [--size=small|university|vigor]

university: both tasks through `retrieval.ranking` and through the loop that the
published evaluator is (`evaluate_gpu.py`: for every query one product, one
index sort, two membership tests and one pass over the ranks), told again from
its formulas and timed on a random part of the queries, scaled up. The loop runs
on NumPy, and with torch tensors, as published, where PyTorch is installed.
Next to them: the bare matrix product, below which no evaluation can go.

vigor: 52,605 x 90,618 x 1,024 with three semi-positives a query; CPU time and
peak resident memory. About 10 TFLOP: minutes.

small: both in seconds, to see that they run.

Everything runs on one core in one thread; numbers are CPU seconds, so other
load on the machine flatters neither side. Sides take turns; the best round of
each counts.
"""

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import time

ONE_THREAD = {
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
}
CHILD = 'CVGL_BENCHMARK_ONE_CORE'
DIM = 512
ROUNDS = 3
# Queries, gallery rows, queries that the loop is timed on; 951 places.
UNIVERSITY = {
  'drone -> satellite': (37_854, 951, 1000),
  'satellite -> drone': (701, 51_355, 100),
}
SMALL_UNIVERSITY = {
  'drone -> satellite': (3_785, 951, 100),
  'satellite -> drone': (70, 5_135, 70),
}
PLACES = 951
# Queries, gallery rows, dimension, gallery rows at a time.
VIGOR = (52_605, 90_618, 1024, 65_536)
SMALL_VIGOR = (2_630, 4_531, 1024, 2_048)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--size', choices=('small', 'university', 'vigor'), default='university'
  )
  size = parser.parse_args().size
  if CHILD not in os.environ:
    sys.exit(one_core())
  if size in ('small', 'university'):
    tasks = UNIVERSITY if size == 'university' else SMALL_UNIVERSITY
    for name, shape in tasks.items():
      university(name, *shape)
  if size in ('small', 'vigor'):
    vigor(*(VIGOR if size == 'vigor' else SMALL_VIGOR))


def one_core() -> int:
  """Runs this command again on one core: libraries read this when imported."""
  flags = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
  )
  environment = os.environ | ONE_THREAD | {'XLA_FLAGS': flags, CHILD: '1'}
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  command = [sys.executable, '-m', 'benchmarks.retrieval', *sys.argv[1:]]
  return subprocess.run(command, env=environment, check=False).returncode


def university(name: str, queries: int, rows: int, timed: int) -> None:
  """One task of University-1652: ours, the loop, the bare product."""
  import numpy as np

  from cvgl_jax.retrieval import ranking

  rng = np.random.default_rng(0)
  query, gallery = (features(rng, n, DIM) for n in (queries, rows))
  gallery_place = np.arange(rows) % PLACES
  query_place = rng.integers(0, PLACES, queries)
  part = rng.choice(queries, timed, replace=False)
  some = (query[part], gallery, query_place[part], gallery_place)
  sides = {
    'ours': lambda: ranking.evaluate_ranking(
      query, gallery, query_place, gallery_place
    ),
    'loop': lambda: published_loop(*some),
    'product': product(query, gallery),
  }
  if importlib.util.find_spec('torch') is not None:
    sides['loop on torch'] = lambda: published_loop_torch(*some)
  seconds, results = best_of(sides)
  expected = ranking.evaluate_ranking(*some)
  for side in ('loop', 'loop on torch'):
    if side in sides:
      # Their products are rounded differently, which swaps a few near-ties.
      np.testing.assert_allclose(
        results[side], expected.average_precision, rtol=1e-3
      )
      seconds[side] *= queries / timed
  lines = [f'{name}: {queries:,} x {rows:,} x {DIM}, CPU seconds']
  for side, value in seconds.items():
    ratio = f'{value / seconds["ours"]:8.1f} x ours'
    scaled = f' ({timed} queries timed)' if side.startswith('loop') else ''
    lines.append(f'  {side:14s}{value:9.3f}{ratio}{scaled}')
  limit = seconds['loop'] / seconds['product']
  lines.append(f'  the product alone would be {limit:.1f} times the loop')
  sys.stdout.write('\n'.join(lines) + '\n')


def vigor(queries: int, rows: int, dim: int, gallery_chunk: int) -> None:
  """Full metrics with hit rate: seconds and peak resident memory."""
  import numpy as np

  from cvgl_jax.retrieval import ranking

  rng = np.random.default_rng(0)
  query, gallery = (features(rng, n, dim) for n in (queries, rows))
  first = rng.integers(0, rows - 3, queries)
  semi = first[:, None] + np.arange(1, 4)[None]
  wall, cpu = time.perf_counter(), time.process_time()
  result = ranking.evaluate_ranking(
    query,
    gallery,
    positives=first,
    semi_positives=semi,
    percent_index='floor',
    ties='optimistic',
    gallery_chunk=gallery_chunk,
  )
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  # Kilobytes on Linux, bytes on macOS.
  unit = 1 if sys.platform == 'darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
  held = (query.nbytes + gallery.nbytes) / 1e9
  rate = 2e-9 * queries * rows * dim / cpu
  sys.stdout.write(
    f'VIGOR: {queries:,} x {rows:,} x {dim}, with hit rate\n'
    f'  {cpu:.1f} CPU s, {wall:.1f} s, {rate:.0f} GFLOP per CPU s\n'
    f'  peak resident memory {peak:.2f} GB, {peak - held:.2f} GB more than the '
    f'features ({held:.2f} GB)\n'
    f'  {result.report()}\n'
  )


def features(rng, count: int, dim: int):
  """[count, dim] float32 of unit norm, made in parts."""
  import numpy as np

  values = np.empty((count, dim), np.float32)
  for start in range(0, count, 4096):
    part = values[start : start + 4096]
    rng.standard_normal(out=part, dtype=np.float32)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  return values


def published_loop(query, gallery, query_place, gallery_place) -> float:
  """Mean AP as the published evaluator computes it; its CMC is summed too."""
  import numpy as np

  total_ap, total_cmc = 0.0, np.zeros(len(gallery), np.int32)
  for feature, place in zip(query, query_place, strict=True):
    score = gallery @ feature
    index, good = ordered(score, place, gallery_place)
    cmc = np.zeros(len(gallery), np.int32)
    if not good.size:
      continue
    rows = np.argwhere(np.isin(index, good)).flatten()
    cmc[rows[0] :] = 1
    total_cmc = total_cmc + cmc
    total_ap += trapezoid(rows, len(good))
  return total_ap / len(query)


def published_loop_torch(query, gallery, query_place, gallery_place) -> float:
  """`published_loop` with torch where the published code uses it."""
  import numpy as np
  import torch

  torch.set_num_threads(1)
  query, gallery = torch.from_numpy(query), torch.from_numpy(gallery)
  total_ap, total_cmc = 0.0, torch.zeros(len(gallery), dtype=torch.int32)
  for feature, place in zip(query, query_place, strict=True):
    score = torch.mm(gallery, feature.view(-1, 1)).squeeze(1).cpu().numpy()
    index, good = ordered(score, place, gallery_place)
    cmc = torch.zeros(len(gallery), dtype=torch.int32)
    if not good.size:
      continue
    rows = np.argwhere(np.isin(index, good)).flatten()
    cmc[rows[0] :] = 1
    total_cmc = total_cmc + cmc
    total_ap += trapezoid(rows, len(good))
  return total_ap / len(query)


def ordered(score, place, gallery_place):
  """The ranking of one query without junk, and its right answers."""
  import numpy as np

  index = np.argsort(score)[::-1]
  good = np.argwhere(gallery_place == place)
  junk = np.argwhere(gallery_place == -1)
  return index[np.isin(index, junk, invert=True)], good


def trapezoid(rows, count: int) -> float:
  """AP of one query from the ranks of its right answers."""
  ap = 0.0
  for i in range(count):
    now = (i + 1) / (rows[i] + 1)
    old = i / rows[i] if rows[i] else 1.0
    ap += (old + now) / 2 / count
  return ap


def product(query, gallery):
  """The bare product of all pairs, in blocks that stay in the cache."""
  import jax
  import jax.numpy as jnp

  from cvgl_jax.retrieval import features as rankable

  score = jax.jit(rankable.similarity_matrix)
  left = jnp.asarray(query[:256])
  right = jnp.asarray(gallery[:1984])
  blocks = len(query) * len(gallery) / (len(left) * len(right))

  def run():
    for _ in range(round(blocks)):
      score(left, right).block_until_ready()

  return run


def best_of(sides) -> tuple[dict[str, float], dict]:
  """CPU seconds of each side's best round; the first call compiles."""
  results = {name: run() for name, run in sides.items()}
  seconds = dict.fromkeys(sides, float('inf'))
  for _ in range(ROUNDS):
    for name, run in sides.items():
      start = time.process_time()
      run()
      seconds[name] = min(seconds[name], time.process_time() - start)
  return seconds, results


if __name__ == '__main__':
  main()
