"""A network of four strided convolutions, for small sets and CPUs.

Nobody's published network: few hundred places and random weights need a small
receptive field (31 pixels) and little arithmetic more than depth.
"""

from typing import Any

import flax.linen as nn
import jax

from cvgl_jax.models import layers

# Channels of the stages are width times these.
WIDTHS = (1, 2, 4, 4)


class SmallCNN(nn.Module):
  """Four times convolution 3 x 3 / 2, batch norm, ReLU.

  Attributes:
    width: channels of the first stage.
    pool: '' returns the feature map; otherwise a kind of `layers.pool`.
    dtype: of convolutions and activations; None follows the input.
  """

  width: int = 64
  pool: str = ''
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, 3] normalised -> [B, H/16, W/16, 4 width], or pooled [B, C]."""
    for i, width in enumerate(WIDTHS):
      x = layers.conv(
        self.width * width,
        3,
        strides=2,
        padding=1,
        dtype=self.dtype,
        name=f'conv{i + 1}',
      )(x)
      x = layers.BatchNorm(name=f'bn{i + 1}')(x, train=train)
      x = nn.relu(x)
    return layers.pool(x, self.pool) if self.pool else x
