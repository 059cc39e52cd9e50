"""Answer files of the University-160k challenges.

Line i of `answer.txt` holds the best gallery labels of query i, best first,
joined by a TAB, with a newline after every line. A label is a file name
without its extension; line order is the challenge's list of query names.

Source: layumi/University1652-Baseline `test_160k.py`.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np


def answer(
  top_rows: np.ndarray, labels: Sequence[str], *, separator: str = '\t'
) -> str:
  """The text of an answer file.

  Args:
    top_rows: [Q, K] gallery rows, best first (`search.top_k(...).rows` with
      k=10).
    labels: [G] label of every gallery row; see `label`.
    separator: between labels; the servers also take a blank.

  Raises:
    ValueError: rows that no gallery entry has, labels that would break the
      lines, or a repeated label.
  """
  top_rows = np.asarray(top_rows)
  if top_rows.ndim != 2 or not np.issubdtype(top_rows.dtype, np.integer):
    raise ValueError(
      f'top_rows: {top_rows.dtype} of shape {top_rows.shape}, expected '
      'integers of shape [queries, k]'
    )
  outside = (top_rows < 0) | (top_rows >= len(labels))
  if outside.any():
    raise ValueError(
      f'top_rows: row {top_rows[outside][0]} is not one of the {len(labels)} '
      'gallery rows'
    )
  broken = [name for name in labels if separator in name or '\n' in name]
  if broken or '' in labels:
    raise ValueError(f'labels: {(broken or [""])[0]!r} cannot stand in a line')
  if len(set(labels)) < len(labels):
    raise ValueError('labels: some gallery rows share a label')
  lines = (separator.join(labels[row] for row in rows) for rows in top_rows)
  return ''.join(line + '\n' for line in lines)


def label(path: str) -> str:
  """The label of a gallery picture: its file name without the extension."""
  return pathlib.PurePosixPath(path.replace('\\', '/')).stem


def query_order(paths: Sequence[str], names: Sequence[str]) -> np.ndarray:
  """Rows of the queries in the order of the challenge's list of file names.

  Args:
    paths: [Q] paths of the query pictures.
    names: lines of the list, such as `query_drone_name.txt`.

  Returns:
    int64, one row per name.

  Raises:
    ValueError: names without a picture, or pictures that share a file name.
  """
  rows = {}
  for row, path in enumerate(paths):
    name = pathlib.PurePosixPath(path.replace('\\', '/')).name
    if name in rows:
      raise ValueError(f'queries: two pictures are called {name!r}')
    rows[name] = row
  missing = [name for name in names if name not in rows]
  if missing:
    raise ValueError(
      f'{len(missing)} of {len(names)} listed names have no query picture '
      f'(first: {missing[0]!r})'
    )
  return np.array([rows[name] for name in names], np.int64)


def write(path: str, text: str) -> None:
  """Writes an answer file that is never seen half written."""
  temporary = f'{path}.{os.getpid()}.tmp'
  # Newlines as they are, on every system: servers compare lines.
  pathlib.Path(temporary).write_text(text, encoding='utf-8', newline='\n')
  os.replace(temporary, path)
