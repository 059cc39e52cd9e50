"""PLCD: ground and drone as peers, in three generations; drone and satellite.

Paper: Zeng, Wang, Yang, Satoh, "Geo-Localization via Ground-to-Satellite
Cross-View Image Retrieval", IEEE TMM 2022.
Source: ZelongZeng/PLCD (`model_rmac.py`, `train_PL_G2D.py`, `train_D2S.py`).

Idea: drone pictures are the bridge from a ground picture to the satellite
picture of a place. Two networks are trained apart, ground-drone (G2D) and
drone-satellite (D2S), and joined at test time by diffusion over a graph
(`retrieval/diffusion`). Every G2D generation starts afresh and learns from the
one before, the teacher: not only what is right, but how similar everything is,
whole drone pictures first (generation 1), then regions of them (generation 2).

An anchor (the first view: street or satellite) meets the n drone pictures of
its place (`data/peer_batches`). With unit features f_k of the anchors, p_m of the
drone pictures and r_m of their regions, positives and negatives as in
`losses/peer`:

  L = lambda_metric   1/(N B) sum softplus(f.n - f.p)
    + lambda_identity (CE(anchors) + CE(drones))
    + lambda_distill  1/B sum_k KL(teacher softmax(f_k.[p, r] / tau) || student)

the last term where generation > 0. Retrieval uses whole pictures only.

Inputs: {anchor view: {'image': [B, H, W, 3], 'label': int [B]}, 'drone':
{'image': [n B, H, W, 3], 'label': int [n B]}}, pixels in 0..255, rows n k ...
n k + n - 1 of the drones from the place of anchor k. Embedding: [B, dim], unit
norm.

Differs from the reference:
  - regions are defined for any map, equal to the reference's on 12 x 12;
  - the running statistics of the teacher's batch norms, which nothing reads, are
    not updated;
  - `pairing='aligned'`, `teacher_mode='eval'`, `record_parts=False`, other
    backbones and widths, bfloat16 and recomputation are ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cvgl_jax.losses import classification, pairs, peer
from cvgl_jax.methods import contract
from cvgl_jax.models import backbones, layers, peer_network

ANCHORS = ('street', 'satellite')
PEER = 'drone'
POOLS = ('max', 'avg')
TEACHER_MODES = ('train', 'eval')
DTYPES = ('float32', 'bfloat16')
TEACHER = 'teacher'  # its variables among the mutable ones, in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(contract.FromFeatures, contract.WithClassifier):
  """PLCD; defaults are those of the published first generation.

  Attributes:
    num_classes: number of training places; 0 is filled in by the loop.
    views: the anchors' view, 'street' (G2D) or 'satellite' (D2S), then 'drone'.
    generation: 0 learns alone, others from `config.teacher`.
    regions: how many of the 29 regions are distilled: 4, 13 and 29 are whole
      levels.
    record_parts: where generation > 0, all 29 regions update the running
      statistics of the head's batch norm, as published; False: none does.
    easy_positive: the most similar of the anchor's drone pictures is the
      positive, else the least similar.
    negatives: hardest negatives of an anchor.
    pairing: 'tiled' (reference-bug, published) or 'aligned'; see `peer.ranking`.
    lambda_metric, lambda_identity, lambda_distill: weights of the losses.
    tau: temperature of the distillation.
    teacher_mode: 'train' (published): the teacher normalises by the batch and
      drops features; 'eval': it embeds as in retrieval.
    share_trunks: one trunk for both views.
    backbone, backbone_width, last_stride: see `backbones.make`.
    pool: 'max' or 'avg', of whole pictures.
    dim: size of the embedding.
    droprate: dropout on the embedding in training.
    dtype: 'float32' or 'bfloat16' for products and activations in training.
    remat: recompute the blocks' activations in the backward pass.
  """

  num_classes: int = 0
  views: tuple[str, ...] = ('street', PEER)
  generation: int = 0
  regions: int = 0
  record_parts: bool = True
  easy_positive: bool = True
  negatives: int = 10
  pairing: peer.Pairing = 'tiled'
  lambda_metric: float = 1.0
  lambda_identity: float = 0.1
  lambda_distill: float = 1.0
  tau: float = 0.1
  teacher_mode: str = 'train'
  share_trunks: bool = False
  backbone: str = 'resnet50'
  backbone_width: int = 64
  last_stride: int = 2
  pool: str = 'max'
  dim: int = 512
  droprate: float = 0.5
  dtype: str = 'float32'
  remat: bool = False

  # Row k of the anchors and rows n k ... of the drones show one place.
  needs_pairs: ClassVar[bool] = True
  # Several pictures of the second view for one of the first.
  takes_peers: ClassVar[bool] = True

  def __post_init__(self):
    contract.check_choices(
      self,
      backbone=backbones.NAMES,
      pool=POOLS,
      pairing=peer.PAIRINGS,
      teacher_mode=TEACHER_MODES,
      dtype=DTYPES,
      last_stride=(1, 2),
    )
    if self.views not in tuple((anchor, PEER) for anchor in ANCHORS):
      raise ValueError(
        f'views: got {self.views}, expected one of {ANCHORS}, then {PEER!r}'
      )
    if not 0 <= self.regions <= peer_network.REGIONS:
      raise ValueError(
        f'regions: got {self.regions}, expected 0 to {peer_network.REGIONS}'
      )
    if self.regions and not self.generation:
      raise ValueError(
        f'regions: {self.regions} are distilled from a teacher, which generation '
        '0 does not have'
      )
    for name, least in (('generation', 0), ('negatives', 1), ('dim', 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f'{name}: got {getattr(self, name)}, expected >= {least}'
        )
    if not 0 <= self.droprate < 1 or not self.tau > 0:
      raise ValueError(
        f'droprate {self.droprate} must be in [0, 1), tau {self.tau} above 0'
      )

  @property
  def needs_teacher(self) -> bool:
    """Whether the mutable variables must hold a teacher's in training."""
    return self.generation > 0

  @property
  def trunks(self) -> dict[str, str]:
    """View -> its trunk, in the names of the published checkpoints."""
    second = 'model_1' if self.share_trunks else 'model_2'
    return {self.views[0]: 'model_1', PEER: second}

  @property
  def published_trunks(self) -> dict[str, str]:
    """View -> its trunk in a released checkpoint."""
    return {self.views[0]: 'model_1', PEER: 'model_2'}

  @property
  def network(self) -> peer_network.PeerNetwork:
    """The Flax module."""
    if self.num_classes < 1:
      raise ValueError(
        f'num_classes: got {self.num_classes}; set it to the number of training '
        'places (the training loop fills it in)'
      )
    return peer_network.PeerNetwork(
      trunks=tuple(self.trunks.values()),
      trunk={
        'backbone': self.backbone,
        'width': self.backbone_width,
        'last_stride': self.last_stride,
        'remat': self.remat,
      },
      pool=self.pool,
      num_classes=self.num_classes,
      dim=self.dim,
      droprate=self.droprate,
      dtype=jnp.bfloat16 if self.dtype == 'bfloat16' else None,
    )

  def init(self, rng: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Random variables {'params', 'batch_stats'}.

    Of `batch` only the views are looked at: no variable depends on sizes.
    """
    for view in self.views:
      contract.pictures(batch, view)
    return self.network.init(rng, jnp.zeros((1, 32, 32, 3), jnp.float32))

  def features(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
  ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Student and teacher in training mode, on the same pictures.

    Args:
      params: of the student.
      mutable: {'batch_stats'} of the student and, where `needs_teacher`,
        'teacher': {'params', 'batch_stats'}.
      batch: see the module.
      rng: of the dropout; the teacher's masks are its own.

    Returns:
      ({view: h [B, dim] before normalisation, 'regions': [n B, R, dim],
      'teacher/<each of them>'}, mutable).
    """
    pictures = [contract.pictures(batch, view) for view in self.views]
    student_rng, teacher_rng = jax.random.split(rng)
    own = {key: tree for key, tree in mutable.items() if key != TEACHER}
    described, own = self._both(
      {'params': params, **own},
      pictures,
      train=True,
      rng=student_rng,
      recorded_parts=self._recorded_parts,
    )
    if self.needs_teacher:
      if TEACHER not in mutable:
        raise ValueError(
          f'generation {self.generation} learns from a teacher: set '
          'config.teacher.workdir'
        )
      teacher = jax.lax.stop_gradient(mutable[TEACHER])
      taught, _ = self._both(
        teacher,
        pictures,
        train=self.teacher_mode == 'train',
        rng=teacher_rng,
      )
      described |= {f'{TEACHER}/{key}': x for key, x in taught.items()}
    return described, {**mutable, **own}

  def loss_from_features(
    self,
    params: Any,
    features: Mapping[str, Any],
    batch: Mapping[str, Any],
    step: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, {'metric', 'distill', 'ce/<view>', 'accuracy/<view>', ...})."""
    del step
    anchor_view = self.views[0]
    label = {view: batch[view]['label'] for view in self.views}
    anchor, whole, regions = self._units(features)
    score = peer.scores(anchor, whole)
    mined = peer.mine(
      score,
      label[anchor_view],
      label[PEER],
      easy_positive=self.easy_positive,
      negatives=self.negatives,
    )
    metrics = {'metric': peer.ranking(score, mined, pairing=self.pairing)}
    identity = 0.0
    for view in self.views:
      logits = self.network.apply(
        {'params': params}, features[view], method='classify'
      )
      ce = classification.cross_entropy(logits, label[view])
      right = logits.argmax(-1) == label[view]
      metrics[f'ce/{view}'] = ce
      metrics[f'accuracy/{view}'] = right.mean(dtype=jnp.float32)
      identity += ce
    loss = self.lambda_metric * metrics['metric']
    loss += self.lambda_identity * identity
    if self.needs_teacher:
      taught, taught_whole, taught_regions = self._units(
        features, prefix=f'{TEACHER}/'
      )
      rows = lambda one, more: jnp.concatenate([one[:, None], more], axis=1)
      metrics['distill'] = peer.distillation(
        (anchor, rows(whole, regions)),
        (taught, rows(taught_whole, taught_regions)),
        tau=self.tau,
      )
      loss += self.lambda_distill * metrics['distill']
    return loss, metrics

  def embed_raw(
    self, variables: Mapping[str, Any], images: jax.Array, view: str
  ) -> jax.Array:
    """Whole pictures [B, dim] float32, of unit norm already; in float32.

    The reference adds unit vectors where a picture is seen in several ways
    (mirrored, in several sizes), so these are.

    Args:
      variables: {'params', 'batch_stats'}.
      images: [B, H, W, 3], uint8 or floating point in 0..255.
      view: of `views`.
    """
    return self.embed_regions(variables, images, view, regions=0)[:, 0]

  def embed_regions(
    self,
    variables: Mapping[str, Any],
    images: jax.Array,
    view: str,
    *,
    regions: int,
  ) -> jax.Array:
    """The whole picture and its first regions, [B, 1 + regions, dim], unit norm.

    For a diffusion whose seeds are the most similar regions (`hiera`).

    Args: as `embed_raw`; `regions` 0 to 29.

    Raises:
      ValueError: another view, a map too small for regions.
    """
    network = dataclasses.replace(self, dtype='float32').network
    trunk = contract.choose(self.trunks, view)
    described = network.apply(
      variables,
      layers.normalize_image(images),
      trunk,
      parts=regions,
      method='all_features',
    )
    return pairs.l2_normalize(jnp.roll(described, 1, axis=1))

  def check_pictures(
    self, sizes: Mapping[str, tuple[int, int]], *, polar: bool
  ) -> None:
    """Regions need a map of some cells.

    Raises:
      ValueError: the drone pictures are too small.
    """
    del polar
    if not (self.regions or self._recorded_parts):
      return
    network = dataclasses.replace(self, num_classes=1).network
    height, width = network.map_hw(sizes[PEER], self.trunks[PEER])
    try:
      peer_network.windows(height, width)
    except ValueError as error:
      raise ValueError(f'config.data.image_size: {error}') from error

  def label(self, path: str) -> str:
    """'classifier' for the head, else 'backbone'."""
    return 'classifier' if path.startswith('classifier/') else 'backbone'

  @property
  def _recorded_parts(self) -> int:
    """How many regions update the running statistics of the head."""
    return peer_network.REGIONS if self.generation and self.record_parts else 0

  def _both(self, variables, pictures, *, train, rng, recorded_parts=0):
    """(features of `features`, collections after the pass)."""
    (anchor, peers), mutable = self.network.apply(
      variables,
      *pictures,
      parts=self.regions,
      recorded_parts=recorded_parts,
      train=train,
      method='both',
      mutable=[key for key in variables if key != 'params'] if train else [],
      rngs={'dropout': rng},
    )
    described = {self.views[0]: anchor, PEER: peers[:, -1]}
    if self.regions:
      described['regions'] = peers[:, :-1]
    return described, mutable

  def _units(self, features, *, prefix=''):
    """Unit anchors [B, D], drones [n B, D] and their regions [n B, R, D]."""
    anchor, whole = (
      pairs.l2_normalize(features[prefix + view]) for view in self.views
    )
    if not self.regions:
      return anchor, whole, whole[:, None][:, :0]
    return anchor, whole, pairs.l2_normalize(features[f'{prefix}regions'])
