"""Moving average of the parameters.

Source: layumi/University1652-Baseline, utils.py, update_average.
"""

from typing import Any

import jax
import optax


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
    A tree like `ema`.
  """

  return optax.incremental_update(new, ema, step_size=1 - decay)
