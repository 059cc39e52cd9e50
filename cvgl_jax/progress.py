"""What a run says while it trains: means of the step metrics, speed, time left."""

import collections
import time
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging


class Progress:
  """Means of the step metrics, throughput and the time left."""

  def __init__(self, total_steps: int, pictures_per_step: int):
    self._total = total_steps
    self._pictures = pictures_per_step
    self._sums = collections.defaultdict(float)
    self._steps = 0
    self.restart()

  def restart(self) -> None:
    """Starts the clock anew (an evaluation is not training time)."""
    self._start, self._timed = time.monotonic(), 0

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Fetches the metrics of one step.

    Raises:
      FloatingPointError: one of them is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
      if not np.isfinite(value):
        raise FloatingPointError(
          f'step {step}: train/{name} is {value}. Stopped; the last checkpoint '
          'is from before this step. Start in a new --workdir with a lower '
          'config.optim.lr or with config.optim.clip_norm (config.init.workdir '
          'takes the best weights of this run)'
        )
      self._sums[name] += value
    self._steps += 1
    self._timed += 1

  def line(self, step: int) -> dict[str, float]:
    """Logs one line, on process 0; returns the means since the last one."""
    seconds = max(time.monotonic() - self._start, 1e-9)
    speed = self._timed / seconds
    means = {f'train/{k}': v / self._steps for k, v in self._sums.items()}
    left = (self._total - step) / max(speed, 1e-9)
    if jax.process_index() == 0:  # the numbers are the same on all
      logging.info(
        'step %d/%d  %.1f pictures/s  loss %.4f  time left %d:%02d',
        step,
        self._total,
        speed * self._pictures,
        means['train/loss'],
        *divmod(round(left), 60),
      )
    self._sums.clear()
    self._steps = 0
    self.restart()
    return means | {'train/pictures_per_s': speed * self._pictures}
