"""Sample4Geo: one shared ConvNeXt, symmetric InfoNCE, hard batches.

Paper: Deuser, Habel, Oswald, "Sample4Geo: Hard Negative Sampling For Cross-View
Geo-Localisation", ICCV 2023.
Source: Skyy93/Sample4Geo (`sample4geo/model.py`, `loss.py`, `trainer.py`).

Idea: both views pass through the same network, whose averaged and
layer-normalised map is the embedding. With f of unit norm, row i of both views
from one place, and a learned scale t,

  S = exp(t) f_query f_reference^T,   L = (CE(S) + CE(S^T)) / 2,

cross entropy with label smoothing, the targets on the diagonal. Every other
place of the global batch is a negative; the plan fills batches with places that
are near or look alike (configs/sample4geo_*.py).

Inputs: {view: {'image': [B, H, W, 3] in 0..255}} for two views, of sizes of
their own. Embedding: [B, C], unit norm (1024 with ConvNeXt-B).

Differs from the reference:
  - bfloat16 in training instead of float16 with loss scaling; evaluation is
    float32, there float16;
  - `pool='frm'`, other backbones and stochastic depth are ours.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cvgl_jax.losses import contrastive, cross_view
from cvgl_jax.methods import contract
from cvgl_jax.models import (
  convnext,
  layers,
  named_networks,
  recombination,
  torch_weights,
)

NETWORK = 'model'  # Its name in the published checkpoints.
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(contract.FromFeatures):
  """Sample4Geo; defaults are those of the published runs.

  Attributes:
    views: query and reference, such as 'panorama', 'satellite' or 'drone',
      'satellite'.
    backbone: a name of `recombination.BACKBONES`.
    backbone_width: 64 as published; others scale all channels.
    pool: 'avg', or 'frm' as in FRGeo (views 'panorama' and 'satellite' only,
      without a polar transform).
    label_smoothing: share of the target spread over the batch.
    initial_temperature: exp(-t) at the start; t is trained and never clipped.
    drop_path: stochastic depth, the rate of the last block.
    layer_scale: initial gamma of a ConvNeXt with random weights.
    dtype: 'float32' or 'bfloat16' for products and activations in training;
      parameters, pooled features and losses are float32 in both.
    remat: recompute the blocks' activations in the backward pass.
  """

  views: tuple[str, ...] = ('panorama', 'satellite')
  backbone: str = 'convnext_base'
  backbone_width: int = 64
  pool: str = 'avg'
  label_smoothing: float = 0.1
  initial_temperature: float = 0.07
  drop_path: float = 0.0
  layer_scale: float = 1e-6
  dtype: str = 'float32'
  remat: bool = False

  # Row i of both views must show the same place.
  needs_pairs: ClassVar[bool] = True

  def __post_init__(self):
    contract.check_choices(
      self,
      backbone=recombination.BACKBONES,
      pool=recombination.POOLS,
      dtype=DTYPES,
    )
    if len(self.views) != 2 or len(set(self.views)) != 2:
      raise ValueError(f'views: got {self.views}, expected two different ones')
    if self.pool == 'frm' and sorted(self.views) != sorted(recombination.CUTS):
      raise ValueError(
        f"pool: 'frm' cuts views {recombination.CUTS}, views is {self.views}"
      )
    if self.backbone_width < 1 or not self.initial_temperature > 0:
      raise ValueError(
        f'backbone_width {self.backbone_width} must be at least 1, '
        f'initial_temperature {self.initial_temperature} above 0'
      )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f'label_smoothing: got {self.label_smoothing}, expected 0 <= p < 1'
      )
    convnext.check_drop_path(self.drop_path, backbone=self.backbone)

  @property
  def network(self) -> recombination.Net:
    """The network of both views."""
    return recombination.net_of(self)

  def init(self, rng: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Random variables {'params': {'model': ..., 'logit_scale': []}}.

    Raises:
      ValueError: a view is absent, or its pictures are too small.
    """
    pictures = {view: contract.pictures(batch, view)[:1] for view in self.views}
    for view, x in pictures.items():
      # No variable depends on the view; a picture that is too small is an error
      # in both.
      variables = named_networks.init(
        {NETWORK: self.network},
        rng,
        {NETWORK: x},
        options={NETWORK: {'train': False, 'cut': self._cut(view)}},
      )
    scale = jnp.asarray(-math.log(self.initial_temperature), jnp.float32)
    params = {**variables['params'], 'logit_scale': scale}
    return {**variables, 'params': params}

  def features(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
  ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Both views in training mode: ({view: [B, D] float32}, mutable)."""
    features = {}
    for i, view in enumerate(self.views):
      features[view], mutable = named_networks.train(
        self.network,
        NETWORK,
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
    """(loss, 'logit_scale' and `cross_view.similarity_metrics`) of features."""
    del batch, step
    query, reference = (features[view] for view in self.views)
    scale = jnp.exp(params['logit_scale'])
    loss = contrastive.info_nce_loss(
      query,
      reference,
      temperature=1 / scale,
      label_smoothing=self.label_smoothing,
    )
    metrics = cross_view.similarity_metrics(query, reference)
    return loss, {'logit_scale': scale} | metrics

  def embed_raw(
    self, variables: Mapping[str, Any], images: jax.Array, view: str
  ) -> jax.Array:
    """[B, D] float32, not normalised; in float32 whatever `dtype` is.

    Args:
      variables: of `init`.
      images: [B, H, W, 3], uint8 or floating point in 0..255.
      view: any; the network is the same. Only 'frm' cuts maps by it.
    """
    network = dataclasses.replace(self, dtype='float32').network
    return named_networks.evaluate(
      network,
      NETWORK,
      variables,
      layers.normalize_image(images),
      cut=self._cut(view),
    )

  def check_pictures(
    self, sizes: Mapping[str, tuple[int, int]], *, polar: bool
  ) -> None:
    """'frm' cuts satellite pictures in quadrants, which polar ones lack.

    Args:
      sizes: view -> (height, width) of the pictures that the network sees.
      polar: satellite pictures are laid out as panoramas.

    Raises:
      ValueError: `pool='frm'` with a polar transform.
    """
    del sizes
    if polar and self.pool == 'frm':
      raise ValueError(
        'config.data.polar_size lays satellite pictures out as panoramas, but '
        "config.method.pool='frm' cuts them in quadrants, which are other "
        "directions: use config.method.pool='avg', or no config.data.polar_size"
      )

  def label(self, path: str) -> str:
    """'logit_scale', or 'model' for all weights of the network."""
    return path.split('/')[0]

  def variables_from_torch(
    self, variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
  ) -> dict[str, Any]:
    """Takes a released checkpoint, or the backbone's ImageNet weights.

    Args:
      variables: of `init`.
      source: torch state dict as arrays: 'logit_scale', 'model.stem.0.weight',
        ... of the release; or a ConvNeXt in the names of Facebook, timm or
        torchvision; or another backbone in torchvision's names.
      where: the file, for messages.

    Raises:
      ValueError: it does not fit; the message lists what is missing or extra.
    """
    prefix = f'{NETWORK}.'
    own = {
      name.removeprefix(prefix): value
      for name, value in source.items()
      if name.startswith(prefix)
    }
    if not own:
      return recombination.from_imagenet(
        variables, (NETWORK,), source, where=where
      )
    renamed = {
      f'{prefix}{name}': value
      for name, value in convnext.to_facebook(own).items()
    }
    others = {k: v for k, v in source.items() if not k.startswith(prefix)}
    return torch_weights.convert(variables, renamed | others, where=where)

  def _cut(self, view: str) -> str:
    return view if self.pool == 'frm' else recombination.CUTS[0]
