"""FRGeo: feature recombination by compass direction, weighted tuple loss.

Paper: Zhang, Zhu, "Aligning Geometric Spatial Layout in Cross-View
Geo-Localization via Feature Recombination", AAAI 2024.
Source: zqwlearning/FRGeo-Code (`model/FRGeo.py`, `model/convnext.py`,
`criterion/wbloss.py`, `train.py`).

Idea: a street panorama (query) and a satellite picture (reference) show the
same place in another geometry. Two ConvNeXts, one a view, give feature maps;
each is averaged in the four parts that lie between the compass directions
(`models/recombination`), and the four vectors, layer-normalised and joined, are
the embedding. With s_ij the cosine of query i and reference j,

  L = 1/2 mean_i log(1 + sum_{j != i} exp(alpha (s_ij - s_ii)))  + the same of s^T

Inputs: {'panorama', 'satellite'}: {'image': [B, H, W, 3] in 0..255}, row i of
both from one place, panoramas with north in the middle column, satellite
pictures with north up. Embedding: [B, 4 C], unit norm (3072 with ConvNeXt-T).

The published training is ASAM over AdamW on hard batches: configs/frgeo_*.py.

Differs from the reference:
  - which cut a map gets is decided by its view. The reference looks at the
    shape of the map, and cuts a square panorama (limited field of view) as a
    satellite picture: `frm_branch='shape'`;
  - a panorama map of fewer than four columns is an error, not NaN;
  - `pool='avg'`, other backbones, stochastic depth, the other loss, bfloat16
    and recomputation are ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from cvgl_jax.losses import cross_view
from cvgl_jax.methods import contract
from cvgl_jax.models import (
  convnext,
  layers,
  named_networks,
  recombination,
  torch_weights,
)

# View -> its network, in the names of the published checkpoints.
NETWORKS = {'panorama': 'query_net', 'satellite': 'reference_net'}
BRANCHES = ('view', 'shape')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(contract.FromFeatures):
  """FRGeo; defaults are those of the published runs.

  Attributes:
    views: 'panorama' and 'satellite'.
    backbone: a name of `recombination.BACKBONES`.
    backbone_width: 64 as published; others scale all channels.
    pool: 'frm', or 'avg' for one average of the whole map.
    frm_branch: 'view', or 'shape' for the published rule (see above). With a
      polar transform of satellite pictures both maps are panoramas: 'shape',
      and no square pictures (`check_pictures`).
    criterion: 'weighted_tuple', or 'soft_triplet' (TransGeo's).
    alpha: weight of the differences of cosines.
    loss_groups: the batch is split into so many parts and only pairs of one
      part meet in the loss. Published: 2, one a GPU.
    drop_path: stochastic depth, the rate of the last block.
    layer_scale: initial gamma of a ConvNeXt with random weights.
    dtype: 'float32' or 'bfloat16' for products and activations in training;
      parameters, pooled features and losses are float32 in both.
    remat: recompute the blocks' activations in the backward pass.
  """

  views: tuple[str, ...] = ('panorama', 'satellite')
  backbone: str = 'convnext_tiny'
  backbone_width: int = 64
  pool: str = 'frm'
  frm_branch: str = 'view'
  criterion: str = 'weighted_tuple'
  alpha: float = 10.0
  loss_groups: int = 2
  drop_path: float = 0.0
  layer_scale: float = 1e-6
  dtype: str = 'float32'
  remat: bool = False

  # Row i of every view must show the same place.
  needs_pairs: ClassVar[bool] = True

  def __post_init__(self):
    contract.check_choices(
      self,
      backbone=recombination.BACKBONES,
      pool=recombination.POOLS,
      frm_branch=BRANCHES,
      criterion=tuple(cross_view.LOSSES),
      dtype=DTYPES,
    )
    if sorted(self.views) != sorted(NETWORKS):
      raise ValueError(f'views: got {self.views}, expected {tuple(NETWORKS)}')
    if self.loss_groups < 1 or self.backbone_width < 1 or not self.alpha > 0:
      raise ValueError(
        f'loss_groups {self.loss_groups} and backbone_width '
        f'{self.backbone_width} must be at least 1, alpha {self.alpha} above 0'
      )
    convnext.check_drop_path(self.drop_path, backbone=self.backbone)

  @property
  def network(self) -> recombination.Net:
    """The network of either view; each has weights of its own."""
    return recombination.net_of(self)

  def init(self, rng: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Random variables {'params': {'query_net': ..., 'reference_net': ...}}.

    Raises:
      ValueError: a view is absent, or its pictures are too small.
    """
    return named_networks.init(
      dict.fromkeys(NETWORKS.values(), self.network),
      rng,
      {
        name: contract.pictures(batch, view)[:1]
        for view, name in NETWORKS.items()
      },
      options={
        name: {'train': False, 'cut': self._cut(view)}
        for view, name in NETWORKS.items()
      },
    )

  def features(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
  ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Both views in training mode: ({view: [B, D] float32}, mutable)."""
    features = {}
    for i, (view, name) in enumerate(NETWORKS.items()):
      features[view], mutable = named_networks.train(
        self.network,
        name,
        params,
        mutable,
        contract.pictures(batch, view),
        rng=jax.random.fold_in(rng, i),
        cut=self._cut(view),
      )
    return features, mutable

  def loss_from_features(
    self,
    params: Any,
    features: Mapping[str, jax.Array],
    batch: Mapping[str, Any],
    step: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, `cross_view.similarity_metrics`) of features."""
    del params, batch, step
    query, reference = features['panorama'], features['satellite']
    loss = cross_view.LOSSES[self.criterion](
      query, reference, alpha=self.alpha, groups=self.loss_groups
    )
    return loss, cross_view.similarity_metrics(
      query, reference, groups=self.loss_groups
    )

  def embed_raw(
    self, variables: Mapping[str, Any], images: jax.Array, view: str
  ) -> jax.Array:
    """[B, D] float32, not normalised; in float32 whatever `dtype` is.

    Args:
      variables: of `init`.
      images: [B, H, W, 3], uint8 or floating point in 0..255.
      view: 'panorama' or 'satellite'; another one is a ValueError.
    """
    network = dataclasses.replace(self, dtype='float32').network
    return named_networks.evaluate(
      network,
      contract.choose(NETWORKS, view),
      variables,
      layers.normalize_image(images),
      cut=self._cut(view),
    )

  def check_pictures(
    self, sizes: Mapping[str, tuple[int, int]], *, polar: bool
  ) -> None:
    """With a polar transform every map must be cut as a panorama.

    Args:
      sizes: view -> (height, width) of the pictures that the network sees.
      polar: satellite pictures are laid out as panoramas.

    Raises:
      ValueError: a map would be cut in quadrants, so that parts of different
        directions would meet.
    """
    if not polar or self.pool != 'frm':
      return
    for view, (height, width) in sizes.items():
      parts = self.layout(view, (height, width))
      if (parts == parts[:1]).all():  # columns, from top to bottom
        continue
      if self.frm_branch == 'view':
        advice = "use config.method.frm_branch='shape'"
      else:
        advice = (
          'its map is square; use a wider config.data.polar_size, '
          'config.data.view_sizes or config.data.fov_deg'
        )
      raise ValueError(
        'config.data.polar_size lays satellite pictures out as panoramas, but '
        f'config.method.frm_branch={self.frm_branch!r} cuts the {view} pictures '
        f'({height}x{width}) in quadrants, which are other directions: {advice}, '
        "or config.method.pool='avg'"
      )

  def layout(self, view: str, picture_hw: tuple[int, int]) -> np.ndarray | None:
    """The part, 1 ... 4, of every cell of a picture, int32 [h, w]; for figures.

    Args:
      view: 'panorama' or 'satellite'.
      picture_hw: (height, width) of its pictures.

    Returns:
      See `recombination.layout`; None with `pool='avg'`, which has no parts.
    """
    if self.pool != 'frm':
      return None
    return recombination.layout(self.network, self._cut(view), picture_hw)

  def label(self, path: str) -> str:
    """The network that a parameter belongs to."""
    return path.split('/')[0]

  def variables_from_torch(
    self, variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
  ) -> dict[str, Any]:
    """Takes a released checkpoint, or the backbone's ImageNet weights for both.

    Args:
      variables: of `init`.
      source: torch state dict as arrays: 'query_net.norm.weight', ... of the
        release; or a ConvNeXt in the names of Facebook, timm or torchvision; or
        another backbone in torchvision's names.
      where: the file, for messages.

    Raises:
      ValueError: it does not fit; the message lists what is missing or extra.
    """
    if any(name.startswith('query_net.') for name in source):
      return torch_weights.convert(variables, source, where=where)
    for name in NETWORKS.values():
      variables = recombination.from_imagenet(
        variables, (name,), source, where=where
      )
    return variables

  def _cut(self, view: str) -> str:
    return 'shape' if self.frm_branch == 'shape' else view
