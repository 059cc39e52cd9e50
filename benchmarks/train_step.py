"""Speed of training and embedding: `python -m benchmarks.train_step`.

Prints a Markdown table: pictures per second of the whole train step (two
views, shared trunk, forward, backward, SGD with two groups) and of embedding,
for a small recipe and for the published network at 256 px. Where PyTorch is
installed, the same step written in plain torch.nn (channels last, automatic
mixed precision for bfloat16) runs in turn with ours, and the last column is
our speed divided by its. Every number is the best of --repeats rounds.

On a GPU: `python -m benchmarks.train_step --dtype=bfloat16 --batch=64
--torch_compile`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

# Leaves memory of the device for torch in the same process.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax import state as train_state
from cvgl_jax.methods import university1652
from cvgl_jax.models import layers
from cvgl_jax.optim import build

VIEWS = ('satellite', 'drone')
CLASSES = 701
# Name -> backbone, width, last stride, side of the pictures in pixels.
NETWORKS = {
  'small': ('resnet18', 16, 2, 128),
  'published': ('resnet50', 64, 1, 256),
}


def pictures(batch_size: int, size_px: int) -> dict:
  """One batch of random pictures; the same for both libraries."""
  rng = np.random.default_rng(0)
  shape = (batch_size, size_px, size_px, 3)
  return {
    view: {
      'image': rng.integers(0, 256, shape, np.uint8),
      'label': rng.integers(0, CLASSES, batch_size).astype(np.int32),
      'place': np.arange(batch_size, dtype=np.int32),
    }
    for view in VIEWS
  }


def jax_runs(
  name: str, batch: dict, *, dtype: str, remat: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
  """(one train step, one embedding of a view), compiled and warm."""
  backbone, width, last_stride, _ = NETWORKS[name]
  method = university1652.Method(
    num_classes=CLASSES,
    views=VIEWS,
    share_satellite_drone=True,
    backbone=backbone,
    backbone_width=width,
    last_stride=last_stride,
    dtype=dtype,
    remat=remat,
  )
  tx, _ = build.make(
    build.Optimizer(groups={'backbone': 0.1, 'classifier': 1.0}),
    steps_per_epoch=100,
    total_epochs=1,
    labels=method.label,
  )
  step = jax.jit(
    train_state.make_train_step(
      method, tx, augment=lambda key, images, view: images, seed=0
    ),
    donate_argnums=0,
  )
  held = jax.jit(
    lambda: train_state.make_state(
      method.init(jax.random.key(0), batch), tx, ema=False
    )
  )()
  batch = jax.device_put(batch)
  embed = jax.jit(lambda v, x: method.embed(v, x, 'drone'))
  # The step donates its state; the embedding keeps a copy.
  variables = jax.tree.map(jnp.copy, {'params': held.params, **held.mutable})

  def train():
    nonlocal held
    held, metrics = step(held, batch)
    jax.block_until_ready((held, metrics))

  def embedding():
    jax.block_until_ready(embed(variables, batch['drone']['image']))

  return train, embedding


def torch_network(torch, name: str):
  """The trunk (ResNet without classifier, pooled) in plain torch.nn."""
  nn = torch.nn
  backbone, width, last_stride, _ = NETWORKS[name]
  is_basic = backbone == 'resnet18'
  depths = (2, 2, 2, 2) if is_basic else (3, 4, 6, 3)
  expansion = 1 if is_basic else 4

  def unit(inputs, outputs, kernel, stride=1):
    convolution = nn.Conv2d(
      inputs, outputs, kernel, stride, kernel // 2, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))

  class Block(nn.Module):
    def __init__(self, inputs, features, stride):
      super().__init__()
      outputs = features * expansion
      relu = nn.ReLU(inplace=True)
      if is_basic:
        parts = [unit(inputs, features, 3, stride), relu]
        parts += [unit(features, features, 3)]
      else:
        parts = [unit(inputs, features, 1), relu]
        parts += [unit(features, features, 3, stride), relu]
        parts += [unit(features, outputs, 1)]
      self.body = nn.Sequential(*parts)
      changes = stride != 1 or inputs != outputs
      self.shortcut = unit(inputs, outputs, 1, stride) if changes else None

    def forward(self, x):
      short = x if self.shortcut is None else self.shortcut(x)
      return torch.relu(self.body(x) + short)

  parts = [unit(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
  channels = width
  for stage, depth in enumerate(depths):
    for i in range(depth):
      stride = (1, 2, 2, last_stride)[stage] if i == 0 else 1
      parts.append(Block(channels, width * 2**stage, stride))
      channels = width * 2**stage * expansion
  parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
  return nn.Sequential(*parts), channels


def torch_runs(
  torch, name: str, batch: dict, *, dtype: str, compiled: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
  """The same as `jax_runs` in PyTorch, on its best device."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True
  trunk, channels = torch_network(torch, name)
  head = torch.nn.Sequential(
    torch.nn.Linear(channels, 512),
    torch.nn.BatchNorm1d(512),
    torch.nn.Dropout(0.5),
    torch.nn.Linear(512, CLASSES),
  )
  net = torch.nn.Sequential(trunk, head)
  net = net.to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(
    [
      {'params': trunk.parameters(), 'lr': 0.001},
      {'params': head.parameters(), 'lr': 0.01},
    ],
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
  )
  mean = torch.tensor(layers.MEAN, device=device).view(1, 3, 1, 1)
  std = torch.tensor(layers.STD, device=device).view(1, 3, 1, 1)
  # A permuted NHWC array is NCHW in the channels-last format.
  images = {
    view: torch.from_numpy(slot['image']).to(device).permute(0, 3, 1, 2)
    for view, slot in batch.items()
  }
  labels = {
    view: torch.from_numpy(slot['label']).long().to(device)
    for view, slot in batch.items()
  }
  amp = dtype == 'bfloat16'

  def autocast():
    return torch.autocast(device, torch.bfloat16, enabled=amp)

  def loss_of(images, labels):
    total = 0
    for view in VIEWS:
      with autocast():
        logits = net((images[view].float() / 255 - mean) / std)
      loss = torch.nn.functional.cross_entropy(logits.float(), labels[view])
      total = total + loss
    return total

  def features_of(images):
    with autocast():
      x = trunk((images.float() / 255 - mean) / std)
      return torch.nn.functional.normalize(head[1](head[0](x)).float())

  if compiled:
    loss_of, features_of = torch.compile(loss_of), torch.compile(features_of)

  def wait():
    if device == 'cuda':
      torch.cuda.synchronize()

  def train():
    net.train()
    optimizer.zero_grad(set_to_none=True)
    loss_of(images, labels).backward()
    optimizer.step()
    wait()

  def embedding():
    net.eval()
    with torch.inference_mode():
      features_of(images['drone'])
    wait()

  return train, embedding


def best_seconds(
  runs: list[Callable[[], None]], *, repeats: int, seconds: float
) -> list[float]:
  """Fastest round of every function; the functions take turns.

  A round repeats a function for about `seconds` and gives the mean.
  """
  counts, best = [], []
  for run in runs:
    run()  # Compiles.
    start = time.perf_counter()
    run()
    taken = time.perf_counter() - start
    counts.append(max(1, round(seconds / taken)))
    best.append(taken)
  for _ in range(repeats):
    for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
      start = time.perf_counter()
      for _ in range(count):
        run()
      best[i] = min(best[i], (time.perf_counter() - start) / count)
  return best


def main():
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.train_step',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--network', choices=(*NETWORKS, 'both'), default='both')
  parser.add_argument('--batch', type=int, default=8, help='pictures per view')
  parser.add_argument(
    '--dtype', choices=university1652.DTYPES, default='float32'
  )
  parser.add_argument('--remat', action='store_true', help='recompute blocks')
  parser.add_argument('--repeats', type=int, default=2)
  parser.add_argument(
    '--seconds', type=float, default=2.0, help='length of one round'
  )
  parser.add_argument('--torch_compile', action='store_true')
  args = parser.parse_args()
  try:
    import torch
  except ImportError:
    torch = None
  device = jax.devices()[0]
  out = [
    f'{device.platform} ({device.device_kind}), {args.dtype}, batch '
    f'{args.batch} per view, torch '
    + ('not installed' if torch is None else torch.__version__)
    + (' compiled' if torch is not None and args.torch_compile else ''),
    '',
    '| network | what | pictures/s | torch pictures/s | ratio |',
    '|---|---|---:|---:|---:|',
  ]
  sys.stdout.write('\n'.join(out) + '\n')
  for name in NETWORKS if args.network == 'both' else (args.network,):
    batch = pictures(args.batch, NETWORKS[name][3])
    ours = jax_runs(name, batch, dtype=args.dtype, remat=args.remat)
    theirs = (None, None)
    if torch is not None:
      theirs = torch_runs(
        torch, name, batch, dtype=args.dtype, compiled=args.torch_compile
      )
    work = (('train step', len(VIEWS)), ('embedding', 1))
    for (what, views), mine, other in zip(work, ours, theirs, strict=True):
      runs = [mine] if other is None else [mine, other]
      taken = best_seconds(runs, repeats=args.repeats, seconds=args.seconds)
      speed = [views * args.batch / t for t in taken]
      torch_cells = '- | -'
      if other is not None:
        torch_cells = f'{speed[1]:.1f} | {speed[0] / speed[1]:.2f}'
      sys.stdout.write(
        f'| {name} | {what} | {speed[0]:.1f} | {torch_cells} |\n'
      )
      sys.stdout.flush()


if __name__ == '__main__':
  main()
