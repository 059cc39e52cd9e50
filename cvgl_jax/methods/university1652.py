"""The University-1652 baseline: instance loss on one shared classifier.

Paper: Zheng, Wei, Yang, "University-1652: A Multi-view Multi-source Benchmark
for Drone-based Geo-localization", ACM MM 2020.
Source: layumi/University1652-Baseline (`model.py`, `train.py`,
`train_no_street.py`, `test.py`); USAM: AggMan96/RK-Net.

Idea: every building is a class. Each view has a trunk (satellite and drone may
share one; google pictures use the street trunk), all views share one head
(ClassBlock: Linear -> BN -> dropout = feature f, then the classifier), so the
classifier pulls the views of a building together. Retrieval uses f.

  L = instance_weight * sum_v w_v CE(W f_v + b, y_v)   w_street = street_weight
    + sum_l weight_l * sum_v l(f_v / |f_v|, y_v)       optional metric losses

Inputs: {view: {'image': [B, H, W, 3] in 0..255, 'label': int [B]}}; the views
may show different places. Embedding: [B, dim], unit norm.

Differs from the reference:
  - the prototypes of arcface, cosface and sphere may be trained
    (`prototype_trainable`); by default they stay random as in the release
    (reference-bug: the criteria are never given to the optimiser);
  - metric losses work with any views (the reference crashes with two);
  - VGG-16 works with three views (the reference's head has the wrong width);
    other ResNets, widths and pairs of views, and recomputation are ours;
  - `joint_statistics` is ours: the reference normalises each view by its own
    batch but evaluates both with one average, which costs small networks much;
  - embedding a view without a trunk is an error, not undefined;
  - `losses.info_nce` is ours: symmetric InfoNCE between the first view and
    every other view. It needs a plan that pairs places (`Pairs`, `AllViews`):
    with independently drawn views hardly any row has a positive.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.losses import classification, metric
from cvgl_jax.methods import contract
from cvgl_jax.models import backbones, layers, view_network

# Every view in the order of the reference's passes, with its own trunk.
TRUNKS = {
  'satellite': 'model_1', 'street': 'model_2', 'drone': 'model_3',
  'google': 'model_2', 'panorama': 'model_2',
}  # fmt: skip
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(contract.FromFeatures, contract.WithClassifier):
  """The baseline; defaults are those of the reference's command line.

  Attributes:
    num_classes: number of training places; 0 is filled in by the loop.
    views: of 'satellite', 'street', 'drone', 'google', 'panorama' (a street).
    share_satellite_drone: one trunk for both (`--share` with three views).
    share_satellite_street: one trunk for both (`--share` with two views).
    joint_statistics: views with a common trunk pass through it together in
      training and share their batch statistics, which are then those of
      evaluation; False, one pass a view, is the reference.
    backbone: a name of `models/backbones.py`.
    backbone_width: channels of the first stage; 64 as published.
    last_stride: stride of the last ResNet stage, 2 or 1.
    pool: 'avg', 'max', 'avg+max' or 'gem'.
    attention: 'none' or 'usam' (RK-Net; ResNets only).
    dim: size of the embedding.
    droprate: dropout on the embedding in training.
    instance_weight: factor of all cross entropies.
    street_weight: factor of the street cross entropy; 0 is the recipe without
      street pictures, whose trunk still runs.
    losses: weights of metric losses.
    loss_merge: without metric losses: 4 * CE over all views together
      (reference-bug: 4 for any number of views); with metric losses: these act
      on all views together and the cross entropies stay apart.
    circle_gamma: scale of the circle loss.
    temperature: of `losses.info_nce`.
    prototype_trainable: train the prototypes of arcface, cosface and sphere.
    dtype: 'float32' or 'bfloat16' for products and activations of the trunks;
      parameters, statistics, features and losses are float32 in both.
    remat: recompute the blocks' activations in the backward pass.
  """

  num_classes: int = 0
  views: tuple[str, ...] = ('satellite', 'street', 'drone')
  share_satellite_drone: bool = False
  share_satellite_street: bool = False
  joint_statistics: bool = False
  backbone: str = 'resnet50'
  backbone_width: int = 64
  last_stride: int = 2
  pool: str = 'avg'
  attention: str = 'none'
  dim: int = 512
  droprate: float = 0.5
  instance_weight: float = 1.0
  street_weight: float = 1.0
  losses: metric.Weights = dataclasses.field(default_factory=metric.Weights)
  loss_merge: bool = False
  circle_gamma: float = 32.0
  temperature: float = 0.07
  prototype_trainable: bool = False
  dtype: str = 'float32'
  remat: bool = False

  # View -> its trunk in a published checkpoint, and what such a file lacks.
  published_trunks: ClassVar[Mapping[str, str]] = TRUNKS
  absent_in_torch: ClassVar[tuple[str, ...]] = (r'prototypes_.*',)

  def __post_init__(self):
    contract.check_choices(
      self,
      backbone=backbones.NAMES,
      pool=layers.POOLS,
      attention=backbones.ATTENTIONS,
      dtype=DTYPES,
      last_stride=(1, 2),
    )
    unknown = [view for view in self.views if view not in TRUNKS]
    if unknown or not self.views or len(set(self.views)) < len(self.views):
      raise ValueError(
        f'views: got {self.views}, expected different ones of {tuple(TRUNKS)}'
      )
    if self.attention == 'usam' and not self.backbone.startswith('resnet'):
      raise ValueError(
        f"attention: 'usam' is defined for ResNets, backbone is {self.backbone!r}"
      )
    if not 0 <= self.droprate < 1:
      raise ValueError(f'droprate: got {self.droprate}, expected 0 <= p < 1')
    if self.loss_merge and self.street_weight != 1:
      raise ValueError('street_weight: has no meaning with loss_merge')
    if self.losses.info_nce and len(self.views) < 2:
      raise ValueError(f'losses.info_nce: needs two views, got {self.views}')

  @property
  def needs_pairs(self) -> bool:
    """Whether row i of every view must show the same place."""
    return bool(self.losses.info_nce)

  @property
  def ordered_views(self) -> tuple[str, ...]:
    """The views in the order of the reference's passes."""
    return tuple(view for view in TRUNKS if view in self.views)

  @property
  def trunks(self) -> dict[str, str]:
    """Every view that can be embedded -> name of its trunk."""
    names = dict(TRUNKS)
    if self.share_satellite_drone:
      names['drone'] = names['satellite']
    if self.share_satellite_street:
      names |= dict.fromkeys(('street', 'google', 'panorama'), 'model_1')
    there = {names[view] for view in self.views}
    return {view: name for view, name in names.items() if name in there}

  @property
  def network(self) -> view_network.ViewNetwork:
    """The Flax module."""
    if self.num_classes < 1:
      raise ValueError(
        f'num_classes: got {self.num_classes}; set it to the number of training '
        'places (the training loop fills it in)'
      )
    prototypes = ()
    if self.prototype_trainable:
      prototypes = tuple(
        name for name in metric.WITH_PROTOTYPES if name in self.losses.active()
      )
    return view_network.ViewNetwork(
      trunks=tuple(dict.fromkeys(self.trunks.values())),
      trunk={
        'backbone': self.backbone,
        'width': self.backbone_width,
        'last_stride': self.last_stride,
        'pool': self.pool,
        'attention': self.attention,
        'remat': self.remat,
      },
      num_classes=self.num_classes,
      dim=self.dim,
      droprate=self.droprate,
      dtype=jnp.bfloat16 if self.dtype == 'bfloat16' else None,
      prototypes=prototypes,
    )

  def init(self, rng: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Random variables {'params', 'batch_stats'}.

    Of `batch` only the views are looked at: no variable depends on sizes.
    """
    self._check_views(batch)
    pictures = jnp.zeros((1, 32, 32, 3), jnp.float32)
    return self.network.init(rng, pictures)

  def features(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
  ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """f of every view in training mode: ({view: [B, dim] float32}, mutable).

    One pass per view in the reference's order (or per trunk, with
    `joint_statistics`), each with its own batch statistics, dropout mask and
    update of the running statistics.
    """
    self._check_views(batch)
    network, features = self.network, {}
    for i, views in enumerate(self._passes()):
      pictures = [layers.normalize_image(batch[v]['image']) for v in views]
      if len({x.shape for x in pictures}) > 1:
        raise ValueError(
          f'joint_statistics: pictures of {views} differ in size; use one size '
          '(config.data.view_sizes) or joint_statistics=False'
        )
      joined, mutable = network.apply(
        {'params': params, **mutable},
        jnp.concatenate(pictures) if len(views) > 1 else pictures[0],
        self._trunk(views[0]),
        train=True,
        method='features',
        mutable=list(mutable),
        rngs={'dropout': jax.random.fold_in(rng, i)},
      )
      ends = np.cumsum([len(x) for x in pictures])[:-1]
      features |= dict(zip(views, jnp.split(joined, ends), strict=True))
    return features, mutable

  def _passes(self) -> list[tuple[str, ...]]:
    """The views of each training pass, in the reference's order."""
    if not self.joint_statistics:
      return [(view,) for view in self.ordered_views]
    passes = {}
    for view in self.ordered_views:
      passes.setdefault(self._trunk(view), []).append(view)
    return [tuple(views) for views in passes.values()]

  def loss_from_features(
    self,
    params: Any,
    features: Mapping[str, jax.Array],
    batch: Mapping[str, Any],
    step: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, {'ce/<view>', 'accuracy/<view>', '<metric loss>'}) of features."""
    views = self.ordered_views
    features = {view: features[view] for view in views}
    label = {view: batch[view]['label'] for view in views}
    logits = {
      view: self.network.apply({'params': params}, f, method='classify')
      for view, f in features.items()
    }
    metrics = {}
    for view in views:
      metrics[f'ce/{view}'] = classification.cross_entropy(
        logits[view], label[view]
      )
      right = logits[view].argmax(-1) == label[view]
      metrics[f'accuracy/{view}'] = right.mean(dtype=jnp.float32)
    active = self.losses.active()
    loss = self.instance_weight * classification.instance_loss(
      logits,
      label,
      weight={'street': self.street_weight} if 'street' in views else {},
      merge=self.loss_merge and not active,
    )
    for name, weight in active.items():
      metrics[name] = self._metric_loss(name, params, features, label, step)
      loss = loss + weight * metrics[name]
    return loss, metrics

  def embed_raw(
    self, variables: Mapping[str, Any], images: jax.Array, view: str
  ) -> jax.Array:
    """f [B, dim] float32 in evaluation mode, not normalised.

    In float32 whatever `dtype` is: the reference's mixed precision is of the
    training forward only.

    Args:
      variables: {'params', 'batch_stats'}.
      images: [B, H, W, 3], uint8 or floating point in 0..255.
      view: whose trunk to use; one without a trunk is a ValueError.
    """
    network = dataclasses.replace(self, dtype='float32').network
    return network.apply(
      variables,
      layers.normalize_image(images),
      self._trunk(view),
      train=False,
      method='features',
    )

  def label(self, path: str) -> str:
    """'classifier' for the head and its prototypes, else 'backbone'."""
    head = path.startswith(('classifier/', 'prototypes_'))
    return 'classifier' if head else 'backbone'

  def _metric_loss(self, name, params, features, label, step):
    """One optional loss over all views, before its weight."""
    if name == 'info_nce':
      return metric.against_first(
        {view: features[view] for view in self.views},
        place=label[self.views[0]],
        temperature=self.temperature,
      )
    prototype = None
    if name in metric.WITH_PROTOTYPES:
      prototype = self._prototypes(name, params, step)
    return metric.over_views(
      name,
      features,
      label=label,
      merge=self.loss_merge,
      circle_gamma=self.circle_gamma,
      prototype=prototype,
    )

  def _prototypes(self, name, params, step):
    """[dim, K], trained or fixed."""
    if self.prototype_trainable:
      return params[f'prototypes_{name}']
    # Constant, but computed from `step` (0 times it), because XLA would spend
    # long on folding a large random constant at compile time.
    key = jax.random.key(metric.WITH_PROTOTYPES.index(name))
    key = jax.random.fold_in(key, jnp.asarray(step) * 0)
    return jax.random.normal(key, (self.dim, self.num_classes), jnp.float32)

  def _check_views(self, batch: Mapping[str, Any]):
    missing = [view for view in self.ordered_views if view not in batch]
    if missing:
      raise ValueError(
        f'config.method.views: {missing} are not in the batch, which has '
        f'{sorted(batch)}; let the plan provide them or leave them out of views'
      )

  def _trunk(self, view: str) -> str:
    """Name of the trunk of a view."""
    if view not in self.trunks:
      raise ValueError(
        f'no trunk for view {view!r}: the method has views {self.views} and '
        f'embeds {tuple(self.trunks)}'
      )
    return self.trunks[view]
