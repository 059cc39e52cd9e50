"""Files of the report: read with clear errors, and their names."""

import json
import pathlib
import re
from typing import Any


def read_json(path: pathlib.Path) -> Any:
  """A JSON file; ValueError with its name where it is damaged."""
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: not JSON ({error})') from error


def safe_name(text: str) -> str:
  """`text` as a part of a file name or of an address on the page."""
  return re.sub(r'[^A-Za-z0-9_-]', '_', text)
