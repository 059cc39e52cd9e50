"""Distilled vision transformer (DeiT) that can look at some patches only.

[class, distillation, patches] + positions -> blocks -> layer norm; the output is
the mean of one dense layer for each special token. Patches go row by row.
`DistilledViT.attention` and `kept_patches` serve TransGeo's second stage: where
the special tokens of a trained network look, and which patches of a larger
picture are worth a token.

Modules are named as in timm ('blocks.0.attn.qkv' is 'blocks_0/attn/qkv').

Source: Jeff-Zilence/TransGeo2022 `model/Deit.py`, `model/TransGeo.py`;
facebookresearch/deit; timm 0.4.12 `vision_transformer.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.models import layers

SPECIAL_TOKENS = 2  # Class and distillation, in this order.
LEVELS = 255  # The reference stores attention maps as 8-bit pictures.
HEADS = ('head', 'head_dist')

# The reference truncates at 100 deviations, which cuts nothing.
_init = nn.initializers.normal(0.02)
# torch's default for convolutions, which timm leaves as it is.
_patch_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Attention(nn.Module):
  """Self-attention of all tokens.

  Attributes:
    dim: D of the tokens.
    heads: number of heads; divides D.
    dtype: of products; None follows the input. The softmax is float32.
  """

  dim: int
  heads: int
  dtype: Any = None

  def setup(self):
    self.qkv = _dense(3 * self.dim, self.dtype)
    self.proj = _dense(self.dim, self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    y = jax.nn.dot_product_attention(*self._split(x))  # [B, N, heads, d]
    return self.proj(einops.rearrange(y, 'b n h d -> b n (h d)'))

  def weights(self, x: jax.Array, *, queries: int) -> jax.Array:
    """How much the first tokens attend to all: [B, N, D] -> [B, heads, Q, N]."""
    q, k, _ = self._split(x)
    q, k = (y.astype(jnp.promote_types(y.dtype, jnp.float32)) for y in (q, k))
    logits = jnp.einsum('bqhd,bnhd->bhqn', q[:, :queries], k)
    return nn.softmax(logits * (self.dim // self.heads) ** -0.5, axis=-1)

  def _split(self, x: jax.Array) -> jax.Array:
    """Queries, keys and values, [3, B, N, heads, d]."""
    return einops.rearrange(
      self.qkv(x), 'b n (s h d) -> s b n h d', s=3, h=self.heads
    )


class MLP(nn.Module):
  """D -> 4 D -> D with the exact GELU."""

  dim: int
  dtype: Any = None

  def setup(self):
    self.fc1 = _dense(4 * self.dim, self.dtype)
    self.fc2 = _dense(self.dim, self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    return self.fc2(nn.gelu(self.fc1(x), approximate=False))


class Block(nn.Module):
  """x + Attention(norm(x)), then x + MLP(norm(x))."""

  dim: int
  heads: int
  dtype: Any = None

  def setup(self):
    self.norm1 = layers.layer_norm(dtype=self.dtype)
    self.attn = Attention(self.dim, self.heads, dtype=self.dtype)
    self.norm2 = layers.layer_norm(dtype=self.dtype)
    self.mlp = MLP(self.dim, dtype=self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, D]."""
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))

  def attention(self, x: jax.Array) -> jax.Array:
    """`Attention.weights` of the special tokens, [B, heads, 2, N]."""
    return self.attn.weights(self.norm1(x), queries=SPECIAL_TOKENS)


class PatchEmbed(nn.Module):
  """One token for each patch; a last part of a patch is dropped."""

  dim: int
  patch: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, H // patch, W // patch, D]."""
    return nn.Conv(
      self.dim,
      (self.patch, self.patch),
      strides=(self.patch, self.patch),
      padding='VALID',
      kernel_init=_patch_init,
      dtype=self.dtype,
      name='proj',
    )(x)


class DistilledViT(nn.Module):
  """DeiT with both classifiers as the projection of the embedding.

  The parameter 'pos_embed' [1, 2 + P, D] is for one size of pictures, that of
  `init`; `resize_positions` moves it to another.

  Attributes:
    dim: D of the tokens (384 is DeiT-S).
    depth: number of blocks.
    heads: of the attention; divides `dim`.
    out_dim: of the embedding (1000, as ImageNet's classes, in TransGeo).
    patch: side of a patch in pixels.
    dtype: of products and activations; None follows the input.
    remat: recompute every block in the backward pass instead of storing it.
  """

  dim: int = 384
  depth: int = 12
  heads: int = 6
  out_dim: int = 1000
  patch: int = 16
  dtype: Any = None
  remat: bool = False

  def setup(self):
    if self.dim % self.heads:
      raise ValueError(
        f'ViT: dim {self.dim} is not divisible by heads {self.heads}'
      )
    block = nn.remat(Block) if self.remat else Block
    self.blocks = [
      block(self.dim, self.heads, dtype=self.dtype) for _ in range(self.depth)
    ]
    self.norm = layers.layer_norm(dtype=self.dtype)
    self.head = _dense(self.out_dim, self.dtype)
    self.head_dist = _dense(self.out_dim, self.dtype)

  def __call__(
    self, x: jax.Array, *, keep: jax.Array | None = None
  ) -> jax.Array:
    """Embeds pictures; the same in training and evaluation.

    Args:
      x: [B, H, W, 3], normalised.
      keep: [B, K] int32, the patches that become tokens (row by row, from 0);
        None takes all. Their order does not matter.

    Returns:
      [B, out_dim], float32, not normalised.
    """
    tokens, _ = self._tokens(x, keep)
    for block in self.blocks:
      tokens = block(tokens)
    tokens = self.norm(tokens[:, :SPECIAL_TOKENS])
    y = jnp.stack([self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])])
    return y.astype(jnp.promote_types(y.dtype, jnp.float32)).mean(0)

  def attention(self, x: jax.Array, *, as_stored: bool = True) -> jax.Array:
    """Where the special tokens look, in the last block.

    a = the sum over heads and special tokens of the attention to each patch;
    the result is a / max(a), without gradient.

    Args:
      x: [B, H, W, 3], normalised.
      as_stored: round down to multiples of 1 / 255, because the reference keeps
        the maps as 8-bit pictures. Patches may tie by that.

    Returns:
      [B, H // patch, W // patch], float32, 0..1.
    """
    tokens, (height, width) = self._tokens(x, None)
    for block in self.blocks[:-1]:
      tokens = block(tokens)
    weights = self.blocks[-1].attention(tokens)[..., SPECIAL_TOKENS:]
    total = einops.reduce(
      weights, 'b heads s (h w) -> b h w', 'sum', h=height, w=width
    )
    largest = total.max((1, 2), keepdims=True)
    # XLA divides by way of the reciprocal; largest / largest must be 1.
    total = jnp.where(total == largest, 1, total / largest)
    if as_stored:
      total = jnp.floor(LEVELS * total) / LEVELS
    return jax.lax.stop_gradient(total)

  @nn.compact
  def _tokens(
    self, x: jax.Array, keep: jax.Array | None
  ) -> tuple[jax.Array, tuple[int, int]]:
    """Tokens with positions, [B, 2 + P or K, D], and the grid of patches."""
    if min(x.shape[1:3]) < self.patch:
      raise ValueError(
        f'ViT: pictures of {x.shape[1]}x{x.shape[2]} pixels; it needs at least '
        f'one patch of {self.patch}x{self.patch}'
      )
    patches = PatchEmbed(
      self.dim, self.patch, dtype=self.dtype, name='patch_embed'
    )(x)
    batch, height, width, _ = patches.shape
    patches = einops.rearrange(patches, 'b h w d -> b (h w) d')
    # Tokens, to which every block adds, are float32 in mixed precision too.
    patches = patches.astype(jnp.promote_types(patches.dtype, jnp.float32))
    number = SPECIAL_TOKENS + height * width
    if self.has_variable('params', 'pos_embed'):
      known = self.get_variable('params', 'pos_embed').shape[1]
      if known != number:
        raise ValueError(
          f'ViT {"/".join(self.path)}: pictures of {x.shape[1]}x{x.shape[2]} '
          f'pixels have {height}x{width} patches, but pos_embed has positions '
          f'for {known - SPECIAL_TOKENS}; use pictures of the size that it was '
          'made for, or vit.resize_positions'
        )
    shape = (1, number, self.dim)
    positions = self.param('pos_embed', _init, shape, jnp.float32)
    special = [
      self.param(name, _init, (1, 1, self.dim), jnp.float32)
      for name in ('cls_token', 'dist_token')
    ]
    special = jnp.concatenate(special, 1) + positions[:, :SPECIAL_TOKENS]
    special = special.astype(patches.dtype)
    positions = positions[:, SPECIAL_TOKENS:].astype(patches.dtype)
    positions = jnp.broadcast_to(positions, (batch, *positions.shape[1:]))
    if keep is not None:
      patches, positions = (
        jnp.take_along_axis(y, keep[:, :, None], axis=1)
        for y in (patches, positions)
      )
    special = jnp.broadcast_to(special, (batch, *special.shape[1:]))
    tokens = jnp.concatenate([special, patches + positions], 1)
    return tokens, (height, width)


def kept_patches(
  attention: jax.Array, grid: tuple[int, int], *, share: float = 0.64
) -> jax.Array:
  """The patches of a larger picture where an attention map is largest.

  Args:
    attention: [B, h, w], of `DistilledViT.attention`.
    grid: (H, W), patches of the larger picture.
    share: of its patches that are kept; int(share * H * W), rounded down.

  Returns:
    [B, K] int32, ascending, for `DistilledViT.__call__`.

  Raises:
    ValueError: a share that keeps no patch or more than there are.

  Source: Jeff-Zilence/TransGeo2022 `model/Deit.py` (bilinear resize without
  anti-aliasing). Differs: equal values, frequent with 8 bits, go to the first
  patch instead of any.
  """
  height, width = grid
  count = int(share * height * width)
  if not 1 <= count <= height * width:
    raise ValueError(
      f'share {share} of {height}x{width} patches keeps {count}; expected 0 < '
      'share <= 1 and at least one patch'
    )
  resized = resize_attention(attention, grid)
  flat = einops.rearrange(resized, 'b h w -> b (h w)')
  _, kept = jax.lax.top_k(flat, count)
  return jnp.sort(kept, axis=-1).astype(jnp.int32)


def resize_attention(attention: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Bilinear with half-pixel centres: [B, h, w] -> [B, H, W]."""
  shape = (attention.shape[0], *grid)
  return jax.image.resize(attention, shape, 'linear', antialias=False)


def resize_positions(
  positions: jax.Array,
  grid: tuple[int, int],
  *,
  from_grid: tuple[int, int] | None = None,
  antialias: bool = False,
) -> jax.Array:
  """Moves position embeddings to another grid of patches, bilinearly.

  Args:
    positions: [1, 2 + h * w, D]; the first two are the special tokens' and stay.
    grid: (H, W) of the result.
    from_grid: (h, w); None for a square.
    antialias: as newer versions of torchvision do by default; the published
      networks were made without.

  Returns:
    [1, 2 + H * W, D].

  Raises:
    ValueError: a number of positions that is not h * w.
  """
  count = positions.shape[1] - SPECIAL_TOKENS
  if from_grid is None:
    from_grid = (math.isqrt(max(count, 0)),) * 2
  if count < 1 or from_grid[0] * from_grid[1] != count:
    raise ValueError(
      f'pos_embed of shape {tuple(positions.shape)} has {count} patches, which '
      f'is no grid of {from_grid[0]}x{from_grid[1]}; give its from_grid'
    )
  if tuple(from_grid) == tuple(grid):
    return positions
  special, patches = jnp.split(jnp.asarray(positions), [SPECIAL_TOKENS], axis=1)
  patches = einops.rearrange(
    patches, 'one (h w) d -> one h w d', h=from_grid[0]
  )
  shape = (1, *grid, patches.shape[-1])
  patches = jax.image.resize(patches, shape, 'linear', antialias=antialias)
  patches = einops.rearrange(patches, 'one h w d -> one (h w) d')
  return jnp.concatenate([special, patches], axis=1)


def fit_imagenet(
  source: Mapping[str, np.ndarray],
  *,
  grid: tuple[int, int],
  out_dim: int,
  where: str,
) -> dict[str, np.ndarray]:
  """Fits an ImageNet checkpoint of a distilled DeiT to another network.

  Args:
    source: torch state dict ('pos_embed', 'head.weight', 'head_dist.weight').
    grid: of the network's patches; positions are resized to it.
    out_dim: of the network; other than the checkpoint's number of classes, the
      rows of both classifiers are repeated and cut.
    where: the file, for messages.

  Returns:
    The entries, for `torch_weights.convert`.

  Raises:
    ValueError: a checkpoint without positions or without the distillation
      token's classifier.

  Source: Jeff-Zilence/TransGeo2022 `model/TransGeo.py`. Differs: there
  'head_dist' becomes a copy of 'head' when out_dim is not 1000.
  """
  needed = ['pos_embed', 'dist_token']
  needed += [f'{head}.{kind}' for head in HEADS for kind in ('weight', 'bias')]
  missing = [name for name in needed if name not in source]
  if missing:
    raise ValueError(
      f'{where}: no checkpoint of a distilled DeiT, it lacks {missing}; expected '
      "the names of facebookresearch/deit 'deit_small_distilled_patch16_224'"
    )
  result = dict(source)
  try:
    result['pos_embed'] = np.asarray(
      resize_positions(source['pos_embed'], grid)
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  for head in HEADS:
    for name in (f'{head}.weight', f'{head}.bias'):
      rows = np.arange(out_dim) % len(source[name])
      result[name] = np.asarray(source[name])[rows]
  return result


def _dense(features: int, dtype: Any) -> nn.Dense:
  return nn.Dense(features, kernel_init=_init, dtype=dtype)
