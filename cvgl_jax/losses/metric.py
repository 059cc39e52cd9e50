"""The optional metric losses of layumi's baselines, by name and over views.

They act on f / |f| of every view, with the released constants, and each has a
weight, 1 for the released flag.

Source: layumi/University1652-Baseline, train.py.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cvgl_jax.losses import classification, contrastive, triplet

# Those that compare with one prototype a class.
WITH_PROTOTYPES = ('arcface', 'cosface', 'sphere')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """Weights of the losses on f / |f|; 0 is off, 1 the released flag."""

  circle: float = 0.0
  triplet: float = 0.0
  contrast: float = 0.0
  lifted: float = 0.0
  arcface: float = 0.0
  cosface: float = 0.0
  sphere: float = 0.0
  info_nce: float = 0.0

  def active(self) -> dict[str, float]:
    """Losses in use -> weight."""
    return {k: v for k, v in dataclasses.asdict(self).items() if v}


def over_views(
  name: str,
  features: Mapping[str, jax.Array],
  *,
  label: Mapping[str, jax.Array],
  merge: bool = False,
  circle_gamma: float = 32.0,
  prototype: jax.Array | None = None,
) -> jax.Array:
  """One loss, summed over views or of all views together, before its weight.

  Args:
    name: a field of `Weights` but 'info_nce', which compares views.
    features: view -> [B, D], in the order of the reference's passes.
    label: view -> [B] int.
    merge: one loss over the concatenated views.
    circle_gamma: scale of the circle loss.
    prototype: [D, K], of the losses in `WITH_PROTOTYPES`.

  Returns:
    Scalar.

  Raises:
    ValueError: an unknown name.
  """
  size = len(next(iter(features.values())))  # B of one view, also when merged.

  def term(x, y):
    match name:
      case 'circle':
        return contrastive.circle_loss(x, y, gamma=circle_gamma) / size
      case 'triplet':
        return triplet.multi_similarity_triplet_loss(x, y)
      case 'contrast':
        return contrastive.contrastive_loss(x, y)
      case 'lifted':
        return contrastive.lifted_loss(x, y)
      case 'arcface':
        return classification.arcface_loss(x, y, prototype)
      case 'cosface':
        return classification.cosface_loss(x, y, prototype)
      case 'sphere':
        return classification.sphere_loss(x, y, prototype) / size
      case _:
        raise ValueError(f'no metric loss {name!r} over views')

  if merge:
    return term(
      jnp.concatenate(list(features.values())),
      jnp.concatenate([label[view] for view in features]),
    )
  terms = {view: term(x, label[view]) for view, x in features.items()}
  if name == 'sphere' and 'google' in terms:
    terms['google'] *= size  # reference-bug: this one term is not divided.
  return sum(terms.values())


def against_first(
  features: Mapping[str, jax.Array],
  *,
  place: jax.Array,
  temperature: float,
) -> jax.Array:
  """Symmetric InfoNCE between the first view and every other one, summed.

  Args:
    features: view -> [B, D]; row i of every view shows the same place.
    place: [B] int, of the rows.
    temperature: of `contrastive.info_nce_loss`.

  Returns:
    Scalar.
  """
  first, *others = features.values()
  return sum(
    contrastive.info_nce_loss(first, x, temperature=temperature, place=place)
    for x in others
  )
