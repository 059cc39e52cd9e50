"""Layers that the torch references share: norms, pools, GeM, USAM, heads.

Everything is NHWC. Sub-modules carry the names of the torch modules with '.'
before an index written as '_' (`add_block.0` is `add_block_0`), so that
`torch_weights` maps state dicts one to one. Computation follows the dtype
policy of the references' mixed precision: parameters and statistics stay
float32, `dtype=jnp.bfloat16` runs convolutions and products in bfloat16,
reductions and returned features are float32 (float64 under `jax_enable_x64`
with float64 variables; `dtype=None` follows the inputs and parameters).

Source: layumi/University1652-Baseline `model.py` (GeM, ClassBlock),
AggMan96/RK-Net `model.py` (USAM), torchvision and torch 2 (batch norm, init).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of pixels in 0..1
STD = (0.229, 0.224, 0.225)
GEM_EPS = 1e-6
POOLS = ('avg', 'max', 'avg+max', 'gem')

# torchvision's initialisation of convolutions (`kaiming_normal_`, fan_out).
kaiming_normal_fan_out = nn.initializers.variance_scaling(
  2.0, 'fan_out', 'normal'
)


def normalize_image(images: jax.Array) -> jax.Array:
  """Scales pixels to 0..1 and normalises with the ImageNet mean and deviation.

  Args:
    images: [..., H, W, 3], uint8 or floating point in 0..255, RGB.

  Returns:
    Same shape, float32 (float64 for float64 input).
  """
  if images.shape[-1] != 3:
    raise ValueError(
      f'images of shape {tuple(images.shape)}: expected [..., H, W, 3] (RGB, '
      'channels last)'
    )
  images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  ones = (1,) * (images.ndim - 1)
  mean = np.asarray(MEAN).reshape(*ones, 3).astype(images.dtype)
  std = np.asarray(STD).reshape(*ones, 3).astype(images.dtype)
  return (images / 255 - mean) / std


def conv(
  features: int,
  kernel_size: int,
  *,
  name: str,
  strides: int = 1,
  padding: int = 0,
  use_bias: bool = False,
  dtype: Any = None,
) -> nn.Conv:
  """A square convolution with torch's symmetric padding and torchvision's init."""
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=(strides, strides),
    padding=[(padding, padding)] * 2,
    use_bias=use_bias,
    kernel_init=kaiming_normal_fan_out,
    dtype=dtype,
    name=name,
  )


def layer_norm(
  *, name: str | None = None, dtype: Any = None, epsilon: float = 1e-6
) -> nn.LayerNorm:
  """Layer normalisation over the channels, as ConvNeXt and ViT use it.

  Reduces in float32 at least and takes the variance as mean((x - mean)^2);
  Flax's default, mean(x^2) - mean^2, loses digits.

  Args:
    name: Flax name of the module.
    dtype: of the result; None follows the input and the parameters.
    epsilon: added to the variance (torch's own default is 1e-5).
  """
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
  )


def max_pool(
  x: jax.Array, window: int, *, strides: int, padding: int = 0
) -> jax.Array:
  """Square max pooling; padding counts as minus infinity, as in torch."""
  return nn.max_pool(
    x,
    (window, window),
    strides=(strides, strides),
    padding=[(padding, padding)] * 2,
  )


class BatchNorm(nn.Module):
  """Batch normalisation with torch's rules, over all axes but the last.

  Normalises with the biased batch variance and stores the unbiased one
  (n / (n - 1)), which `flax.linen.BatchNorm` does not; running = momentum *
  running + (1 - momentum) * batch. Reductions run in float32 at least, in one
  pass: the variance is taken about the running mean, which keeps it exact when
  the mean is large beside the deviation. Under `jit` with a sharded batch the
  statistics are those of the global batch.

  Attributes:
    momentum: 1 - torch's momentum.
    epsilon: added to the variance.
    dtype: of the result; None for the input's.
    scale_init: initialiser of the scale (torch `weight`).
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    in_turn: Sequence[bool] | None = None,
  ) -> jax.Array:
    """Normalises.

    Args:
      x: [..., C].
      train: use and record the statistics of this batch.
      in_turn: [P]: x is [B, P, C], P groups that come one after the other: each
        is normalised by its own statistics, and those with True are recorded.

    Returns:
      [..., C].

    Raises:
      ValueError: training on a single value per channel.
    """
    channels = x.shape[-1]
    scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, (channels,), jnp.float32
    )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def broadcast(vectors):  # [C], or [P, C] of groups
      return vectors.reshape(*(1,) * (x.ndim - vectors.ndim), *vectors.shape)

    if train:
      axes = tuple(range(x.ndim - (1 if in_turn is None else 2)))
      count = math.prod(x.shape[axis] for axis in axes)
      if count < 2:
        raise ValueError(
          f'batch norm {"/".join(self.path)}: training needs more than one value '
          f'per channel, got an input of shape {tuple(x.shape)}; use a larger '
          'batch (or fewer micro-batches)'
        )
      mean, var = _moments(wide, axes, about=running_mean.value)
      if not self.is_initializing():
        unbiased = var * (count / (count - 1))
        for known, value in ((running_mean, mean), (running_var, unbiased)):
          known.value = self._recorded(known.value, value, in_turn)
    else:
      mean, var = running_mean.value, running_var.value
    factor = jax.lax.rsqrt(var + self.epsilon) * scale.reshape(
      *(1,) * (var.ndim - 1), channels
    )
    y = (wide - broadcast(mean)) * broadcast(factor) + broadcast(bias)
    return y.astype(self.dtype or x.dtype)

  def _recorded(self, running, batch, in_turn):
    """The running statistic after a batch, or after groups of it in turn."""
    groups = [batch]
    if in_turn is not None:
      groups = [batch[i] for i, known in enumerate(in_turn) if known]
    dtype = running.dtype
    for value in groups:
      running = self.momentum * running + (1 - self.momentum) * value
    return running.astype(dtype)


def _moments(
  x: jax.Array, axes: tuple[int, ...], *, about: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance over `axes`, [C] each.

  Maps take one pass over memory: the variance is taken about `about` (the
  running mean), which keeps it exact when the mean is large beside the
  deviation. Vectors are small and often few, so they take two passes, which
  is as exact as float32 allows.
  """
  if len(axes) == 1:
    mean = x.mean(axes)
    return mean, jnp.square(x - mean[None]).mean(axes)
  ones = (1,) * len(axes)
  shift = jax.lax.stop_gradient(about).astype(x.dtype)
  shifted = x - shift.reshape(*ones, -1)
  offset = shifted.mean(axes)
  var = jnp.maximum(jnp.square(shifted).mean(axes) - jnp.square(offset), 0)
  return shift + offset, var


class GeM(nn.Module):
  """Generalised mean pooling with one learnable exponent per channel.

  y_c = (mean_hw max(x, 1e-6)^p_c)^(1 / p_c), p_c starts at 3.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C], float32."""
    channels = x.shape[-1]
    p = self.param('p', nn.initializers.constant(3.0), (channels,), jnp.float32)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.maximum(x, GEM_EPS) ** p[None, None, None]  # [B, H, W, C]
    return x.mean((1, 2)) ** (1 / p[None])


def pool(x: jax.Array, kind: str) -> jax.Array:
  """Global pooling; must be called inside a compact module ('gem' has weights).

  Args:
    x: [B, H, W, C].
    kind: 'avg', 'max', 'avg+max' (mean first, 2 C features) or 'gem' (its
      exponents become the parameter `gem2/p` of the calling module).

  Returns:
    [B, C] or [B, 2 C], float32.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if kind == 'avg':
    return x.mean((1, 2))
  if kind == 'max':
    return x.max((1, 2))
  if kind == 'avg+max':
    return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
  if kind == 'gem':
    return GeM(name='gem2')(x)
  raise ValueError(f'pool {kind!r}: expected one of {POOLS}')


def unit(x: jax.Array) -> jax.Array:
  """x / max(|x|, 1e-12) along the last axis; at a zero vector gradient 0."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  return jnp.where(square > 0, x / jnp.maximum(norm, 1e-12), 0.0)


class USAM(nn.Module):
  """Unit subtraction attention: keeps positions that differ from their surround.

  f = sum_c x; a = relu(BN(9 f - box3x3(f))) with zero padding, border rows and
  columns of a set to 0; y = x + a x. Two trained values (the batch norm).

  Source: AggMan96/RK-Net `model.py`. Differs: the border is cleared by a mask,
  because the reference's in-place write fails in the backward pass of new torch.
  """

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    height, width = x.shape[1:3]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = wide.sum(-1, keepdims=True)  # [B, H, W, 1]
    box = jax.lax.reduce_window(
      total,
      np.zeros((), total.dtype),
      jax.lax.add,
      (1, 3, 3, 1),
      (1, 1, 1, 1),
      [(0, 0), (1, 1), (1, 1), (0, 0)],
    )
    attention = nn.relu(BatchNorm(name='bn')(9 * total - box, train=train))
    mask = np.zeros((1, height, width, 1), bool)
    mask[:, 1:-1, 1:-1] = True
    attention = jnp.where(mask, attention, 0)
    return (wide + attention * wide).astype(x.dtype)


class ClassBlock(nn.Module):
  """Bottleneck and classifier of layumi's baselines.

  Linear(-> dim) -> BatchNorm -> [LeakyReLU 0.1] -> Dropout gives the feature f;
  Linear(-> num_classes) gives the logits.

  Attributes:
    num_classes: K.
    dim: D of the bottleneck.
    droprate: probability of dropping a feature in training.
    linear, bnorm, relu: which layers of the bottleneck there are.
    dtype: of the bottleneck's product; f and the logits are float32.
  """

  num_classes: int
  dim: int = 512
  droprate: float = 0.5
  linear: bool = True
  bnorm: bool = True
  relu: bool = False
  dtype: Any = None

  def setup(self):
    # Indices are those of the torch `Sequential`, which skips absent layers.
    block = []
    if self.linear:
      # kaiming_normal_(fan_out): std = sqrt(2 / dim).
      self.add_block_0 = nn.Dense(
        self.dim, kernel_init=kaiming_normal_fan_out, dtype=self.dtype
      )
      block.append(self.add_block_0)
    if self.bnorm:
      norm = BatchNorm(scale_init=_normal_about_one)
      setattr(self, f'add_block_{len(block)}', norm)
      self.norm = norm
    self.dropout = nn.Dropout(self.droprate)
    self.classifier_0 = nn.Dense(
      self.num_classes, kernel_init=nn.initializers.normal(0.001)
    )

  def features(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, C] -> f [B, D] float32, after batch norm and dropout."""
    if self.linear:
      x = self.add_block_0(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.bnorm:
      x = self.norm(x, train=train)
    if self.relu:
      x = nn.leaky_relu(x, 0.1)
    return self.dropout(x, deterministic=not train)

  def features_in_turn(
    self, x: jax.Array, *, train: bool, record: Sequence[bool]
  ) -> jax.Array:
    """`features` of several groups, one after the other, by one product.

    Every group is normalised by its own statistics.

    Args:
      x: [B, P, C], P groups.
      train: as for `features`.
      record: [P], which groups update the running statistics.

    Returns:
      [B, P, D] float32.
    """
    x = self.add_block_0(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = self.norm(x, train=train, in_turn=record)
    return self.dropout(x, deterministic=not train)

  def classify(self, features: jax.Array) -> jax.Array:
    """f [B, D] -> logits [B, K]."""
    return self.classifier_0(features)

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """[B, C] -> (logits [B, K], f [B, D])."""
    features = self.features(x, train=train)
    return self.classify(features), features


def _normal_about_one(key, shape, dtype=jnp.float32):
  """N(1, 0.02), the initial scale of the head's batch norm."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)
