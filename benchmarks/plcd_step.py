"""A step of PLCD, part by part: `python -m benchmarks.plcd_step`.

Ground to drone, generation 0 (alone) and 2 (a teacher, 13 regions, all 29 in the
statistics of the head), with the published losses and optimiser. Prints a
Markdown table in milliseconds: the whole step (best round), and its parts, which
are the same step cut into programs of their own (best of all steps). Cuts cost:
what crosses them is written out, so the parts may take longer than the whole.

Where PyTorch is installed the same step in plain torch.nn (channels last,
automatic mixed precision for bfloat16) takes turns with ours, with as many
threads; as in the published code the head runs region by region, all 29 of them
in the student and in the teacher.

`--size=small` is a ResNet-18 at 192 px with 4 anchors, for CPUs; `full` is
published, a ResNet-50 at 384 px with 8. On a GPU: `python -m benchmarks.plcd_step
--size=full --dtype=bfloat16 --torch_compile`.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Leaves memory of the device for torch in the same process.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import best_seconds
from cvgl_jax import state as train_state
from cvgl_jax.methods import contract, plcd
from cvgl_jax.models import peer_network
from cvgl_jax.optim import build

CLASSES = 701
PEERS = 6  # drone pictures of an anchor
GENERATIONS = {
  0: {'generation': 0},
  2: {'generation': 2, 'regions': 13, 'lambda_distill': 3.0},
}
OPTIMIZER = build.Optimizer(
  lr=0.01, weight_decay=5e-4, groups={'backbone': 0.1, 'classifier': 1.0}
)
PARTS = (
  "student's trunks",
  'regions and head',
  "teacher's forward",
  'losses',
  'backward',
  'optimiser',
)


@dataclasses.dataclass(frozen=True)
class Size:
  """What is trained: trunk, side of the pictures in pixels, anchors."""

  backbone: str
  size_px: int
  anchors: int


SIZES = {
  'small': Size('resnet18', 192, 4),
  'full': Size('resnet50', 384, 8),
}


class Clock:
  """Least seconds of each part, over all steps."""

  def __init__(self):
    self.best = dict.fromkeys(PARTS, float('inf'))
    self._last = 0.0

  def start(self) -> None:
    self._last = time.perf_counter()

  def mark(self, part: str) -> None:
    """The part ends now; what follows until `start` or `mark` is the next."""
    now = time.perf_counter()
    self.best[part] = min(self.best[part], now - self._last)
    self._last = now


def pictures(size: Size) -> dict:
  """Random anchors and drone pictures; the same for both libraries."""
  rng = np.random.default_rng(0)
  counts = dict(zip(plcd.Method.views, (1, PEERS), strict=True))
  rows = np.arange(size.anchors, dtype=np.int32)
  batch = {}
  for view, count in counts.items():
    shape = (count * size.anchors, size.size_px, size.size_px, 3)
    label = np.repeat(rows, count)
    batch[view] = {
      'image': rng.integers(0, 256, shape, np.uint8),
      'label': label,
      'place': label,
    }
  return batch


def jax_runs(
  method: plcd.Method, batch: dict, clock: Clock
) -> tuple[Callable[[], None], Callable[[], None]]:
  """(a train step, the same in parts that `clock` times)."""
  tx, _ = build.make(
    OPTIMIZER, steps_per_epoch=100, total_epochs=1, labels=method.label
  )

  def born(seed: int) -> train_state.State:
    make = lambda key: train_state.make_state(
      method.init(key, batch), tx, ema=False
    )
    return jax.jit(make)(jax.random.key(seed))

  def variables(seed: int) -> dict:
    state = born(seed)
    return {'params': state.params, **state.mutable}

  held, student = born(0), born(0)
  teacher = None
  if method.needs_teacher:
    held, teacher = held.replace(teacher=variables(1)), variables(1)
  batch = jax.device_put(batch)
  step = jax.jit(
    train_state.make_train_step(
      method, tx, augment=lambda key, images, view: images, seed=0
    ),
    donate_argnums=0,
  )

  def whole():
    nonlocal held
    held, metrics = step(held, batch)
    jax.block_until_ready((held, metrics))

  trunks, head, teach, losses, backward, optimise = jax_parts(method, tx)
  rng = jax.random.key(0)

  def parts():
    nonlocal student

    def done(part, result):
      jax.block_until_ready(result)
      clock.mark(part)
      return result

    params = dict(student.params)
    classifier = params.pop('classifier')
    clock.start()
    maps, x, stats, pull_trunks = done(
      "student's trunks", trunks(params, student.mutable, batch)
    )
    features, stats, pull_head = done(
      'regions and head', head(classifier, stats, maps, rng)
    )
    taught = {}
    if teacher is not None:
      taught = done("teacher's forward", teach(teacher, x, rng))
    _, pull_losses = done('losses', losses(classifier, features, taught, batch))
    grads = done('backward', backward(pull_losses, pull_head, pull_trunks))
    params, opt_state = done(
      'optimiser', optimise(student.params, student.opt_state, grads)
    )
    student = student.replace(params=params, opt_state=opt_state, mutable=stats)

  return whole, parts


def jax_parts(method: plcd.Method, tx) -> tuple[Callable, ...]:
  """The step's parts in order, compiled; those forward give their pull-back."""
  network = method.network
  recorded = peer_network.REGIONS if method.generation else 0

  @jax.jit
  def trunks(params, stats, batch):
    """Maps of the views, their pictures, statistics, pull-back to params."""
    x = [contract.pictures(batch, view) for view in method.views]

    def maps_of(params):
      return network.apply(
        {'params': params, **stats},
        method=lambda module: [
          module.feature_map(*of_view, train=True)
          for of_view in zip(x, module.trunks, strict=True)
        ],
        mutable=list(stats),
      )

    maps, pull, after = jax.vjp(maps_of, params, has_aux=True)
    return maps, x, after, pull

  @jax.jit
  def head(classifier, stats, maps, rng):
    """Features, statistics, pull-back to (classifier, maps)."""

    def features_of(classifier, maps):
      (anchor, peers), after = network.apply(
        {'params': {'classifier': classifier}, **stats},
        method=lambda module: (
          module.describe(maps[0], train=True),
          module.describe(
            maps[1],
            parts=method.regions,
            recorded_parts=recorded,
            train=True,
          ),
        ),
        mutable=list(stats),
        rngs={'dropout': rng},
      )
      return named(method, anchor[:, -1], peers), after

    features, pull, after = jax.vjp(features_of, classifier, maps, has_aux=True)
    return features, after, pull

  @jax.jit
  def teach(variables, x, rng):
    (anchor, peers), _ = network.apply(
      variables,
      *x,
      parts=method.regions,
      train=True,
      method='both',
      mutable=['batch_stats'],
      rngs={'dropout': rng},
    )
    features = named(method, anchor, peers)
    return {f'{plcd.TEACHER}/{key}': value for key, value in features.items()}

  @jax.jit
  def losses(classifier, features, taught, batch):
    """The loss, pull-back to (classifier, features)."""

    def loss_of(classifier, features):
      params = {'classifier': classifier}
      return method.loss_from_features(params, features | taught, batch, 0)

    loss, pull, _ = jax.vjp(loss_of, classifier, features, has_aux=True)
    return loss, pull

  @jax.jit
  def backward(pull_losses, pull_head, pull_trunks):
    of_losses, cotangents = pull_losses(jnp.ones(()))
    of_head, cotangents = pull_head(cotangents)
    (of_trunks,) = pull_trunks(cotangents)
    return {
      **of_trunks,
      'classifier': jax.tree.map(jnp.add, of_losses, of_head),
    }

  def optimise(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return jax.tree.map(jnp.add, params, updates), opt_state

  optimise = jax.jit(optimise, donate_argnums=(0, 1))
  return trunks, head, teach, losses, backward, optimise


def named(method: plcd.Method, anchor: jax.Array, peers: jax.Array) -> dict:
  """Features by the names of `plcd.Method.features`."""
  street, drone = method.views
  features = {street: anchor, drone: peers[:, -1]}
  return features | ({'regions': peers[:, :-1]} if method.regions else {})


def threads() -> int:
  """Cores of this process, as XLA counts them."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def measure(
  method: plcd.Method, batch: dict, twin: Any, *, args: argparse.Namespace
) -> list[dict[str, float]]:
  """Seconds of every part, their sum and the whole: ours, then PyTorch's."""
  clocks = [Clock()]
  runs = [*jax_runs(method, batch, clocks[0])]
  if twin is not None:
    clocks.append(Clock())
    runs += twin.runs(
      method,
      batch,
      clocks[1],
      options=OPTIMIZER,
      compiled=args.torch_compile,
    )
  taken = best_seconds(runs, repeats=args.repeats, seconds=args.seconds)
  rows = []
  for clock, whole in zip(clocks, taken[::2], strict=True):
    parts = {k: v for k, v in clock.best.items() if np.isfinite(v)}
    rows.append(parts | {'all parts': sum(parts.values()), 'whole step': whole})
  return rows


def main():
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.plcd_step',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--size', choices=SIZES, default='small')
  parser.add_argument('--dtype', choices=plcd.DTYPES, default='float32')
  parser.add_argument('--repeats', type=int, default=2)
  parser.add_argument('--seconds', type=float, default=2.0)
  parser.add_argument('--torch_compile', action='store_true')
  args = parser.parse_args()
  try:
    import torch
  except ImportError:
    torch = twin = None
  else:
    from benchmarks import plcd_torch as twin

    torch.set_num_threads(threads())
  size, device = SIZES[args.size], jax.devices()[0]
  batch = pictures(size)
  columns = {}
  for number, options in GENERATIONS.items():
    method = plcd.Method(
      num_classes=CLASSES, backbone=size.backbone, dtype=args.dtype, **options
    )
    ours, *theirs = measure(method, batch, twin, args=args)
    columns[f'generation {number}'] = ours
    columns[f'generation {number}, torch'] = theirs[0] if theirs else {}
  lines = [
    f'{device.platform} ({device.device_kind}), {threads()} threads, '
    f'{args.dtype}, {size.backbone}, {size.size_px} px, {size.anchors} anchors '
    f'and {PEERS * size.anchors} drone pictures, torch '
    + ('not installed' if torch is None else torch.__version__)
    + (' compiled' if torch is not None and args.torch_compile else ''),
    '',
    '| milliseconds | ' + ' | '.join(columns) + ' |',
    '|---|' + '---:|' * len(columns),
  ]
  for part in (*PARTS, 'all parts', 'whole step'):
    cells = [
      f'{1e3 * column[part]:.1f}' if part in column else '-'
      for column in columns.values()
    ]
    lines.append(f'| {part} | ' + ' | '.join(cells) + ' |')
  cells = []
  for number in GENERATIONS:
    mine = columns[f'generation {number}']
    other = columns[f'generation {number}, torch']
    ratio = other['whole step'] / mine['whole step'] if other else None
    cells += ['1.00', '-' if ratio is None else f'{ratio:.2f}']
  lines.append('| whole step, in ours | ' + ' | '.join(cells) + ' |')
  sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
