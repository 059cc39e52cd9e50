"""The train state and the train step, both free of data, files and loops.

`make_train_step` returns a pure function (state, batch) -> (state, metrics),
which the loop jits; it can be tested and timed without a data set.
"""

from collections.abc import Callable, Mapping
from typing import Any

import einops
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cvgl_jax.optim import ema


@flax.struct.dataclass
class Mining:
  """What a plan that mines finds again in the next epoch, or after a stop.

  Attributes:
    bank: view -> [N, D] unit features of every picture at its last visit, zero
      before the first; {} if the plan does not want them.
    neighbours: int32, what the plan found for the epoch that runs.
  """

  bank: dict[str, jax.Array]
  neighbours: jax.Array


@flax.struct.dataclass
class State:
  """Everything that a step changes.

  Attributes:
    step: int32 scalar, number of updates made.
    params: parameters, float32.
    mutable: other collections of the modules ({'batch_stats': ...}).
    opt_state: state of the optimiser.
    ema: moving average of `params`, or None.
    mining: what a plan that mines remembers, or None.
    teacher: variables of another network that the loss learns from, or None. No
      step changes them and no checkpoint holds them: they are those of the run
      that `config.teacher` names.
  """

  step: jax.Array
  params: Any
  mutable: Any
  opt_state: Any
  ema: Any
  mining: Mining | None = None
  teacher: Any = None


def make_state(
  variables: Mapping[str, Any],
  tx: optax.GradientTransformation,
  *,
  ema: bool,
  mining: Mining | None = None,
) -> State:
  """The state before the first step, from a method's variables."""
  variables = dict(variables)
  params = variables.pop('params')
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    mutable=variables,
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
    mining=mining,
  )


def make_train_step(
  method: Any,
  tx: optax.GradientTransformationExtraArgs,
  *,
  augment: Callable[[jax.Array, jax.Array, str], jax.Array],
  seed: int,
  micro_batches: int = 1,
  ema_decay: float | None = None,
) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
  """Builds the train step.

  Randomness is a pure function of (seed, step, position in the batch), so a
  resumed run repeats the uninterrupted one and no key lives in the state.

  Args:
    method: see `methods/contract.py`.
    tx: optimiser; its `update` may call `grad_fn(params)` (SAM).
    augment: (key, images uint8 [B, H, W, 3], view) -> float32 [B, H, W, 3].
    seed: of all randomness of the run.
    micro_batches: split the backbone's work into this many passes; the loss
      still sees the whole batch (GradCache), so in-batch negatives are kept.
    ema_decay: of the moving average of the parameters; None for none.

  Returns:
    (state, batch {view: {'image', 'label', 'place', 'row'}}) -> (state,
    metrics). 'row' is looked at where the state has a bank of features.
  """
  if micro_batches > 1 and not hasattr(method, 'loss_from_features'):
    raise ValueError(
      f'config.train.micro_batches: {type(method).__module__} cannot split its '
      'loss from its features; use 1'
    )

  def gradients(params, mutable, batch, rng, step):
    if micro_batches > 1:
      return cached_gradients(
        method, params, mutable, batch, rng, step, micro_batches=micro_batches
      )
    (loss, aux), grads = jax.value_and_grad(method.loss, has_aux=True)(
      params, mutable, batch, rng, step
    )
    return loss, aux.mutable, aux.metrics, grads, aux.embeddings

  def train_step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    augment_rng, first_rng, second_rng = jax.random.split(rng, 3)
    batch = augment_batch(batch, augment, augment_rng)
    before = state.mutable
    if state.teacher is not None:
      before = {**before, 'teacher': state.teacher}
    loss, mutable, metrics, grads, features = gradients(
      state.params, before, batch, first_rng, state.step
    )
    mutable = {key: mutable[key] for key in state.mutable}

    def grad_fn(params):
      """The gradient elsewhere (SAM); statistics and metrics are pass one's."""
      return gradients(params, before, batch, second_rng, state.step)[3]

    mining = state.mining
    if mining is not None:
      mining = mining.replace(bank=update_bank(mining.bank, batch, features))

    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, grad_fn=grad_fn
    )
    params = optax.apply_updates(state.params, updates)
    new_ema = None
    if ema_decay is not None:
      new_ema = ema.update(state.ema, params, decay=ema_decay)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      # Finite only if the update was: a step that breaks is never saved.
      'param_norm': optax.tree.norm(params),
      **metrics,
    }
    state = state.replace(
      step=state.step + 1,
      params=params,
      mutable=mutable,
      opt_state=opt_state,
      ema=new_ema,
      mining=mining,
    )
    return state, metrics

  return train_step


def augment_batch(
  batch: Mapping[str, Mapping[str, jax.Array]],
  augment: Callable,
  rng: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
  """Augments the pictures of every view."""
  return {
    view: {**slot, 'image': augment(rng, slot['image'], view)}
    for view, slot in batch.items()
  }


def update_bank(
  bank: Mapping[str, jax.Array],
  batch: Mapping[str, Mapping[str, jax.Array]],
  features: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Writes the features of a batch over those of the last visits.

  Of a picture that is in the batch twice the last one's are kept, on any device.

  Args:
    bank: view -> [N, D].
    batch: view -> {'row': int32 [B], the pictures' places in the bank}.
    features: view -> [B, D], of any norm; NaN where it is zero.

  Raises:
    ValueError: there are no such features of a view (in tracing).
  """
  updated = {}
  for view, old in bank.items():
    new = features[view] if isinstance(features, Mapping) else None
    if getattr(new, 'shape', (0, 0))[1:] != old.shape[1:]:
      raise ValueError(
        f'config.plan mines features of view {view!r} of {old.shape[1]} '
        f'numbers, but the method gives {jax.tree.map(jnp.shape, features)}'
      )
    new = jax.lax.stop_gradient(new).astype(jnp.float32)
    new /= jnp.linalg.norm(new, axis=1, keepdims=True)
    row, size = batch[view]['row'], len(new)
    again = (row[:, None] == row[None]) & jnp.triu(
      jnp.ones((size, size), bool), 1
    )
    row = jnp.where(again.any(axis=1), len(old), row)  # which is nowhere
    updated[view] = old.at[row].set(new.astype(old.dtype), mode='drop')
  return updated


def cached_gradients(
  method: Any,
  params: Any,
  mutable: Any,
  batch: Any,
  rng: jax.Array,
  step: jax.Array,
  *,
  micro_batches: int,
) -> tuple[jax.Array, Any, dict[str, jax.Array], Any, Any]:
  """Loss and gradient with the memory of one micro-batch.

  Three phases: features of every micro-batch without gradient; loss of the
  whole batch and its gradient with respect to the features; back-propagation
  through each micro-batch again. The result is the exact gradient of the loss
  of features made micro-batch by micro-batch: batch norm sees micro-batches,
  dropout uses the same key in both passes.

  Returns:
    loss, mutable collections after all micro-batches, metrics, gradient, and
    the features of the whole batch.

  Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
  Memory Limited Setup" (luyug/GradCache), own implementation.
  """
  # Strided, so that every micro-batch spans all devices.
  micro = jax.tree.map(
    lambda x: einops.rearrange(x, '(b m) ... -> m b ...', m=micro_batches),
    batch,
  )
  keys = jax.random.split(rng, micro_batches)

  def forward(carry, inputs):
    part, key = inputs
    features, carry = method.features(params, carry, part, key)
    return carry, features

  after, features = jax.lax.scan(forward, mutable, (micro, keys))
  whole = jax.tree.map(
    lambda x: einops.rearrange(x, 'm b ... -> (b m) ...'), features
  )
  (loss, metrics), (grads, cotangents) = jax.value_and_grad(
    method.loss_from_features, argnums=(0, 1), has_aux=True
  )(params, whole, batch, step)
  cotangents = jax.tree.map(
    lambda x: einops.rearrange(x, '(b m) ... -> m b ...', m=micro_batches),
    cotangents,
  )

  def backward(total, inputs):
    part, key, cotangent = inputs
    _, pull, _ = jax.vjp(
      lambda p: method.features(p, mutable, part, key), params, has_aux=True
    )
    return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

  grads, _ = jax.lax.scan(backward, grads, (micro, keys, cotangents))
  return loss, after, metrics, grads, whole
