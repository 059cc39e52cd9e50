"""A trunk by its name.

A method that takes `backbone: str` builds it here, so that a new backbone is
one module and one line.
"""

from typing import Any

import flax.linen as nn
import jax

from cvgl_jax.models import convnext, layers, resnet, small_cnn, vgg

NAMES = (*resnet.VARIANTS, *convnext.VARIANTS, 'vgg16_bn', 'small_cnn')
ATTENTIONS = ('none', 'usam')
# State dict entries of torchvision (and timm) checkpoints that no trunk uses:
# classifiers of ResNets, VGG (torchvision, then timm) and ConvNeXts.
IMAGENET_HEADS = (
  r'fc\.(weight|bias)',
  r'classifier\.[036]\.(weight|bias)',
  r'pre_logits\.fc[12]\.(weight|bias)',
  *convnext.IMAGENET_HEADS,
)


def make(
  name: str,
  *,
  width: int = 64,
  last_stride: int = 2,
  pool: str = '',
  dtype: Any = None,
  remat: bool = False,
  module_name: str | None = None,
) -> nn.Module:
  """Builds the trunk `name` (see `NAMES`).

  Args:
    name: 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'convnext_mini',
      'convnext_tiny', 'convnext_small', 'convnext_base', 'vgg16_bn' or
      'small_cnn'.
    width: 64 for the published networks; all channels are proportional to it.
      It is the number of channels of the first stage, but for ConvNeXts.
    last_stride: stride of the last stage of a ResNet (the others ignore it,
      as the reference does with VGG).
    pool: '' for the feature map, or a kind of `layers.pool`.
    dtype: of convolutions and activations.
    remat: recompute activations in the backward pass ('small_cnn' has too few
      to bother).
    module_name: Flax name of the module.

  Raises:
    ValueError: an unknown name.
  """
  if name in resnet.VARIANTS:
    return resnet.ResNet(
      variant=name,
      width=width,
      last_stride=last_stride,
      pool=pool,
      dtype=dtype,
      remat=remat,
      name=module_name,
    )
  if name in convnext.VARIANTS:
    return convnext.make(
      name, width=width, pool=pool, dtype=dtype, remat=remat, name=module_name
    )
  if name == 'vgg16_bn':
    return vgg.VGG16(
      width=width, pool=pool, dtype=dtype, remat=remat, name=module_name
    )
  if name == 'small_cnn':
    return small_cnn.SmallCNN(
      width=width, pool=pool, dtype=dtype, name=module_name
    )
  raise ValueError(f'backbone {name!r}: expected one of {NAMES}')


class Trunk(nn.Module):
  """Backbone 'model', USAM after its stem and first stage, pooling.

  The names are those of layumi/University1652-Baseline `ft_net`
  (`model.conv1`, `model.gem2.p`) and AggMan96/RK-Net (`usam_1.bn`).

  Attributes:
    backbone, width, last_stride, pool, dtype, remat: see `make`.
    attention: one of `ATTENTIONS`; 'usam' needs a ResNet.
  """

  backbone: str = 'resnet50'
  width: int = 64
  last_stride: int = 2
  pool: str = 'avg'
  attention: str = 'none'
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, 3] normalised -> [B, C] float32."""
    model = make(
      self.backbone,
      width=self.width,
      last_stride=self.last_stride,
      pool=self.pool,
      dtype=self.dtype,
      remat=self.remat,
      module_name='model',
    )
    if self.attention == 'none':
      return model(x, train=train)
    usam_1, usam_2 = layers.USAM(name='usam_1'), layers.USAM(name='usam_2')
    return model(
      x,
      train=train,
      after_stem=lambda y: usam_1(y, train=train),
      after_layer1=lambda y: usam_2(y, train=train),
    )
