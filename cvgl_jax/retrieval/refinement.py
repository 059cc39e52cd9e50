"""PFED's multi-view refinement of one place (MobileGeo), for jit and vmap.

Of many views of a place it picks few that agree with the others and differ
among themselves, and fuses these. `multiview.refine_by_place` runs it for every
place. The published text says what it does, not how: the formulas in `refine`
are a definition. Always report its results beside those of the plain mean.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cvgl_jax.retrieval import features

Score = Literal['mi', 'dist_mean', 'mean']
Diversity = Literal['feature', 'pose']

# Correlations are kept this far from 1, where mutual information is infinite.
_MARGIN = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
  """How views are picked and fused; see `refine` for the formulas.

  Attributes:
    k: views that are picked, at most.
    importance_weight: lambda, of importance against novelty, 0..1.
    sharpness: beta, of the weights by importance; 0 weighs all alike.
    score: what makes a view important: 'mi', its mutual information with the
      other views; 'dist_mean', its distance to their mean; 'mean' picks
      nothing and averages all.
    diversity: what makes a view new: its 'feature', or its 'pose'.

  Raises:
    ValueError: a value out of range.
  """

  k: int = 10
  importance_weight: float = 0.5
  sharpness: float = 1.0
  score: Score = 'mi'
  diversity: Diversity = 'feature'

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f'k={self.k}: expected at least 1')
    if not 0 <= self.importance_weight <= 1:
      raise ValueError(
        f'importance_weight={self.importance_weight}: expected 0 to 1'
      )
    if not 0 <= self.sharpness < float('inf'):
      raise ValueError(f'sharpness={self.sharpness}: expected 0 or more')
    if self.score not in ('mi', 'dist_mean', 'mean'):
      raise ValueError(
        f"score {self.score!r}: expected 'mi', 'dist_mean' or 'mean'"
      )
    if self.diversity not in ('feature', 'pose'):
      raise ValueError(
        f"diversity {self.diversity!r}: expected 'feature' or 'pose'"
      )


class Refined(NamedTuple):
  """One place.

  Attributes:
    feature: [D] float32 of unit norm.
    selected: [S] int32, S = min(k, N) (N for the score 'mean'): the views in
      the order in which they were picked, then -1.
    weights: [S] float32, summing to 1; 0 where `selected` is -1.
    importance: [N] float32, 0..1; 0 for views that are not valid.
  """

  feature: jax.Array
  selected: jax.Array
  weights: jax.Array
  importance: jax.Array


def refine(
  views: jax.Array,
  valid: jax.Array,
  *,
  settings: Refinement,
  altitude_m: jax.Array | None = None,
  azimuth_deg: jax.Array | None = None,
) -> Refined:
  """Picks views of one place and fuses them; pure, for jit and vmap.

  Over the valid views f_j, with M of `mutual_information` and minmax(v) =
  (v - min v) / (max v - min v + 1e-8):

    importance I_j = minmax(mean_{l != j} M_jl)               score 'mi'
                   = minmax(|f_j - mean f|)                   'dist_mean'
    novelty V_jl   = 1 - M_jl / max M                         'mi', 'feature'
                   = |f_j - f_l|                              'dist_mean', 'feature'
                   = (2 |h_j - h_l| / (max h - min h) + angle_jl / 180) / 3   'pose'
    S = [argmax I]; until min(k, N) are picked, add the j outside S with the
        largest lambda I_j + (1 - lambda) min_{l in S} V_jl (the first of equals)
    g = n(sum_{j in S} w_j n(f_j)),  w = softmax(beta I_S)

  The score 'mean' is g = n(mean n(f)).

  Args:
    views: [N, D] float32 features, none of them zero.
    valid: [N] bool, which rows are views; at least one.
    settings: static under jit.
    altitude_m: [N] float32 h, for the diversity 'pose'.
    azimuth_deg: [N] float32, for the diversity 'pose'.

  Raises:
    ValueError: the diversity 'pose' without poses.

  Source: specification of PFED's refinement; the greedy frame and 'dist_mean'
    follow a public re-implementation of MobileGeo for SUES-200.
  """
  views, valid = jnp.asarray(views), jnp.asarray(valid)
  count = len(views)
  unit = views / jnp.where(
    valid[:, None], jnp.linalg.norm(views, axis=1, keepdims=True), 1.0
  )
  if settings.score == 'mean':
    weights = valid / valid.sum()
    selected = jnp.where(valid, jnp.arange(count, dtype=jnp.int32), -1)
    return Refined(_fuse(unit, weights), selected, weights, jnp.zeros(count))

  importance, novelty = _importance_and_novelty(views, valid, settings.score)
  if settings.diversity == 'pose':
    if altitude_m is None or azimuth_deg is None:
      raise ValueError(
        "diversity 'pose' needs altitude_m and azimuth_deg of every view"
      )
    novelty = _pose_distance(altitude_m, azimuth_deg, valid)
  size = min(settings.k, count)
  first = jnp.argmax(jnp.where(valid, importance, -jnp.inf)).astype(jnp.int32)
  selected = jnp.full(size, -1, jnp.int32).at[0].set(first)

  def pick(step, state):
    selected, left, nearest = state
    gain = settings.importance_weight * importance
    gain += (1 - settings.importance_weight) * nearest
    best = jnp.argmax(jnp.where(left, gain, -jnp.inf)).astype(jnp.int32)
    # With nothing left the entry stays -1 and the rest is as it was.
    selected = selected.at[step].set(jnp.where(left.any(), best, -1))
    nearest = jnp.minimum(nearest, novelty[best])
    return selected, left.at[best].set(False), nearest

  left = valid.at[first].set(False)
  selected, _, _ = jax.lax.fori_loop(
    1, size, pick, (selected, left, novelty[first])
  )
  logits = jnp.where(
    selected >= 0, settings.sharpness * importance[selected], -jnp.inf
  )
  weights = jax.nn.softmax(logits)
  return Refined(_fuse(unit[selected], weights), selected, weights, importance)


def mutual_information(views: jax.Array) -> jax.Array:
  """M_jl = -1/2 ln(1 - r_jl^2) of views as jointly Gaussian variables.

  Args:
    views: [N, D] float32; r_jl is the correlation of two rows over their D
      components, kept within 1 - 1e-6.

  Returns:
    [N, N] float32 nats, 0 on the diagonal.
  """
  centred = views - views.mean(axis=1, keepdims=True)
  norm = jnp.linalg.norm(centred, axis=1, keepdims=True)
  centred = centred / jnp.where(norm > 0, norm, 1.0)
  correlation = features.similarity_matrix(centred, centred)
  correlation = jnp.clip(correlation, -1 + _MARGIN, 1 - _MARGIN)
  # 1 - r^2 in factors, which keep their digits where r is close to 1.
  information = -0.5 * (jnp.log1p(-correlation) + jnp.log1p(correlation))
  return jnp.where(jnp.eye(len(views), dtype=bool), 0.0, information)


def _importance_and_novelty(
  views: jax.Array, valid: jax.Array, score: Score
) -> tuple[jax.Array, jax.Array]:
  """[N] and [N, N]; what stands in rows that are not valid has no meaning."""
  if score == 'mi':
    both = valid[:, None] & valid[None]
    information = jnp.where(both, mutual_information(views), 0.0)
    # The diagonal is 0, so a sum over all is one over the others.
    relevance = information.sum(axis=1) / jnp.maximum(valid.sum() - 1, 1)
    largest = information.max()
    novelty = 1 - information / jnp.where(largest > 0, largest, 1.0)
    return _minmax(relevance, valid), novelty
  mean = jnp.where(valid[:, None], views, 0.0).sum(axis=0) / valid.sum()
  distance = jnp.linalg.norm(views - mean[None], axis=1)
  novelty = jnp.linalg.norm(views[:, None] - views[None], axis=2)
  return _minmax(distance, valid), novelty


def _minmax(values: jax.Array, valid: jax.Array) -> jax.Array:
  low = jnp.where(valid, values, jnp.inf).min()
  high = jnp.where(valid, values, -jnp.inf).max()
  # Rounding may take the smallest below 0.
  scaled = jnp.maximum((values - low) / (high - low + 1e-8), 0.0)
  return jnp.where(valid, scaled, 0.0)


def _pose_distance(
  altitude_m: jax.Array, azimuth_deg: jax.Array, valid: jax.Array
) -> jax.Array:
  """[N, N], 0..1."""
  low = jnp.where(valid, altitude_m, jnp.inf).min()
  high = jnp.where(valid, altitude_m, -jnp.inf).max()
  span = jnp.where(high > low, high - low, 1.0)
  climb = jnp.abs(altitude_m[:, None] - altitude_m[None]) / span
  turn = jnp.abs(azimuth_deg[:, None] - azimuth_deg[None]) % 360
  turn = jnp.minimum(turn, 360 - turn)
  return (2 * climb + turn / 180) / 3


def _fuse(unit: jax.Array, weights: jax.Array) -> jax.Array:
  total = jnp.einsum('nd,n->d', unit, weights, precision='highest')
  return total / jnp.linalg.norm(total)
