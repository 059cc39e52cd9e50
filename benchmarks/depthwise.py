"""Ways of a depthwise 7 x 7 convolution: `python -m benchmarks.depthwise`.

Prints Markdown tables: milliseconds of the output, of the gradient of the
input and of that of the kernel, on the maps of a ConvNeXt-T for one view, for

  xla      a grouped convolution and its transposes;
  taps     sums and products of 49 shifted maps, all written out at once;
  rows     the same row by row, and part by part of a row
           (`models/depthwise`, what is used on CPUs);

then forward and backward pass of the whole trunk with xla and with what
`models/depthwise` chooses for this platform. The ways take turns, so ratios
are of one run; every number is the best of --repeats rounds. Differences are
relative to the largest value of xla's result.

Run it on a new platform, and change `platform_dependent` in
`models/depthwise` if another way wins there.
"""

import argparse
import sys
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import best_seconds
from cvgl_jax.models import convnext, depthwise

KERNEL = 7
WAYS = ('xla', 'taps', 'rows')


def taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The sum of all taps as one expression."""
  height, width = x.shape[1:3]
  size = kernel.shape[0]
  x = jnp.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
  total = jnp.zeros((), jnp.float32)
  for i in range(size):
    for j in range(size):
      tap = kernel[i, j, 0].astype(jnp.float32)[None, None, None]
      total = total + x[:, i : i + height, j : j + width] * tap
  return total.astype(x.dtype)


def taps_kernel_gradient(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
  """One sum of products for each tap."""
  height, width = x.shape[1:3]
  size = kernel.shape[0]
  x = jnp.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
  sums = [
    jnp.einsum(
      'bhwc,bhwc->c',
      x[:, i : i + height, j : j + width],
      cotangent,
      preferred_element_type=jnp.float32,
    )
    for i in range(size)
    for j in range(size)
  ]
  return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def convolution_input_gradient(
  kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
  """XLA's transpose of `depthwise.convolution` for the input."""
  transpose = jax.linear_transpose(
    lambda x: depthwise.convolution(x, kernel), cotangent
  )
  return transpose(cotangent)[0]


# What -> function of (x, kernel, cotangent) for every way.
PARTS: dict[str, tuple[Callable, ...]] = {
  'output': (
    lambda x, k, g: depthwise.convolution(x, k),
    lambda x, k, g: taps(x, k),
    lambda x, k, g: depthwise.shifted_sum(x, k),
  ),
  'input gradient': (
    lambda x, k, g: convolution_input_gradient(k, g),
    lambda x, k, g: taps(g, k[::-1, ::-1]),
    lambda x, k, g: depthwise.shifted_sum(g, k[::-1, ::-1]),
  ),
  'kernel gradient': (
    depthwise.convolution_kernel_gradient,
    taps_kernel_gradient,
    depthwise.shifted_kernel_gradient,
  ),
}


def runner(function: Callable, arguments: tuple) -> Callable[[], None]:
  """Compiles a function; the result runs it to its end."""
  compiled = jax.jit(function).lower(*arguments).compile()
  return lambda: jax.block_until_ready(compiled(*arguments))


def difference(found: jax.Array, expected: jax.Array) -> float:
  found, expected = (np.asarray(a, np.float64) for a in (found, expected))
  return float(np.abs(found - expected).max() / np.abs(expected).max())


def maps_table(args: argparse.Namespace, dtype) -> None:
  """Every stage, every part, every way."""
  height, width = args.size
  sys.stdout.write(
    '| map | what | xla ms | taps ms | rows ms | xla / taps | xla / rows | '
    'largest difference |\n|---|---|---:|---:|---:|---:|---:|---:|\n'
  )
  rng = np.random.default_rng(0)
  for stage, channels in enumerate(convnext.VARIANTS[args.network][1]):
    side = 4 * 2**stage
    shape = (args.batch, height // side, width // side, channels)
    x, g = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    kernel = rng.standard_normal((KERNEL, KERNEL, 1, channels)) / KERNEL
    kernel = jnp.asarray(kernel, dtype)
    for what, functions in PARTS.items():
      results = [jax.jit(f)(x, kernel, g) for f in functions]
      worst = max(difference(r, results[0]) for r in results[1:])
      ms = [
        1e3 * seconds
        for seconds in best_seconds(
          [runner(f, (x, kernel, g)) for f in functions],
          repeats=args.repeats,
          seconds=args.seconds,
        )
      ]
      sys.stdout.write(
        f'| {shape[1]}x{shape[2]}x{channels} | {what} | '
        + ' | '.join(f'{t:.2f}' for t in ms)
        + f' | {ms[0] / ms[1]:.1f} | {ms[0] / ms[2]:.1f} | {worst:.0e} |\n'
      )


def network_table(args: argparse.Namespace, dtype) -> None:
  """The whole trunk, forward and with gradients."""
  module = convnext.make(args.network, pool='avg', dtype=dtype)
  x = jnp.asarray(
    np.random.default_rng(0).standard_normal((args.batch, *args.size, 3)), dtype
  )
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), x, train=False)
  )
  params = jax.tree.map(lambda s: jnp.full(s.shape, 0.02, s.dtype), shapes)

  def forward(params, x):
    return module.apply(params, x, train=True)

  def both(params, x):
    return jax.grad(lambda p: jnp.square(forward(p, x)).sum())(params)

  sys.stdout.write(
    '\n| network | what | xla ms | chosen ms | xla / chosen |\n'
    '|---|---|---:|---:|---:|\n'
  )
  for what, function in (('forward', forward), ('with gradients', both)):
    chosen = runner(function, (params, x))
    jax.clear_caches()  # The next one is another function of the same name.
    with mock.patch.object(depthwise, 'convolve', depthwise.convolution):
      plain = runner(function, (params, x))
    ms = [
      1e3 * seconds
      for seconds in best_seconds(
        [plain, chosen], repeats=args.repeats, seconds=args.seconds
      )
    ]
    sys.stdout.write(
      f'| {args.network} | {what} | {ms[0]:.0f} | {ms[1]:.0f} | '
      f'{ms[0] / ms[1]:.2f} |\n'
    )


def main():
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.depthwise',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--network', choices=(*convnext.VARIANTS,), default='convnext_tiny'
  )
  parser.add_argument('--batch', type=int, default=8, help='pictures')
  parser.add_argument(
    '--size', type=int, nargs=2, default=(128, 512), help='rows and columns'
  )
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument(
    '--seconds', type=float, default=0.5, help='length of one round'
  )
  args = parser.parse_args()
  dtype = jnp.dtype(args.dtype)
  device = jax.devices()[0]
  sys.stdout.write(
    f'{device.platform} ({device.device_kind}), jax {jax.__version__}, '
    f'{args.dtype}, batch {args.batch}, pictures of {args.size[0]}x'
    f'{args.size[1]}\n\n'
  )
  maps_table(args, dtype)
  network_table(args, dtype)


if __name__ == '__main__':
  main()
