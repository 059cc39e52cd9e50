"""Feature recombination: four vectors of a map, ordered by compass direction.

A north-aligned panorama shows south at its left and right edges and north in
the middle; a satellite picture has north at the top. The four quarters of the
panorama's columns and the four quadrants of the satellite picture are matched:

  part  panorama columns  directions       satellite picture
  1     first quarter     south -> west    bottom left
  2     second quarter    west -> north    top left
  3     third quarter     north -> east    top right
  4     last quarter      east -> south    bottom right

Source: zqwlearning/FRGeo-Code, model/convnext.py (`forward_features`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.models import backbones, convnext, layers, torch_weights

BACKBONES = backbones.NAMES
POOLS = ('frm', 'avg')
CUTS = ('panorama', 'satellite')
PARTS = 4


def slices(
  cut: str, size_hw: tuple[int, int]
) -> tuple[tuple[slice, slice], ...]:
  """(rows, columns) of the four parts of a map, in the order of the module.

  Args:
    cut: one of `CUTS`.
    size_hw: (H, W) of the map. Where it does not divide, the last quarter of a
      panorama and the bottom and right of a satellite map get the rest.

  Raises:
    ValueError: an unknown cut, or a map so small that a part would be empty.
  """
  if cut not in CUTS:
    raise ValueError(f'cut {cut!r}: expected one of {CUTS}')
  height, width = size_hw
  least = (1, PARTS) if cut == 'panorama' else (2, 2)
  if height < least[0] or width < least[1]:
    raise ValueError(
      f'feature recombination: a map of {height}x{width} positions has empty '
      f'parts, the {cut} cut needs {least[0]}x{least[1]} at least (a ConvNeXt '
      'map has 1/32 of the rows and columns of its picture); use larger '
      'pictures (config.data.view_sizes), a wider config.data.fov_deg, or '
      "config.method.pool='avg'"
    )
  if cut == 'panorama':
    quarter = width // PARTS
    ends = (quarter, 2 * quarter, 3 * quarter, width)
    return tuple(
      (slice(None), slice(i * quarter, end)) for i, end in enumerate(ends)
    )
  top, bottom = slice(None, height // 2), slice(height // 2, None)
  left, right = slice(None, width // 2), slice(width // 2, None)
  return (bottom, left), (top, left), (top, right), (bottom, right)


def recombine(x: jax.Array, *, cut: str) -> jax.Array:
  """The mean of each part of a map.

  Args:
    x: [B, H, W, C].
    cut: one of `CUTS`.

  Returns:
    [B, 4, C], float32 or wider.

  Raises:
    ValueError: see `slices`.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  parts = slices(cut, x.shape[1:3])
  return jnp.stack(
    [x[:, rows, columns].mean((1, 2)) for rows, columns in parts], axis=1
  )


class Net(nn.Module):
  """A backbone, pooled in four parts or one, each layer-normalised.

  The variables of the backbone stand beside 'norm', without a level of their
  own, as in the published networks.

  Attributes:
    backbone: one of `BACKBONES`.
    width: 64 for the published backbone; see `convnext.make`, `backbones.make`.
    pool: 'frm' for the four parts of `recombine`, 'avg' for the whole map.
    drop_path, layer_scale: of a ConvNeXt.
    dtype: of products and activations of the backbone; None follows the input.
    remat: recompute the blocks' activations in the backward pass.
  """

  backbone: str = 'convnext_tiny'
  width: int = 64
  pool: str = 'frm'
  drop_path: float = 0.0
  layer_scale: float = 1e-6
  dtype: Any = None
  remat: bool = False

  def setup(self):
    if self.backbone in convnext.VARIANTS:
      trunk = convnext.make(
        self.backbone,
        width=self.width,
        drop_path=self.drop_path,
        layer_scale=self.layer_scale,
        dtype=self.dtype,
        remat=self.remat,
      )
    else:
      trunk = backbones.make(
        self.backbone, width=self.width, dtype=self.dtype, remat=self.remat
      )
    self.trunk = trunk
    nn.share_scope(self, self.trunk)
    self.norm = layers.layer_norm()

  def __call__(
    self, x: jax.Array, *, train: bool, cut: str = 'panorama'
  ) -> jax.Array:
    """Embeds pictures.

    Args:
      x: [B, H, W, 3], normalised.
      train: stochastic depth, batch statistics.
      cut: one of `CUTS`, or 'shape': by the map, 'satellite' where it is
        square and 'panorama' elsewhere; only 'frm' looks at it.

    Returns:
      [B, 4 C] ('frm') or [B, C], float32, not of unit norm.
    """
    features = self.map(x, train=train)  # [B, h, w, C]
    if self.pool == 'avg':
      return self.norm(layers.pool(features, 'avg'))
    cut = _by_shape(features.shape[1:3]) if cut == 'shape' else cut
    parts = self.norm(recombine(features, cut=cut))  # [B, 4, C]
    return einops.rearrange(parts, 'b p c -> b (p c)')

  def map(self, x: jax.Array, *, train: bool) -> jax.Array:
    """The feature map [B, h, w, C] of normalised pictures [B, H, W, 3]."""
    return self.trunk(x, train=train)


class Settings(Protocol):
  """Fields of a method that describe its network."""

  backbone: str
  backbone_width: int
  pool: str
  drop_path: float
  layer_scale: float
  dtype: str  # 'float32' or 'bfloat16'
  remat: bool


def net_of(settings: Settings) -> Net:
  """The network that a method's fields describe."""
  return Net(
    backbone=settings.backbone,
    width=settings.backbone_width,
    pool=settings.pool,
    drop_path=settings.drop_path,
    layer_scale=settings.layer_scale,
    dtype=jnp.bfloat16 if settings.dtype == 'bfloat16' else None,
    remat=settings.remat,
  )


def layout(net: Net, cut: str, picture_hw: tuple[int, int]) -> np.ndarray:
  """The part that every position of a picture's map goes into, for figures.

  Args:
    net: with pool 'frm'.
    cut: as for `Net`.
    picture_hw: (height, width) of the picture.

  Returns:
    int32 [h, w], 1 ... 4 as in the table of the module.

  Raises:
    ValueError: see `slices`.
  """
  features, _ = jax.eval_shape(
    functools.partial(net.init_with_output, train=False, method='map'),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *picture_hw, 3), jnp.float32),
  )
  size_hw = features.shape[1:3]
  cut = _by_shape(size_hw) if cut == 'shape' else cut
  parts = np.zeros(size_hw, np.int32)
  for number, (rows, columns) in enumerate(slices(cut, size_hw), 1):
    parts[rows, columns] = number
  return parts


def _by_shape(size_hw: tuple[int, int]) -> str:
  return 'satellite' if size_hw[0] == size_hw[1] else 'panorama'


def from_imagenet(
  variables: Mapping[str, Any],
  path: Sequence[str],
  source: Mapping[str, np.ndarray],
  *,
  where: str,
) -> dict[str, Any]:
  """Fills the variables of one `Net` from a classifier's checkpoint.

  Args:
    variables: {'params': tree, ...}.
    path: names of the modules that lead to the `Net`.
    source: a ConvNeXt in any of its namings (its norm is taken too), or another
      backbone in torchvision's (the norm stays as it is).
    where: the file, for messages.

  Raises:
    ValueError: see `torch_weights.convert`.
  """
  source = convnext.to_facebook(source)
  is_convnext = 'downsample_layers.0.0.weight' in source
  return torch_weights.convert_part(
    variables,
    path,
    source,
    where=where,
    allowed_extra=backbones.IMAGENET_HEADS,
    allowed_missing=() if is_convnext else (r'norm/.*',),
  )
