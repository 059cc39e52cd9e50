"""Two trunks and one head that describes a picture, and regions of it.

Sub-modules carry the reference's names ('model_1', 'model_2', 'classifier'), so
that `view_weights` reads its checkpoints.

Source: ZelongZeng/PLCD `model_rmac.py` (`two_view_net_rmac`,
`two_view_net_drone2sate`).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cvgl_jax.models import backbones, layers

LEVELS = (2, 3, 4)  # regions a side
REGIONS = sum(level**2 for level in LEVELS)


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
  """The 29 regions of a map: rows y0:y1, columns x0:x1, coarse levels first.

  At level l a side of s cells has l overlapping windows of floor(2 s / (l + 1))
  cells, from floor(i (s - window) / (l - 1)); on the published 12 x 12 map that
  is 8, 6 and 4 cells.

  Returns:
    (y0, y1, x0, x1) row by row inside each level.

  Raises:
    ValueError: the map is too small for regions.
  """
  if min(height, width) < max(LEVELS):
    raise ValueError(
      f'regions need a map of at least {max(LEVELS)} x {max(LEVELS)} cells, the '
      f'trunk gives {height} x {width}; use larger pictures'
    )

  def along(side, level):
    size = 2 * side // (level + 1)
    starts = [i * (side - size) // (level - 1) for i in range(level)]
    return [(start, start + size) for start in starts]

  return [
    (*rows, *columns)
    for level in LEVELS
    for rows in along(height, level)
    for columns in along(width, level)
  ]


class PeerNetwork(nn.Module):
  """One trunk a branch, one head for both.

  Attributes:
    trunks: trunk of the anchors, trunk of the peers; may be the same.
    trunk: arguments of every `backbones.Trunk`; its `pool` is done here.
    pool: 'max' or 'avg', of whole maps; regions are always max-pooled.
    num_classes, dim, droprate, dtype: of the head.
  """

  trunks: tuple[str, str]
  trunk: Mapping[str, Any]
  pool: str
  num_classes: int
  dim: int
  droprate: float
  dtype: Any

  def setup(self):
    for name in dict.fromkeys(self.trunks):
      trunk = backbones.Trunk(**self.trunk, pool='', dtype=self.dtype)
      setattr(self, name, trunk)
    self.classifier = layers.ClassBlock(
      self.num_classes, dim=self.dim, droprate=self.droprate, dtype=self.dtype
    )

  def both(
    self,
    anchors: jax.Array,
    peers: jax.Array,
    *,
    parts: int,
    recorded_parts: int = 0,
    train: bool,
  ) -> tuple[jax.Array, jax.Array]:
    """Anchors [B, H, W, 3] and peers [M, H, W, 3], in the reference's order.

    Args:
      anchors: normalised.
      peers: normalised.
      parts: see `describe`, of the peers.
      recorded_parts: see `describe`, of the peers.
      train: batch statistics and dropout.

    Returns:
      h [B, D] and [M, parts + 1, D], after dropout; of the peers the whole
      picture is the last.
    """
    first = self.feature_map(anchors, self.trunks[0], train=train)
    of_anchors = self.describe(first, train=train)
    second = self.feature_map(peers, self.trunks[1], train=train)
    of_peers = self.describe(
      second, parts=parts, recorded_parts=recorded_parts, train=train
    )
    return of_anchors[:, -1], of_peers

  def all_features(
    self, x: jax.Array, trunk: str, *, parts: int = 0
  ) -> jax.Array:
    """Evaluation: pictures [B, H, W, 3] -> h [B, parts + 1, D], see `describe`."""
    feature_map = self.feature_map(x, trunk, train=False)
    return self.describe(feature_map, parts=parts, train=False)

  def feature_map(self, x: jax.Array, trunk: str, *, train: bool) -> jax.Array:
    """[B, H, W, 3] -> [B, h, w, C]."""
    return getattr(self, trunk)(x, train=train)

  def map_hw(self, picture_hw: tuple[int, int], trunk: str) -> tuple[int, int]:
    """(h, w) of the map of a picture (H, W); nothing is computed."""
    found, _ = jax.eval_shape(
      lambda: self.init_with_output(
        jax.random.key(0),
        jnp.zeros((1, *picture_hw, 3)),
        trunk,
        train=False,
        method='feature_map',
      )
    )
    return found.shape[1:3]

  def describe(
    self,
    feature_map: jax.Array,
    *,
    parts: int = 0,
    recorded_parts: int = 0,
    train: bool,
  ) -> jax.Array:
    """h [B, parts + 1, D] of the first regions of a map and, last, of all of it.

    Every region of the batch has batch statistics of its own, and the running
    ones are updated region by region, in this order. The head's product is one
    for all regions.

    Args:
      feature_map: [B, h, w, C].
      parts: how many of the 29 regions.
      recorded_parts: in training, so many regions update the running
        statistics; those beyond `parts` do nothing else, and no gradient goes
        through them.
      train: batch statistics and dropout.
    """
    x = feature_map
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = max(parts, recorded_parts if train else 0)
    silent = jax.lax.stop_gradient(x)
    vectors = [
      (x if i < parts else silent)[:, y0:y1, x0:x1].max(axis=(1, 2))
      for i, (y0, y1, x0, x1) in enumerate(
        windows(*x.shape[1:3])[:count] if count else ()
      )
    ]
    vectors.append(layers.pool(x, self.pool))
    unit = layers.unit(jnp.stack(vectors, axis=1))  # [B, P, C]
    record = [i < recorded_parts for i in range(count)]
    h = self.classifier.features_in_turn(
      unit, train=train, record=(*record, True)
    )
    return jnp.concatenate([h[:, :parts], h[:, count:]], axis=1)

  def classify(self, h: jax.Array) -> jax.Array:
    """h [..., D] -> logits [..., K]."""
    return self.classifier.classify(h)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Both branches on the same pictures; makes all variables."""
    h, _ = self.both(x, x, parts=0, train=False)
    return self.classify(h)
