"""ResNet-18/34/50/101 with torchvision's layout, names and initialisation.

Source: torchvision `models/resnet.py`; the option `last_stride` is that of
layumi/University1652-Baseline `model.py` (stride 1 in the last stage doubles
the resolution of the feature map).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from cvgl_jax.models import layers


class BasicBlock(nn.Module):
  """3x3 -> 3x3 with a shortcut (ResNet-18/34)."""

  features: int
  strides: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, features]."""
    y = layers.conv(
      self.features,
      3,
      strides=self.strides,
      padding=1,
      dtype=self.dtype,
      name='conv1',
    )(x)
    y = nn.relu(layers.BatchNorm(name='bn1')(y, train=train))
    y = layers.conv(
      self.features, 3, padding=1, dtype=self.dtype, name='conv2'
    )(y)
    y = layers.BatchNorm(name='bn2')(y, train=train)
    return nn.relu(y + shortcut(self, x, y.shape[-1], train=train))


class Bottleneck(nn.Module):
  """1x1 -> 3x3 (with the stride) -> 1x1 times four (ResNet-50/101)."""

  features: int
  strides: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 features]."""
    y = layers.conv(self.features, 1, dtype=self.dtype, name='conv1')(x)
    y = nn.relu(layers.BatchNorm(name='bn1')(y, train=train))
    y = layers.conv(
      self.features,
      3,
      strides=self.strides,
      padding=1,
      dtype=self.dtype,
      name='conv2',
    )(y)
    y = nn.relu(layers.BatchNorm(name='bn2')(y, train=train))
    y = layers.conv(4 * self.features, 1, dtype=self.dtype, name='conv3')(y)
    y = layers.BatchNorm(name='bn3')(y, train=train)
    return nn.relu(y + shortcut(self, x, y.shape[-1], train=train))


def shortcut(
  block: nn.Module, x: jax.Array, features: int, *, train: bool
) -> jax.Array:
  """The identity, or 1x1 convolution + batch norm where the shape changes.

  Must be called inside the compact method of `block`.
  """
  if block.strides == 1 and x.shape[-1] == features:
    return x if block.dtype is None else x.astype(block.dtype)
  x = layers.conv(
    features, 1, strides=block.strides, dtype=block.dtype, name='downsample_0'
  )(x)
  return layers.BatchNorm(name='downsample_1')(x, train=train)


# Name -> block, number of blocks in each stage.
VARIANTS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
  'resnet18': (BasicBlock, (2, 2, 2, 2)),
  'resnet34': (BasicBlock, (3, 4, 6, 3)),
  'resnet50': (Bottleneck, (3, 4, 6, 3)),
  'resnet101': (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
  """The trunk of a ResNet, without its ImageNet classifier.

  Attributes:
    variant: a key of `VARIANTS`.
    width: channels of the first stage (64; less for tests and small recipes).
    last_stride: stride of the last stage, 2 (torchvision) or 1.
    pool: '' returns the feature map; otherwise a kind of `layers.pool`.
    dtype: of convolutions and activations; None follows the input.
    remat: recompute every block in the backward pass instead of storing it.
  """

  variant: str = 'resnet50'
  width: int = 64
  last_stride: int = 2
  pool: str = ''
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    after_stem: Callable[[jax.Array], jax.Array] | None = None,
    after_layer1: Callable[[jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """Applies the trunk.

    Args:
      x: [B, H, W, 3], normalised.
      train: batch statistics and their update.
      after_stem: applied between the first ReLU and the max pool.
      after_layer1: applied to the output of the first stage.

    Returns:
      The feature map [B, H / 32, W / 32, C] (/ 16 with last_stride=1), or the
      pooled features [B, C]; C = 8 width, times 4 for bottleneck variants.
    """
    kind, depths = VARIANTS[self.variant]
    block = nn.remat(kind, static_argnums=(2,)) if self.remat else kind
    x = layers.conv(
      self.width, 7, strides=2, padding=3, dtype=self.dtype, name='conv1'
    )(x)
    x = nn.relu(layers.BatchNorm(name='bn1')(x, train=train))
    if after_stem is not None:
      x = after_stem(x)
    x = layers.max_pool(x, 3, strides=2, padding=1)
    for stage, depth in enumerate(depths):
      first_stride = (1, 2, 2, self.last_stride)[stage]
      for i in range(depth):
        x = block(
          self.width * 2**stage,
          strides=first_stride if i == 0 else 1,
          dtype=self.dtype,
          name=f'layer{stage + 1}_{i}',
        )(x, train)
      if stage == 0 and after_layer1 is not None:
        x = after_layer1(x)
    return layers.pool(x, self.pool) if self.pool else x
