"""Sharpness-aware minimisation (SAM, ASAM) around any optimiser.

Source: FRGeo-Code, criterion/sam.py, the same as in TransGeo2022; Foret et al.
2021, Kwon et al. 2021.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def sharpness_aware(
  inner: optax.GradientTransformation,
  *,
  rho: float,
  adaptive: bool = False,
  eps: float = 1e-12,
) -> optax.GradientTransformationExtraArgs:
  """The inner optimiser, fed with the gradient at a climbed point.

  With s = |w| (adaptive) or 1:  e = s^2 g * rho / (||s g|| + eps), the norm
  over all parameters; the inner optimiser gets the gradient at w + e, and
  starts from w, where its weight decay acts too.

  Args:
    inner: the optimiser that steps. Clipping of the second gradient belongs
      in here; a clip chained before this transform acts on the first one.
    rho: length of the climb; the references use 0.05 (SAM) and 2.5 (ASAM).
    adaptive: ASAM: the climb scales with the size of each weight.
    eps: added to the norm, so that a zero gradient climbs nowhere.

  Returns:
    A transformation whose `update(grads, state, params, grad_fn=f)` needs
    f: params -> gradients, called once at the climbed parameters. The state is
    the inner state alone.

  Example:
    tx.update(grads, state, params, grad_fn=jax.grad(loss))

  Differs: batch statistics and metrics are those of the first pass, because
    `grad_fn` returns gradients only; torch updates batch statistics twice.
  """
  if rho < 0:
    raise ValueError(f'SAM needs rho >= 0, got {rho}')
  inner = optax.with_extra_args_support(inner)

  def update(
    grads: Any,
    state: Any,
    params: Any = None,
    *,
    grad_fn: Callable[[Any], Any] | None = None,
    **extra: Any,
  ):
    if grad_fn is None or params is None:
      raise ValueError(
        'SAM needs tx.update(grads, state, params, grad_fn=f) with '
        'f: params -> gradients'
      )
    climbed, _ = climb(grads, params, rho=rho, adaptive=adaptive, eps=eps)
    return inner.update(
      grad_fn(climbed), state, params, grad_fn=grad_fn, **extra
    )

  return optax.GradientTransformationExtraArgs(inner.init, update)


def climb(
  grads: Any,
  params: Any,
  *,
  rho: float,
  adaptive: bool = False,
  eps: float = 1e-12,
) -> tuple[Any, jax.Array]:
  """The point w + e where SAM takes its second gradient.

  Args:
    grads: the gradient at `params`, of the global batch.
    params: tree of arrays.
    rho, adaptive, eps: see `sharpness_aware`.

  Returns:
    (w + e, ||s g||): a tree like `params`, and the norm over all of it.
  """
  scaled = grads
  if adaptive:
    scaled = jax.tree.map(lambda g, w: jnp.abs(w) * g, grads, params)
  norm = optax.tree.norm(scaled)
  length = rho / (norm + eps)

  def move(g, w):
    e = w * w * g if adaptive else g
    return w + (e * length.astype(e.dtype)).astype(w.dtype)

  return jax.tree.map(move, grads, params), norm
