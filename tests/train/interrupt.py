"""Runs a command line that gets a signal at an exact point.

  python -m tests.train.interrupt SIGNAL EVENT TEXT COUNT main.py train ...

Python announces what it is about to do to files (`sys.addaudithook`). The
signal is sent at the COUNT-th EVENT ('open', 'os.rename', ...) with TEXT in its
arguments, before it takes place. Nothing is polled and nothing slept, so the
point is the same on a machine of any speed.
"""

import os
import runpy
import sys


def main(argv: list[str]) -> None:
  """Sets the trap and runs the command in this process."""
  number, event, text, count, *command = argv
  left = int(count)

  def hook(name: str, arguments: tuple) -> None:
    nonlocal left
    if name == event and text in str(arguments):
      left -= 1
      if left == 0:
        os.kill(os.getpid(), int(number))

  sys.addaudithook(hook)
  sys.argv = command
  runpy.run_path(command[0], run_name='__main__')


if __name__ == '__main__':
  main(sys.argv[1:])
