"""Asking a run to stop: SIGTERM, Ctrl-C, preemption of a host."""

import signal
import threading
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Stopped(Exception):
  """The run was asked to stop (SIGTERM, preemption) and saved its state."""


class StopSignal:
  """Whether somebody asked the run to stop; all hosts answer alike.

  One process listens to SIGTERM and Ctrl-C itself: the first one lets the step
  end and the state be saved, a second one ends at once. Several processes use
  the preemption service of jax.distributed, which agrees on a step.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._previous: dict[int, Any] = {}
    in_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and in_main:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    logging.info('asked to stop: saving after this step (again: at once)')
    self._asked.set()
    signal.signal(number, signal.SIG_DFL)

  def requested(self, step: int) -> bool:
    """The same answer on every process; call it once a step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked.is_set()

  def close(self) -> None:
    """Gives the signals back."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)
