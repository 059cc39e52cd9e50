"""One progress line: a bar on a terminal, a line now and then in a log."""

import sys
import time

import tqdm
from absl import logging

LOG_EVERY_S = 15.0


class Progress:
  """Counts pictures towards a known total.

  On a terminal it is a tqdm bar with rate and time left. Anywhere else (a log
  file, a batch system) it writes one line when the work starts to take long,
  then one every 15 seconds, so that the log stays readable.
  """

  def __init__(self, title: str, total: int):
    self._title, self._total, self._done = title, total, 0
    self._start = self._last = time.monotonic()
    self._part = ''
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total, desc=title, unit=' pictures', dynamic_ncols=True
      )

  def part(self, name: str) -> None:
    """Names what is being worked on (the split)."""
    self._part = name
    if self._bar is not None:
      self._bar.set_description(f'{self._title} {name}', refresh=False)

  def add(self, count: int) -> None:
    """Counts `count` more pictures."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
      return
    now = time.monotonic()
    if now - self._last >= LOG_EVERY_S:
      self._last = now
      rate = self._done / (now - self._start)
      left_s = max(self._total - self._done, 0) / max(rate, 1e-9)
      logging.info(
        '%s %s: %d of %d pictures, %.1f/s, %s left',
        self._title,
        self._part,
        self._done,
        self._total,
        rate,
        _clock(left_s),
      )

  def close(self) -> float:
    """Ends the line; returns the seconds since the start."""
    if self._bar is not None:
      self._bar.close()
    return time.monotonic() - self._start


def _clock(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'
