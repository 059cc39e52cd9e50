"""A step of FRGeo with and without ASAM: `python -m benchmarks.frgeo_step`.

ConvNeXt-T with feature recombination on pictures of CVUSA's sizes (128 x 512 and
256 x 256), weighted tuple loss, AdamW; ASAM computes a second gradient and should
cost twice as much. Prints a Markdown table: pairs per second, the cost of ASAM,
and the share of the device's peak, for which a large matrix product is timed in
the same run. Where PyTorch is installed the same step in plain torch.nn (channels
last, automatic mixed precision for bfloat16) takes turns with ours.

On a GPU: `python -m benchmarks.frgeo_step --dtype=bfloat16 --batch=32
--torch_compile`.
"""

import argparse
import os
import sys
from collections.abc import Callable

# Leaves memory of the device for torch in the same process.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import best_seconds
from cvgl_jax import state as train_state
from cvgl_jax.methods import frgeo
from cvgl_jax.models import convnext, cost, layers
from cvgl_jax.optim import build

SIZES = {'panorama': (128, 512), 'satellite': (256, 256)}
ASAM = {'none': 0.0, 'asam': 2.5}  # rho
LR, DECAY = 1e-4, 0.03
# A forward and a backward pass, in forward passes.
PASSES = 3


def pictures(batch_size: int) -> dict:
  """Random pairs; the same for both libraries."""
  rng = np.random.default_rng(0)
  rows = np.arange(batch_size, dtype=np.int32)
  return {
    view: {
      'image': rng.integers(0, 256, (batch_size, *size, 3), np.uint8),
      'label': rows,
      'place': rows,
    }
    for view, size in SIZES.items()
  }


def jax_run(batch: dict, *, sam: str, dtype: str) -> Callable[[], None]:
  """One train step."""
  method = frgeo.Method(dtype=dtype, loss_groups=1)
  options = build.Optimizer(
    name='adamw', lr=LR, weight_decay=DECAY, sam=sam, sam_rho=ASAM[sam]
  )
  tx, _ = build.make(
    options, steps_per_epoch=100, total_epochs=1, labels=method.label
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

  def train():
    nonlocal held
    held, metrics = step(held, batch)
    jax.block_until_ready((held, metrics))

  return train


def torch_network(torch):
  """ConvNeXt-T in plain torch.nn; gives the four parts of one view."""
  nn = torch.nn
  depths, dims = convnext.VARIANTS['convnext_tiny']

  class Norm(nn.LayerNorm):
    """Of the channels of an NCHW map."""

    def forward(self, x):
      return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

  class Block(nn.Module):
    def __init__(self, c):
      super().__init__()
      self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
      self.branch = nn.Sequential(
        nn.LayerNorm(c, eps=1e-6),
        nn.Linear(c, 4 * c),
        nn.GELU(),
        nn.Linear(4 * c, c),
      )
      self.gamma = nn.Parameter(torch.full((c,), 1e-6))

    def forward(self, x):
      y = self.branch(self.depthwise(x).permute(0, 2, 3, 1)) * self.gamma
      return x + y.permute(0, 3, 1, 2)

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      parts, before = [], 3
      for stage, (depth, c) in enumerate(zip(depths, dims, strict=True)):
        if stage == 0:
          parts += [nn.Conv2d(before, c, 4, 4), Norm(c, eps=1e-6)]
        else:
          parts += [Norm(before, eps=1e-6), nn.Conv2d(before, c, 2, 2)]
        parts += [Block(c) for _ in range(depth)]
        before = c
      self.body = nn.Sequential(*parts)
      self.norm = nn.LayerNorm(before, eps=1e-6)

    def forward(self, x):
      x = self.body(x)
      h, w = x.shape[2] // 2, x.shape[3] // 2
      if x.shape[2] == x.shape[3]:
        cut = x[:, :, h:, :w], x[:, :, :h, :w], x[:, :, :h, w:], x[:, :, h:, w:]
      else:
        cut = x.chunk(4, dim=3)
      return torch.cat([self.norm(part.mean((2, 3))) for part in cut], 1)

  return Net()


def torch_run(
  torch, batch: dict, *, sam: str, dtype: str, compiled: bool
) -> Callable[[], None]:
  """The same as `jax_run` in PyTorch, on its best device."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True
  nets = torch.nn.ModuleDict({view: torch_network(torch) for view in SIZES})
  nets = nets.to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(nets.parameters(), lr=LR, weight_decay=DECAY)
  mean = torch.tensor(layers.MEAN, device=device).view(1, 3, 1, 1)
  std = torch.tensor(layers.STD, device=device).view(1, 3, 1, 1)
  # A permuted NHWC array is NCHW in the channels-last format.
  images = {
    view: torch.from_numpy(slot['image']).to(device).permute(0, 3, 1, 2)
    for view, slot in batch.items()
  }
  target = torch.arange(len(batch['satellite']['image']), device=device)

  def loss_of(images):
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
      features = [
        nets[view]((images[view].float() / 255 - mean) / std) for view in SIZES
      ]
    unit = [torch.nn.functional.normalize(f.float()) for f in features]
    scores = 10 * unit[0] @ unit[1].T
    entropy = torch.nn.functional.cross_entropy
    return (entropy(scores, target) + entropy(scores.T, target)) / 2

  if compiled:
    loss_of = torch.compile(loss_of)

  def climb(parameters):
    """ASAM's ascent; what was added."""
    scaled = [p.abs() * p.grad for p in parameters]
    norms = torch._foreach_norm(scaled)
    length = ASAM[sam] / (torch.stack(norms).norm() + 1e-12)
    added = [p * p * p.grad * length for p in parameters]
    torch._foreach_add_(parameters, added)
    return added

  def train():
    optimizer.zero_grad(set_to_none=True)
    loss_of(images).backward()
    if sam != 'none':
      parameters = list(nets.parameters())
      with torch.no_grad():
        added = climb(parameters)
      optimizer.zero_grad(set_to_none=True)
      loss_of(images).backward()
      with torch.no_grad():
        torch._foreach_sub_(parameters, added)
    optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return train


def matmul_run(dtype: str, size: int) -> Callable[[], None]:
  """A product of two square matrices, the device's peak in practice."""
  a = jnp.ones((size, size), dtype)
  product = jax.jit(lambda x: x @ x)
  return lambda: jax.block_until_ready(product(a))


def step_flops(batch_size: int) -> float:
  """Floating-point operations of one plain step's products."""
  method = frgeo.Method()
  one = pictures(1)
  variables = jax.eval_shape(lambda: method.init(jax.random.key(0), one))
  macs = sum(
    cost.forward(
      lambda v, x, view=view: method.embed(v, x, view),
      variables,
      jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8),
    ).macs
    for view, size in SIZES.items()
  )
  return 2 * PASSES * macs * batch_size


def main():
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.frgeo_step',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--batch', type=int, default=8, help='pairs')
  parser.add_argument('--dtype', choices=frgeo.DTYPES, default='float32')
  parser.add_argument('--repeats', type=int, default=2)
  parser.add_argument('--seconds', type=float, default=2.0)
  parser.add_argument('--torch_compile', action='store_true')
  args = parser.parse_args()
  try:
    import torch
  except ImportError:
    torch = None
  device = jax.devices()[0]
  batch = pictures(args.batch)
  size = 2048 if device.platform == 'cpu' else 8192
  runs = {'peak': matmul_run(args.dtype, size)}
  for sam in ASAM:
    runs['ours', sam] = jax_run(batch, sam=sam, dtype=args.dtype)
    if torch is not None:
      runs['torch', sam] = torch_run(
        torch, batch, sam=sam, dtype=args.dtype, compiled=args.torch_compile
      )
  taken = best_seconds(
    list(runs.values()), repeats=args.repeats, seconds=args.seconds
  )
  taken = dict(zip(runs, taken, strict=True))
  peak = 2 * size**3 / taken['peak']
  lines = [
    f'{device.platform} ({device.device_kind}), {args.dtype}, {args.batch} '
    f'pairs, matrix product {peak / 1e12:.2f} Tflop/s, torch '
    + ('not installed' if torch is None else torch.__version__)
    + (' compiled' if torch is not None and args.torch_compile else ''),
    '',
    '| step | pairs/s | x plain step | share of peak | torch pairs/s | ratio |',
    '|---|---:|---:|---:|---:|---:|',
  ]
  for passes, sam in enumerate(ASAM, 1):
    mine = taken['ours', sam]
    cells = [
      'plain' if sam == 'none' else sam.upper(),
      f'{args.batch / mine:.2f}',
      f'{mine / taken["ours", "none"]:.2f}',
      f'{passes * step_flops(args.batch) / mine / peak:.0%}',
    ]
    other = taken.get(('torch', sam))
    cells += (
      ['-', '-']
      if other is None
      else [f'{args.batch / other:.2f}', f'{other / mine:.2f}']
    )
    lines.append('| ' + ' | '.join(cells) + ' |')
  sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
