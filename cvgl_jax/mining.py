"""Mining: features for the plans that ask what looks alike.

It stands between the loop and a plan. At the start of an epoch the plan is asked
for neighbours (`find_neighbours`), and gets features to find them in:

* 'bank': those that the train step left in the state at the last visit of every
  picture;
* 'embed': new ones of the weights as they are.

What it finds goes into the state, so that a run that stops in the middle of an
epoch goes on with the same batches: the bank has changed by then.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cvgl_jax import sharding
from cvgl_jax import state as state_lib

# Rows of a bank that travel from the devices at a time.
_CHUNK = 8192

Embed = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Miner:
  """A plan with the data that it is about.

  Attributes:
    plan: see `data/plans.py`, `data/global_mining.py`.
    splits: view -> split of the training data.
    batch_size: of the plan.
    seed: of the run.
  """

  plan: Any
  splits: Mapping[str, Any]
  _: dataclasses.KW_ONLY
  batch_size: int
  seed: int

  def initial(
    self,
    method: Any,
    variables: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
  ) -> state_lib.Mining | None:
    """The state before the first step, None if the plan mines nothing.

    Args:
      method: gives the width of the features.
      variables: of it, arrays or shapes.
      sizes: view -> (height, width) of the pictures that it sees.
    """
    if not self.plan.mining:
      return None
    bank = {}
    for view in self.plan.views if self.plan.mining == 'bank' else ():
      image = jax.ShapeDtypeStruct((1, *sizes[view], 3), jnp.uint8)
      embed = functools.partial(method.embed, view=view)
      width = jax.eval_shape(embed, variables, image).shape[1]
      shape = (len(self.splits[view]), width)
      bank[view] = jnp.zeros(shape, self.plan.bank_dtype)
    shape = self.plan.neighbours_shape(self.splits)
    return state_lib.Mining(bank, jnp.full(shape, -1, jnp.int32))

  def mine(
    self, state: state_lib.State, epoch: int, embed: Embed
  ) -> state_lib.State:
    """The state for the first step of an epoch, with its neighbours.

    All processes must call it together; each of them finds the same.

    Args:
      state: after the last step of the epoch before.
      epoch: that begins, from 0.
      embed: (split, view=..., flip=...) -> [N, D] float32 of unit norm, with
        the variables of `state`.

    Raises:
      ValueError: features that are not finite, or what the plan cannot find.
    """
    if not self.plan.mining:
      return state
    start = time.monotonic()

    def features(view: str, rows: np.ndarray | None) -> np.ndarray:
      if self.plan.mining == 'bank':
        return rows_of(state.mining.bank[view], rows)
      split = self.splits[view]
      split = split if rows is None else split.select(rows)
      return embed(split, view=view, flip=False)

    found = self.plan.find_neighbours(
      self.splits, features, **self._epoch(epoch)
    )
    if found is None:
      return state
    old = state.mining.neighbours
    neighbours = jax.make_array_from_callback(
      old.shape, old.sharding, lambda index: found[index].astype(old.dtype)
    )
    logging.info(
      'epoch %d: neighbours %s mined in %.1f s',
      epoch,
      list(old.shape),
      time.monotonic() - start,
    )
    return state.replace(mining=state.mining.replace(neighbours=neighbours))

  def rows(self, state: state_lib.State, epoch: int) -> np.ndarray:
    """The plan of an epoch, int [steps, batch, slots], after `mine`."""
    neighbours = None
    if self.plan.mining:
      neighbours = rows_of(state.mining.neighbours)
    return self.plan.rows(
      self.splits, neighbours=neighbours, **self._epoch(epoch)
    )

  def _epoch(self, epoch: int) -> dict[str, int]:
    return {'batch_size': self.batch_size, 'seed': self.seed, 'epoch': epoch}


def rows_of(array: jax.Array, rows: np.ndarray | None = None) -> np.ndarray:
  """Rows of an array on the host, the same on every process.

  Args:
    array: [N, D] on a mesh, in any sharding.
    rows: which; None: all.

  Returns:
    [n, D]; bfloat16 becomes float32.
  """
  dtype = np.float32 if array.dtype == jnp.bfloat16 else array.dtype
  if rows is None:
    if array.is_fully_replicated and array.dtype == dtype:
      return np.asarray(array)
    rows = np.arange(len(array))
  take = _take(array.sharding.mesh, np.dtype(dtype))
  chunk = min(_CHUNK, max(len(rows), 1))
  whole = np.empty((len(rows), array.shape[1]), dtype)
  for start in range(0, len(rows), chunk):
    part = rows[start : start + chunk]
    # One shape, so that it is compiled once.
    padded = np.resize(part, chunk).astype(np.int32)
    whole[start : start + chunk] = np.asarray(take(array, padded))[: len(part)]
  return whole


@functools.cache
def _take(mesh: jax.sharding.Mesh, dtype: np.dtype) -> Callable:
  return jax.jit(
    lambda array, rows: array[rows].astype(dtype),
    out_shardings=sharding.replicated(mesh),
  )
