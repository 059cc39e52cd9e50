"""TransGeo: two vision transformers; the second stage attends and zooms in.

Paper: Zhu, Shah, Chen, "TransGeo: Transformer Is All You Need for Cross-view
Image Geo-localization", CVPR 2022.
Source: Jeff-Zilence/TransGeo2022 (`model/TransGeo.py`, `model/Deit.py`,
`criterion/soft_triplet.py`, `train.py`).

Idea: one DeiT for street panoramas (query), one for satellite pictures
(reference). Stage 1 trains both on whole pictures. In stage 2 the satellite
pictures are larger, and of their patches only the share `sat_keep` becomes
tokens: those where the special tokens of the trained stage 1 looked, so that a
sharper picture costs as much as before. With s_ij the cosine of query i and
reference j,

  L = 1/2 mean_{i != j} log(1 + exp(alpha (s_ij - s_ii)))  + the same of s^T

Inputs: {'panorama', 'satellite'}: {'image': [B, H, W, 3] in 0..255}, row i of
both from one place, of one size a view (the positions are for it). Embedding:
[B, dim], unit norm.

Stage 2 is a run of its own: `stage=2`, larger satellite pictures, and
`config.init` a run or a checkpoint of stage 1. The stage-1 network is kept in
the collection 'teacher', without gradient. configs/transgeo_*.py have both.

Differs from the reference:
  - the attention maps are computed in the step from the picture resized on the
    device to the size of stage 1, not read from files that a pass over all
    pictures wrote; equal 8-bit values go to the first patch instead of any;
  - the descriptors that mining looks at start empty in stage 2 too;
  - the other loss, `loss_groups`, bfloat16 and recomputation are ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cvgl_jax.losses import cross_view
from cvgl_jax.methods import contract
from cvgl_jax.models import layers, named_networks, vit, zoom_weights

# View -> its network, in the names of the published checkpoints.
NETWORKS = {'panorama': 'query_net', 'satellite': 'reference_net'}
ZOOMING = zoom_weights.ZOOMING
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(contract.FromFeatures):
  """TransGeo; defaults are those of the published runs on CVUSA.

  Attributes:
    views: 'panorama' and 'satellite'.
    stage: 1, or 2 for the one that zooms.
    attend_size: (height, width) of the satellite pictures of stage 1; stage 2
      resizes its own to it before it asks where to look.
    sat_keep: stage 2: share of the satellite patches that become tokens.
    teacher_weights: stage 2, where `config.init.weights` is a checkpoint of
      stage 2: the torch file of its stage 1, which knows where to look.
    width, depth, heads, patch: of the transformers; DeiT-S.
    dim: size of the embedding.
    criterion: 'soft_triplet', or 'weighted_tuple' (FRGeo's).
    alpha: weight of the differences of cosines.
    loss_groups: the batch is split into so many parts and only pairs of one
      part meet in the loss.
    dtype: 'float32' or 'bfloat16' for products and activations in training;
      parameters, embeddings, losses and attention maps are float32 in both.
    remat: recompute the blocks' activations in the backward pass.
  """

  views: tuple[str, ...] = ('panorama', 'satellite')
  stage: int = 1
  attend_size: tuple[int, int] = (256, 256)
  sat_keep: float = 0.64
  teacher_weights: str = ''
  width: int = 384
  depth: int = 12
  heads: int = 6
  patch: int = 16
  dim: int = 1000
  criterion: str = 'soft_triplet'
  alpha: float = 20.0
  loss_groups: int = 1
  dtype: str = 'float32'
  remat: bool = False

  # Row i of every view must show the same place.
  needs_pairs: ClassVar[bool] = True

  def __post_init__(self):
    contract.check_choices(
      self,
      stage=(1, 2),
      criterion=tuple(cross_view.LOSSES),
      dtype=DTYPES,
    )
    if sorted(self.views) != sorted(NETWORKS):
      raise ValueError(f'views: got {self.views}, expected {tuple(NETWORKS)}')
    least = ('width', 'depth', 'heads', 'patch', 'dim', 'loss_groups')
    for field in least:
      if getattr(self, field) < 1:
        raise ValueError(f'{field}: got {getattr(self, field)}, expected >= 1')
    if self.width % self.heads:
      raise ValueError(
        f'heads: {self.heads} do not divide the width {self.width}'
      )
    if not self.alpha > 0 or not 0 < self.sat_keep <= 1:
      raise ValueError(
        f'alpha {self.alpha} must be above 0, sat_keep {self.sat_keep} above 0 '
        'and at most 1'
      )
    if min(self.attend_size) < self.patch:
      raise ValueError(
        f'attend_size: got {self.attend_size}, expected (height, width) of at '
        f'least one patch of {self.patch} pixels'
      )

  @property
  def network(self) -> vit.DistilledViT:
    """The network of either view; each has weights of its own."""
    return vit.DistilledViT(
      dim=self.width,
      depth=self.depth,
      heads=self.heads,
      out_dim=self.dim,
      patch=self.patch,
      dtype=jnp.bfloat16 if self.dtype == 'bfloat16' else None,
      remat=self.remat,
    )

  def init(self, rng: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Random variables, with positions for the sizes of the batch's pictures.

    Returns:
      {'params': {'query_net': ..., 'reference_net': ...},
      'constants': {'grid': rows and columns of patches by network}}, and in
      stage 2 'teacher': {'reference_net': the network of stage 1}.

    Raises:
      ValueError: a view is absent, or its pictures are smaller than a patch.
    """
    pictures = {
      name: contract.pictures(batch, view)[:1]
      for view, name in NETWORKS.items()
    }
    variables = named_networks.init(
      dict.fromkeys(pictures, self.network),
      rng,
      pictures,
      options={name: {} for name in pictures},
    )
    grid = {
      name: jnp.asarray(self._grid(x.shape[1:3]), jnp.float32)
      for name, x in pictures.items()
    }
    variables['constants'] = {'grid': grid}
    if self.stage == 2:
      teacher = named_networks.init(
        {ZOOMING: self.network},
        jax.random.fold_in(rng, len(NETWORKS)),
        {ZOOMING: jnp.zeros((1, *self.attend_size, 3), jnp.float32)},
        options={ZOOMING: {}},
      )
      variables['teacher'] = teacher['params']
    return variables

  def features(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
  ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Both views: ({view: [B, dim] float32}, mutable as it was).

    Nothing is random and no statistics are kept: `rng` is not used.
    """
    del rng
    variables = {'params': params, **mutable}
    features = {
      view: self._forward(variables, contract.pictures(batch, view), view)
      for view in NETWORKS
    }
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
    """[B, dim] float32, not normalised; in float32 whatever `dtype` is.

    Args:
      variables: of `init`.
      images: [B, H, W, 3], uint8 or floating point in 0..255, of the view's
        size in training.
      view: 'panorama' or 'satellite'; another one is a ValueError.
    """
    exact = dataclasses.replace(self, dtype='float32')
    return exact._forward(variables, layers.normalize_image(images), view)

  def kept_patches(
    self, variables: Mapping[str, Any], x: jax.Array
  ) -> jax.Array:
    """Stage 2: the satellite patches that become tokens, [B, K] int32.

    Args:
      variables: of `init`; only 'teacher' is looked at.
      x: [B, H, W, 3], normalised, of this stage's size.
    """
    small = jax.image.resize(
      x, (x.shape[0], *self.attend_size, x.shape[3]), 'linear', antialias=True
    )
    teacher = dataclasses.replace(self, dtype='float32').network
    attention = teacher.apply(
      {'params': variables['teacher'][ZOOMING]}, small, method='attention'
    )
    grid = self._grid(x.shape[1:3])
    return vit.kept_patches(attention, grid, share=self.sat_keep)

  def label(self, path: str) -> str:
    """The network that a parameter belongs to."""
    return path.split('/')[0]

  def variables_from_torch(
    self, variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
  ) -> dict[str, Any]:
    """Takes a released checkpoint, or DeiT's ImageNet weights for both views.

    Args:
      variables: of `init`, with values.
      source: torch state dict as arrays: 'query_net.cls_token', ... of the
        release, or 'cls_token', ... of a distilled DeiT. A checkpoint of stage 1
        also starts stage 2; one of stage 2 needs `teacher_weights`.
      where: the file, for messages.

    Raises:
      ValueError: it does not fit; the message says what is missing or to be set.
    """
    return zoom_weights.fill(
      variables,
      source,
      attend_grid=self._grid(self.attend_size),
      teacher_weights=self.teacher_weights,
      out_dim=self.dim,
      where=where,
    )

  def variables_from_run(
    self, variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
  ) -> dict[str, Any]:
    """Continues from another run: stage 2 from stage 1, or the same stage.

    Positions are resized where the pictures have another size here.

    Args:
      variables: of `init`, with values.
      source: variables of the other run, as `init` makes them there.
      where: its workdir, for messages.

    Raises:
      ValueError: the other run has other networks; the message names what.
    """
    return zoom_weights.from_run(variables, source, where=where)

  def _forward(
    self, variables: Mapping[str, Any], x: jax.Array, view: str
  ) -> jax.Array:
    """[B, dim] float32 of normalised pictures of a view."""
    name = contract.choose(NETWORKS, view)
    keep = None
    if self.stage == 2 and name == ZOOMING:
      keep = self.kept_patches(variables, x)
    return self.network.apply(
      {'params': variables['params'][name]}, x, keep=keep
    )

  def _grid(self, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of a picture."""
    return size_hw[0] // self.patch, size_hw[1] // self.patch
