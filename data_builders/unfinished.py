"""Folders of builds that have not ended: who writes them, which are left over.

TFDS builds in `incomplete.XXXXXX_<version>` and renames it in the end. A build
that is killed leaves that folder behind.
"""

import json
import os
import pathlib
import shutil
import socket
from typing import Any

from absl import logging

OWNER_FILE = 'building.json'


def mark(folder: pathlib.Path) -> None:
  """Says in an unfinished folder which process writes it."""
  owner = {'host': socket.gethostname(), 'pid': os.getpid()}
  (folder / OWNER_FILE).write_text(json.dumps(owner))


def unmark(folder: pathlib.Path) -> None:
  """Removes the mark, before the folder gets its final name."""
  (folder / OWNER_FILE).unlink(missing_ok=True)


def remove_leftovers(folder: pathlib.Path) -> None:
  """Removes what dead builds of the version directory `folder` left behind.

  Raises:
    ValueError: a living process of this machine is building it.
  """
  for left in sorted(folder.parent.glob(f'incomplete.*_{folder.name}')):
    owner = _owner(left)
    if owner and owner['host'] != socket.gethostname():
      logging.warning(
        '%s is of a build on %s; delete it if that build is over',
        left,
        owner['host'],
      )
    elif owner and _is_alive(owner['pid']):
      raise ValueError(
        f'process {owner["pid"]} is building {folder} now (in {left}); wait '
        'for it or stop it'
      )
    else:
      logging.info('removing %s, left by a build that was stopped', left)
      shutil.rmtree(left, ignore_errors=True)


def _owner(folder: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json.loads((folder / OWNER_FILE).read_text())
  except (OSError, ValueError):
    return None


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
