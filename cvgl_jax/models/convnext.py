"""ConvNeXt with Facebook's layout, names and initialisation.

x -> patches of 4 x 4 -> four stages of blocks; a block is
x + gamma * Dense(GELU(Dense(LayerNorm(depthwise 7 x 7 (x))))), and a layer norm
and 2 x 2 patches lead from one stage to the next. Everything a block computes
between its convolution and its sum acts on the channels of one position.

Modules are named as in facebookresearch/ConvNeXt ('stages.0.1.dwconv' is
'stages_0_1/dwconv'); `to_facebook` renames the weights of timm and torchvision.

Source: facebookresearch/ConvNeXt `models/convnext.py`, and
zqwlearning/FRGeo-Code `model/convnext.py`, which is the same network.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.models import depthwise, layers

# Name -> blocks in each stage, channels of each stage.
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
  'convnext_mini': ((1, 1, 2, 1), (32, 64, 128, 256)),  # Ours: CPUs, demos.
  'convnext_tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
  'convnext_small': ((3, 3, 27, 3), (96, 192, 384, 768)),
  'convnext_base': ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
REDUCTION = 32  # Pixels of the picture to one of the map, on each axis.
# ImageNet classifiers, after `to_facebook`.
IMAGENET_HEADS = (r'head\.(weight|bias)',)

# The reference truncates at +-100 deviations, which cuts nothing.
_init = nn.initializers.normal(0.02)


class Block(nn.Module):
  """Depthwise 7 x 7 -> layer norm -> C -> 4 C -> C, scaled, added.

  Attributes:
    drop_path: probability that a picture skips the branch in training.
    layer_scale: initial value of gamma.
    dtype: of products and activations; None follows the input.
  """

  drop_path: float = 0.0
  layer_scale: float = 1e-6
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]."""
    channels = x.shape[-1]
    y = depthwise.DepthwiseConv(
      7, kernel_init=_init, dtype=self.dtype, name='dwconv'
    )(x)
    y = layers.layer_norm(name='norm', dtype=self.dtype)(y)
    y = _dense(4 * channels, name='pwconv1', dtype=self.dtype)(y)
    y = nn.gelu(y, approximate=False)
    y = _dense(channels, name='pwconv2', dtype=self.dtype)(y)
    gamma = self.param(
      'gamma',
      nn.initializers.constant(self.layer_scale),
      (channels,),
      jnp.float32,
    )
    # The sum is float32, as under torch's automatic mixed precision: bfloat16
    # would drop what is small beside x.
    wide = jnp.promote_types(y.dtype, jnp.float32)
    y = y.astype(wide) * gamma.astype(wide)[None, None, None]
    # One draw for a whole picture; what is left is scaled by 1 / (1 - rate).
    y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(
      y, deterministic=not train
    )
    return x.astype(wide) + y


class ConvNeXt(nn.Module):
  """The trunk of a ConvNeXt, without its ImageNet classifier.

  Attributes:
    depths: blocks in each stage.
    dims: channels of each stage.
    drop_path: rate of stochastic depth of the last block; it rises linearly
      from 0 at the first one. Draws from the random stream 'dropout'.
    dtype: of products and activations; None follows the input. Parameters,
      statistics of norms, the sums of blocks and pooled features stay float32.
    remat: recompute every block in the backward pass instead of storing it.
    layer_scale: initial value of every gamma.
    pool: '' returns the feature map, on which no norm has been applied yet;
      otherwise a kind of `layers.pool`, followed by the layer norm 'norm' as in
      the published classifier.
  """

  depths: Sequence[int]
  dims: Sequence[int]
  drop_path: float = 0.0
  dtype: Any = None
  remat: bool = False
  layer_scale: float = 1e-6
  pool: str = ''

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Applies the trunk.

    Args:
      x: [B, H, W, 3], normalised, at least 32 x 32; rows and columns beyond a
        multiple of a stride are dropped, as in the reference.
      train: stochastic depth.

    Returns:
      The feature map [B, H // 32, W // 32, C], float32, or the pooled
      and normalised features [B, C], float32.

    Raises:
      ValueError: pictures that are too small.
    """
    if min(x.shape[1:3]) < REDUCTION:
      raise ValueError(
        f'ConvNeXt: pictures of {x.shape[1]}x{x.shape[2]} pixels; it needs at '
        f'least {REDUCTION}x{REDUCTION}'
      )
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    rates = np.linspace(0, self.drop_path, sum(self.depths)).tolist()
    for stage, (depth, features) in enumerate(
      zip(self.depths, self.dims, strict=True)
    ):
      x = self._downsample(x, stage, features)
      for i in range(depth):
        x = block(
          drop_path=rates.pop(0),
          layer_scale=self.layer_scale,
          dtype=self.dtype,
          name=f'stages_{stage}_{i}',
        )(x, train)
    if not self.pool:
      return x
    return layers.layer_norm(name='norm')(layers.pool(x, self.pool))

  def _downsample(self, x: jax.Array, stage: int, features: int) -> jax.Array:
    """Patches, then norm for the first stage; norm, then patches after it."""
    name = f'downsample_layers_{stage}'
    if stage == 0:
      x = patches(features, 4, name=f'{name}_0', dtype=self.dtype)(x)
      return layers.layer_norm(name=f'{name}_1', dtype=self.dtype)(x)
    x = layers.layer_norm(name=f'{name}_0', dtype=self.dtype)(x)
    return patches(features, 2, name=f'{name}_1', dtype=self.dtype)(x)


def make(
  variant: str,
  *,
  width: int = 64,
  drop_path: float = 0.0,
  dtype: Any = None,
  remat: bool = False,
  layer_scale: float = 1e-6,
  pool: str = '',
  name: str | None = None,
) -> ConvNeXt:
  """The ConvNeXt of that name.

  Args:
    variant: a key of `VARIANTS`.
    width: 64 for the published network; all channels are multiplied by
      width / 64.
    drop_path, dtype, remat, layer_scale, pool: see `ConvNeXt`.
    name: Flax name of the module.

  Raises:
    ValueError: an unknown variant.
  """
  if variant not in VARIANTS:
    raise ValueError(f'ConvNeXt {variant!r}: expected one of {(*VARIANTS,)}')
  depths, dims = VARIANTS[variant]
  return ConvNeXt(
    depths,
    tuple(max(1, channels * width // 64) for channels in dims),
    drop_path=drop_path,
    dtype=dtype,
    remat=remat,
    layer_scale=layer_scale,
    pool=pool,
    name=name,
  )


def check_drop_path(rate: float, *, backbone: str) -> None:
  """Raises ValueError where a backbone has no stochastic depth of this rate."""
  if not 0 <= rate < 1:
    raise ValueError(f'drop_path: got {rate}, expected 0 <= p < 1')
  if rate and backbone not in VARIANTS:
    raise ValueError(f'drop_path: {backbone!r} has no stochastic depth; use 0')


def _dense(features: int, *, name: str, dtype: Any) -> nn.Dense:
  return nn.Dense(features, kernel_init=_init, dtype=dtype, name=name)


def patches(
  features: int, size: int, *, name: str, dtype: Any = None
) -> nn.Conv:
  """Convolution of patches that do not overlap."""
  return nn.Conv(
    features,
    (size, size),
    strides=(size, size),
    padding='VALID',
    kernel_init=_init,
    dtype=dtype,
    name=name,
  )


# Whole names of timm and torchvision -> Facebook's. A torchvision stage is
# 'features.<2 stage + 1>', what leads to it 'features.<2 stage>'.
_TIMM = (
  (r'stem\.(\d)\.(.*)', r'downsample_layers.0.\1.\2'),
  (r'stages\.(\d)\.downsample\.(\d)\.(.*)', r'downsample_layers.\1.\2.\3'),
  (r'stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(.*)', r'stages.\1.\2.dwconv.\3'),
  (
    r'stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.(.*)',
    r'stages.\1.\2.pwconv\3.\4',
  ),
  (r'stages\.(\d)\.blocks\.(\d+)\.(.*)', r'stages.\1.\2.\3'),
  (r'head\.norm\.(.*)', r'norm.\1'),
  (r'head\.fc\.(.*)', r'head.\1'),
)
_TORCHVISION_BLOCK = {
  'block.0': 'dwconv',
  'block.2': 'norm',
  'block.3': 'pwconv1',
  'block.5': 'pwconv2',
}


def to_facebook(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives the entries of timm's or torchvision's ConvNeXt Facebook's names.

  Args:
    source: torch state dict of one ConvNeXt (no prefix before the names), in
      any of the three namings.

  Returns:
    The same arrays; torchvision's layer scale [C, 1, 1] becomes [C]. Entries
    that are in none of the namings keep their name, so that `torch_weights`
    reports them.
  """
  if 'features.0.0.weight' in source and 'features.1.0.layer_scale' in source:
    return _from_torchvision(source)
  result = {}
  for name, value in source.items():
    for pattern, replacement in _TIMM:
      if match := re.fullmatch(pattern, name):
        name = match.expand(replacement)
        break
    result[name] = value
  return result


def _from_torchvision(
  source: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  result = {}
  for name, value in source.items():
    if match := re.fullmatch(r'features\.([0246])\.(\d)\.(.*)', name):
      stage = int(match[1]) // 2
      name = f'downsample_layers.{stage}.{match[2]}.{match[3]}'
    elif match := re.fullmatch(r'features\.([1357])\.(\d+)\.(.*)', name):
      prefix = f'stages.{int(match[1]) // 2}.{match[2]}'
      if match[3] == 'layer_scale':
        name, value = f'{prefix}.gamma', np.asarray(value).reshape(-1)
      else:
        module, _, kind = match[3].rpartition('.')
        name = f'{prefix}.{_TORCHVISION_BLOCK.get(module, module)}.{kind}'
    elif match := re.fullmatch(r'classifier\.([02])\.(.*)', name):
      name = f'{"norm" if match[1] == "0" else "head"}.{match[2]}'
    result[name] = value
  return result
