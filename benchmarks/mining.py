"""What mining an epoch costs, against the epoch.

  python -m benchmarks.mining [--size=small]

The global mining of FRGeo on CVUSA: 35,532 pairs of 3,072 numbers. Measured are
the neighbours of all queries (out of the bank in the train state), the plan of
the epoch, and the writing of the bank in every step; at growing sizes, since the
search grows with the square. On a CPU times are CPU seconds, because other jobs
may run; else wall seconds.

The epoch is estimated from below: 11.7 GMAC a pair forward, three times that
with the backward pass, twice for ASAM, at the rate of a large matrix product in
the same run (float32 on a CPU, bfloat16 on an accelerator). No training step
reaches that rate, so the shares are bounds from above.
"""

import argparse
import functools
import gc
import pathlib
import resource
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax import mining, sharding
from cvgl_jax import state as state_lib
from cvgl_jax.data import global_mining

VIEWS = ('panorama', 'satellite')
BATCH = 32
# (pairs, width)
SIZES = {
  'full': [(4_441, 3072), (8_883, 3072), (17_766, 3072), (35_532, 3072)],
  'small': [(1_000, 256), (2_000, 256)],
}
GMAC_PER_PAIR = 11.7
PASSES = 3 * 2
ON_CPU = jax.default_backend() == 'cpu'


def seconds() -> float:
  """CPU seconds of this process on a CPU, else wall seconds."""
  return time.process_time() if ON_CPU else time.perf_counter()


class Memory:
  """The memory of this process, looked at while a block runs.

  Attributes:
    more_gib: the most there was beyond that at its start; None where the system
      does not say (only Linux does).
  """

  def __enter__(self) -> 'Memory':
    self.more_gib = None
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._start = self._gib()
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._done.set()
    self._thread.join()

  def _watch(self) -> None:
    while self._start is not None and not self._done.wait(0.02):
      self.more_gib = max(self.more_gib or 0.0, self._gib() - self._start)

  def _gib(self) -> float | None:
    statm = pathlib.Path('/proc/self/statm')
    if not statm.exists():
      return None
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**30


def rate() -> float:
  """Multiply-adds a second of a large matrix product."""
  side = 3072 if ON_CPU else 8192
  x = jnp.ones((side, side), jnp.float32 if ON_CPU else jnp.bfloat16)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  start = seconds()
  for _ in range(3):
    product(x).block_until_ready()
  return 3 * side**3 / (seconds() - start)


def state_of(pairs: int, width: int, mesh: jax.sharding.Mesh):
  """A train state of nothing but a bank: views of a place look alike."""

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def view(key):
    place, noise = (
      jax.random.normal(jax.random.key(k), (pairs, width)) for k in (0, key)
    )
    return (place + noise) / jnp.linalg.norm(
      place + noise, axis=1, keepdims=True
    )

  bank = {name: view(key) for key, name in enumerate(VIEWS, 1)}
  neighbours = jax.device_put(
    np.full((pairs, 100), -1, np.int32), sharding.replicated(mesh)
  )
  return state_lib.State(
    step=0,
    params={},
    mutable={},
    opt_state=None,
    ema=None,
    mining=state_lib.Mining(bank, neighbours),
  )


def bank_seconds(bank: dict, mesh: jax.sharding.Mesh) -> float:
  """Seconds of writing the features of one batch into a bank (given away)."""
  rng = np.random.default_rng(0)
  update = jax.jit(
    state_lib.update_bank,
    donate_argnums=0,
    out_shardings=sharding.replicated(mesh),
  )
  count, width = bank[VIEWS[0]].shape
  row = rng.permutation(count)[:BATCH].astype(np.int32)
  features = rng.standard_normal((BATCH, width)).astype(np.float32)
  batch = {view: {'row': row} for view in VIEWS}
  features = dict.fromkeys(VIEWS, features)
  bank = jax.block_until_ready(update(bank, batch, features))
  start, steps = seconds(), 20
  for _ in range(steps):
    bank = update(bank, batch, features)
  jax.block_until_ready(bank)
  return (seconds() - start) / steps


def measure(pairs: int, width: int, per_second: float) -> str:
  """A row of the table."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  split = types.SimpleNamespace(
    place=np.arange(pairs), positive=None, semi_positives=None
  )
  miner = mining.Miner(
    global_mining.GlobalMining(views=VIEWS),
    dict.fromkeys(VIEWS, split),
    batch_size=BATCH,
    seed=0,
  )
  state = jax.block_until_ready(state_of(pairs, width, mesh))
  bank_gib = 2 * 4 * pairs * width / 2**30
  gc.collect()
  with Memory() as memory:
    start = seconds()
    state = miner.mine(state, 1, None)
    search = seconds() - start
    start = seconds()
    rows = miner.rows(state, 1)
    plan = seconds() - start
  more = '' if memory.more_gib is None else f' + {memory.more_gib:.2f}'
  near = np.asarray(state.mining.neighbours)
  found = np.mean(near[:, 0] == np.arange(pairs))
  writing = bank_seconds(state.mining.bank, mesh) * len(rows)
  epoch = pairs * GMAC_PER_PAIR * 1e9 * PASSES / per_second
  total = search + plan + writing
  product = pairs**2 * width / per_second
  return (
    f'| {pairs:,} x {width:,} | {search:.1f} | {product:.1f} | {plan:.2f} | '
    f'{writing:.2f} | {total:.1f} | {epoch:,.0f} | {total / epoch:.2%} | '
    f'{bank_gib:.2f}{more} | {found:.0%} |\n'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', choices=SIZES, default='full')
  parser.add_argument('--only', type=int, help='one row of the table')
  args = parser.parse_args()
  per_second = rate()
  if args.only is not None:
    sys.stdout.write(measure(*SIZES[args.size][args.only], per_second))
    return
  sys.stdout.write(
    f'{jax.devices()[0].device_kind}, {per_second / 1e9:,.0f} GMAC/s in a '
    f'product, {"CPU" if ON_CPU else "wall"} seconds\n\n'
    '| pairs | search | its product | plan | bank, all steps | sum | epoch, at '
    'least | share, at most | GiB: bank + more | own first |\n'
    + '| --- ' * 10
    + '|\n'
  )
  for i, (pairs, width) in enumerate(SIZES[args.size]):
    sys.stdout.flush()
    if not ON_CPU:  # this process has the device's memory
      sys.stdout.write(measure(pairs, width, per_second))
      continue
    # A process of its own, with memory of its own.
    options = [f'--only={i}', f'--size={args.size}']
    command = [sys.executable, '-m', 'benchmarks.mining', *options]
    subprocess.run(command, check=True)


if __name__ == '__main__':
  main()
