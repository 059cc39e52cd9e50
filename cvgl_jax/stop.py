"""Asking a run to stop: SIGTERM, Ctrl-C, preemption of a host."""

import signal
import threading
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Stopped(Exception):
  """The run was asked to stop (SIGTERM, preemption) and saved its state."""


class StoppedAtEnd(Stopped):
  """The same, but it had come to its end: only what follows does not start."""


class StopSignal:
  """Whether somebody asked the run to stop; all hosts answer alike.

  One process listens to SIGTERM and Ctrl-C itself: the first one lets the step
  end and the state be saved, a second one ends at once. Several processes use
  the preemption service of jax.distributed, which agrees on a step.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._in_loop = False
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

  @property
  def asked(self) -> bool:
    """Whether a signal came to this process, the only one; stays after `close`.

    Several processes learn of a preemption by `requested` alone, of one in the
    last evaluation of a run in the first step of the next run.
    """
    return self._asked.is_set()

  def requested(self, step: int) -> bool:
    """The same answer on every process; call it once a step."""
    if jax.process_count() == 1:
      return self.asked
    # The service asks to stop after the last step it heard of, and at exactly
    # that step: after a notice that came before the loop, at "step 1", which a
    # resumed run never makes.
    reached = multihost_utils.reached_preemption_sync_point
    early = not self._in_loop and reached(1)
    self._in_loop = True
    return early or reached(step)

  def close(self) -> None:
    """Gives the signals back."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)
