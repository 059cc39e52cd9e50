"""VGG-16 with batch norm, torchvision's layout, names and initialisation.

Source: torchvision `models/vgg.py` (`vgg16_bn().features`).
"""

from typing import Any

import flax.linen as nn
import jax

from cvgl_jax.models import layers

# Convolutions in each stage; a 2x2 max pool ends every stage. Channels are
# width times 1, 2, 4, 8, 8.
DEPTHS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)


class VGG16(nn.Module):
  """The convolutional part of VGG-16-BN; 13 convolutions with bias.

  Attributes:
    width: channels of the first stage (64; less for tests).
    pool: '' returns the feature map; otherwise a kind of `layers.pool`.
    dtype: of convolutions and activations; None follows the input.
    remat: recompute every stage in the backward pass instead of storing it.
  """

  width: int = 64
  pool: str = ''
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, 3] normalised -> [B, H / 32, W / 32, 8 width], or pooled [B, C].

    Raises:
      ValueError: pictures below 32 x 32.
    """
    if min(x.shape[1:3]) < 32:
      raise ValueError(
        f'vgg16_bn on {x.shape[1]}x{x.shape[2]} pictures: needs at least 32x32'
      )
    index = 0  # Position in torch's `features` list: conv, bn, relu, ..., pool.

    def stage(module, x, first_index, number):
      del module  # The lifted transform passes the scope that names belong to.
      for i in range(DEPTHS[number]):
        at = first_index + 3 * i
        x = layers.conv(
          self.width * WIDTHS[number],
          3,
          padding=1,
          use_bias=True,
          dtype=self.dtype,
          name=f'features_{at}',
        )(x)
        x = layers.BatchNorm(name=f'features_{at + 1}')(x, train=train)
        x = nn.relu(x)
      return layers.max_pool(x, 2, strides=2)

    if self.remat:
      stage = nn.remat(stage, static_argnums=(2, 3))
    for number, depth in enumerate(DEPTHS):
      x = stage(self, x, index, number)
      index += 3 * depth + 1
    return layers.pool(x, self.pool) if self.pool else x
