"""Networks with one trunk a view and one head that all views share.

Sub-modules carry the reference's names ('model_1', 'classifier'), so that
`view_weights` reads its checkpoints.

Source: layumi/University1652-Baseline `model.py` (`two_view_net`,
`three_view_net`).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cvgl_jax.models import backbones, layers


class ViewNetwork(nn.Module):
  """All trunks and the head that they share.

  Attributes:
    trunks: names of the trunks there are ('model_1', ...).
    trunk: arguments of every `backbones.Trunk`.
    num_classes, dim, droprate, dtype: of the head.
    prototypes: metric losses whose class prototypes are parameters.
  """

  trunks: tuple[str, ...]
  trunk: Mapping[str, Any]
  num_classes: int
  dim: int
  droprate: float
  dtype: Any
  prototypes: tuple[str, ...] = ()

  def setup(self):
    for name in self.trunks:
      setattr(self, name, backbones.Trunk(**self.trunk, dtype=self.dtype))
    self.classifier = layers.ClassBlock(
      self.num_classes, dim=self.dim, droprate=self.droprate, dtype=self.dtype
    )
    for name in self.prototypes:
      weight = self.param(
        f'prototypes_{name}',
        nn.initializers.normal(1.0),
        (self.dim, self.num_classes),
        jnp.float32,
      )
      setattr(self, f'_{name}', weight)

  def features(self, x: jax.Array, trunk: str, *, train: bool) -> jax.Array:
    """Normalised pictures [B, H, W, 3] -> f [B, D] (after dropout)."""
    return self.classifier.features(
      getattr(self, trunk)(x, train=train), train=train
    )

  def classify(self, features: jax.Array) -> jax.Array:
    """f [B, D] -> logits [B, K]."""
    return self.classifier.classify(features)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Every trunk on the same pictures; makes all variables."""
    for trunk in self.trunks:
      logits = self.classify(self.features(x, trunk, train=False))
    return logits
