"""Depthwise convolution, one filter per channel, stride 1, same size.

y[b, h, w, c] = sum_ij kernel[i, j, 0, c] * x[b, h + i - r, w + j - r, c], with
zeros outside of x and r = (k - 1) / 2.

XLA has no fast path for it on CPUs, where it took most of a ConvNeXt's time, so
the formula is written out there: sums of shifted maps for the output and for
the gradient of x, products of shifted maps for that of the kernel. They are
exact, up to the order of sums; `python -m benchmarks.depthwise` compares them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Values of one step of `shifted_kernel_gradient`, per tap: they and the sums
# of all taps stay in the second-level cache.
STEP_VALUES = 3072


class DepthwiseConv(nn.Module):
  """Depthwise convolution with bias.

  Attributes:
    kernel_size: k, odd.
    kernel_init: initialiser of the kernel [k, k, 1, C].
    dtype: of the result; None follows input and parameters.
  """

  kernel_size: int
  kernel_init: Callable = nn.initializers.lecun_normal()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    channels = x.shape[-1]
    size = self.kernel_size
    kernel = self.param(
      'kernel', self.kernel_init, (size, size, 1, channels), jnp.float32
    )
    bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    return convolve(x, kernel) + bias[None, None, None]


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The formula of the module's docstring, by the fastest way of the platform.

  Reverse-mode gradients only.

  Args:
    x: [B, H, W, C].
    kernel: [k, k, 1, C] of the same type, k odd.

  Returns:
    [B, H, W, C].
  """
  return jax.lax.platform_dependent(
    x, kernel, cpu=shifted_sum, default=convolution
  )


def _convolve_forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _convolve_backward(saved, cotangent):
  x, kernel = saved
  # A correlation with the kernel turned by 180 degrees.
  grad_x = convolve(cotangent, kernel[::-1, ::-1])
  grad_kernel = jax.lax.platform_dependent(
    x,
    kernel,
    cotangent,
    cpu=shifted_kernel_gradient,
    default=convolution_kernel_gradient,
  )
  return grad_x, grad_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """XLA's grouped convolution."""
  radius = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=[(radius, radius)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def convolution_kernel_gradient(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
  """XLA's gradient of `convolution`."""
  transpose = jax.linear_transpose(lambda k: convolution(x, k), kernel)
  return transpose(cotangent)[0]


def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """k * k shifted maps, scaled and added in float32 at least.

  Makes one row of the output after the other: the rows that it needs stay in
  the cache, and XLA cannot merge the loop with what is before and after it,
  which it would compute once for every tap or use.
  """
  batch, height, width, channels = x.shape
  size = kernel.shape[0]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  padded = _pad(x, size // 2)
  taps = kernel[:, :, 0].astype(wide)  # [k, k, C]

  def row(_, h):
    rows = jax.lax.dynamic_slice(
      padded, (0, h, 0, 0), (batch, size, width + size - 1, channels)
    ).astype(wide)
    total = jnp.zeros((), wide)
    for i in range(size):
      for j in range(size):
        total = total + rows[:, i, j : j + width] * taps[i, j][None, None]
    return None, total.astype(x.dtype)

  _, rows = jax.lax.scan(row, None, jnp.arange(height))  # [H, B, W, C]
  return jnp.moveaxis(rows, 0, 1)


def shifted_kernel_gradient(
  x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> jax.Array:
  """Products of the cotangent and k * k shifted maps, summed over B, H, W.

  Sums one picture after the other, a part of a row at a time, so that the k * k
  sums are read and written in the cache.

  Args:
    x, cotangent: [B, H, W, C].
    kernel: [k, k, 1, C]; only its shape and type are used.

  Returns:
    [k, k, 1, C].
  """
  _, height, width, channels = x.shape
  size = kernel.shape[0]
  part = _part(width, channels)
  parts = width // part
  wide = jnp.promote_types(x.dtype, jnp.float32)
  start = tuple(jnp.zeros((size, part, channels), wide) for _ in range(size))

  def add_picture(total, maps):
    padded, gradient = maps  # [H + k - 1, W + k - 1, C], [H, W, C]

    def add_part(sums, step):
      row, column = step // parts, step % parts * part
      g = jax.lax.dynamic_slice(
        gradient, (row, column, 0), (1, part, channels)
      ).astype(wide)
      rows = jax.lax.dynamic_slice(
        padded, (row, column, 0), (size, part + size - 1, channels)
      ).astype(wide)
      # One sum for each column of the kernel, of all its rows: [k, part, C].
      sums = tuple(s + rows[:, j : j + part] * g for j, s in enumerate(sums))
      return sums, None

    sums, _ = jax.lax.scan(add_part, start, jnp.arange(height * parts))
    return jax.tree.map(jnp.add, total, sums), None

  total, _ = jax.lax.scan(add_picture, start, (_pad(x, size // 2), cotangent))
  gradient = jnp.stack([column.sum(1) for column in total], 1)  # [k, k, C]
  return gradient[:, :, None].astype(kernel.dtype)


def _part(width: int, channels: int) -> int:
  """The longest part of a row that fits `STEP_VALUES`, a divisor of width."""
  limit = max(1, STEP_VALUES // channels)
  part = max(d for d in range(1, min(limit, width) + 1) if width % d == 0)
  # Widths such as primes: a row that is too long beats steps of a few pixels.
  return part if 4 * part >= min(limit, width) else width


def _pad(x: jax.Array, radius: int) -> jax.Array:
  return jnp.pad(x, [(0, 0), (radius, radius), (radius, radius), (0, 0)])
