"""Moving average of the parameters.

Source: layumi/University1652-Baseline, utils.py, update_average.
"""

from typing import Any

import jax
import jax.numpy as jnp


def update(ema: Any, new: Any, *, decay: float | jax.Array) -> Any:
  """decay * ema + (1 - decay) * new, leaf by leaf.

  Give it parameters only. Batch statistics are averages already: evaluate the
  averaged parameters with the current ones.

  Args:
    ema: the averages, a tree of arrays; float32 is right also for bfloat16
      parameters, whose eight bits would lose a decay near 1.
    new: the current parameters, the same tree.
    decay: in 0 .. 1; 0 copies `new`, 1 keeps `ema`.

  Returns:
    A tree with the dtypes of `ema`.
  """

  def average(old, value):
    beta = jnp.asarray(decay, old.dtype)
    return beta * old + (1 - beta) * value.astype(old.dtype)

  return jax.tree.map(average, ema, new)
