"""Exact nearest neighbours, against faiss on a CPU and the matmul on a GPU.

  python -m benchmarks.search [--size=small]

On a CPU: top 100 of 1,000 queries in 100,000 x 512 on one thread, as a ratio of
CPU time to `IndexFlatIP` of faiss, if it is there (`pip install faiss-cpu`; the
project does not need it), and to the matrix product alone. Rounds of all
variants alternate, so that other load on the machine hits all of them.

On an accelerator: top 100 of 10,000 queries in 1,000,000 x 512, as a share of
the rate of a large square matrix product of the same precision, and a search of
the largest gallery that the device memory holds.
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
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import device_search, features, search

DIM = 512
K = 100
ROUNDS = 5
# Queries, gallery.
CPU_SIZES = {'full': (1_000, 100_000), 'small': (200, 5_000)}
DEVICE_SIZES = {'full': (10_000, 1_000_000), 'small': (512, 20_000)}


def unit_features(count: int) -> np.ndarray:
  """[count, DIM] float32 of unit norm."""
  rng = np.random.default_rng(count)
  values = rng.standard_normal((count, DIM), np.float32)
  return features.prepare(values, 'random')


def cpu_variants(query: np.ndarray, gallery: np.ndarray) -> dict:
  """Name -> what to time; faiss first, if it is installed."""
  variants = {}
  try:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(DIM)
    index.add(gallery)
    variants['faiss IndexFlatIP'] = lambda: index.search(query, K)[1]
  except ImportError:
    sys.stdout.write('faiss is not installed: ratios to the product\n\n')
  product = jax.jit(features.similarity_matrix)

  def products():
    for start in range(0, len(gallery), 4096):
      product(query, gallery[start : start + 4096]).block_until_ready()

  variants['product alone'] = products
  for name, options in (
    ('top_k, dot', {'similarity': 'dot'}),
    ('top_k, cosine', {}),
    ('top_k, dot, bfloat16', {'similarity': 'dot', 'first_pass': 'bfloat16'}),
  ):
    variants[name] = lambda options=options: (
      search.top_k(query, gallery, k=K, **options).rows
    )
  return variants


def on_cpu(size: str) -> None:
  """Prints the table of CPU times."""
  query, gallery = (unit_features(n) for n in CPU_SIZES[size])
  variants = cpu_variants(query, gallery)
  results = {name: run() for name, run in variants.items()}  # compiles
  rows = {name: r for name, r in results.items() if r is not None}
  reference = next(iter(rows.values()))
  times = {name: [] for name in variants}
  for _ in range(ROUNDS):
    for name, run in variants.items():
      start = time.process_time()
      run()
      times[name].append(time.process_time() - start)
  base = np.median(next(iter(times.values())))
  sys.stdout.write(
    f'top {K} of {len(query):,} x {len(gallery):,} x {DIM}, one thread, median '
    f'of {ROUNDS}\n\n| what | CPU s | ratio | same ids |\n| --- | --- | --- | '
    '--- |\n'
  )
  for name, seconds in times.items():
    found = rows.get(name)
    # faiss promises no order of (nearly) equal scores: compared as sets.
    same = (
      ''
      if found is None
      else f'{np.mean(np.sort(found) == np.sort(reference)):.2%}'
    )
    sys.stdout.write(
      f'| {name} | {np.median(seconds):.3f} | '
      f'{np.median(seconds) / base:.2f} | {same} |\n'
    )


def seconds_of(run) -> float:
  """Wall seconds of the fastest of three calls after one that compiles."""
  run()
  times = []
  for _ in range(3):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return min(times)


def peak_flops(dtype: jnp.dtype, side: int) -> float:
  """Measured rate of a square matrix product."""
  left = jnp.ones((side, side), dtype)
  product = jax.jit(
    lambda x: jnp.matmul(
      x, x, precision='highest', preferred_element_type=jnp.float32
    )
  )
  return 2 * side**3 / seconds_of(lambda: product(left).block_until_ready())


def on_device(size: str) -> None:
  """Prints shares of the matmul peak, and the largest gallery."""
  num_queries, rows = DEVICE_SIZES[size]
  query = unit_features(num_queries)
  gallery = unit_features(rows)
  placed = device_search.place(gallery, similarity='dot')
  device = jax.devices()[0]
  sys.stdout.write(
    f'top {K} of {num_queries:,} x {rows:,} x {DIM} on {device.device_kind}\n\n'
    '| first pass | s | TFLOP/s | share of the product | repeated queries |\n'
    '| --- | --- | --- | --- | --- |\n'
  )
  flops = 2 * num_queries * rows * DIM
  for first_pass in ('float32', 'bfloat16'):
    run = lambda first_pass=first_pass: search.top_k(
      query, placed, k=K, first_pass=first_pass
    )
    seconds = seconds_of(run)
    peak = peak_flops(jnp.dtype(first_pass), 8192 if size == 'full' else 512)
    sys.stdout.write(
      f'| {first_pass} | {seconds:.3f} | {flops / seconds / 1e12:.1f} | '
      f'{flops / seconds / peak:.0%} | {run().repeated} |\n'
    )
  streamed = seconds_of(
    lambda: search.top_k(query, gallery, k=K, similarity='dot')
  )
  sys.stdout.write(f'\nstreamed from the host: {streamed:.3f} s\n')
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit:
    del placed
    largest(limit, query[:1024], size)


def largest(limit: int, query: np.ndarray, size: str) -> None:
  """Searches a gallery of all memory but what `top_k` documents."""
  chunk = 65536
  working = 12 * chunk * (DIM + 1024) + 2**27 + 2**30
  rows = (limit - working) // (4 * DIM) if size == 'full' else 2 * chunk
  # Rows that overlap in one buffer: a gallery that the host need not hold.
  buffer = np.random.default_rng(0).standard_normal(rows + DIM, np.float32)
  gallery = np.lib.stride_tricks.sliding_window_view(buffer, DIM)[:rows]
  placed = device_search.place(gallery, chunk=chunk)
  seconds = seconds_of(lambda: search.top_k(query, placed, k=K))
  sys.stdout.write(
    f'largest gallery: {rows:,} x {DIM} ({4 * DIM * rows / 2**30:.1f} GiB), '
    f'{len(query)} queries in {seconds:.3f} s\n'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=('full', 'small'), default='full')
  size = parser.parse_args().size
  if jax.default_backend() == 'cpu':
    on_cpu(size)
  else:
    on_device(size)


if __name__ == '__main__':
  main()
