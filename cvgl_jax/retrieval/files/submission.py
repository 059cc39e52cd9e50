"""Answer files of the University-160k challenges.

Line i of `answer.txt` holds the ten best gallery labels of query i, best first,
with a newline after every line. A label is a file name without its extension;
the lines follow the challenge's list of query names. The labels of a line are
joined by a TAB (University-160k) or a blank (University-160k-WX). The servers
take the file zipped.

Sources: layumi/University1652-Baseline `test_160k.py`;
fengtt42/ACMMM24-Solution-MCGF (the blank).
"""

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Literal

import numpy as np

Challenge = Literal['160k', '160k_wx']

LABELS_PER_LINE = 10
SEPARATORS: dict[Challenge, str] = {'160k': '\t', '160k_wx': ' '}


def challenge_answer(
  top_rows: np.ndarray,
  *,
  query_paths: Sequence[str],
  gallery_paths: Sequence[str],
  names: Sequence[str],
  challenge: Challenge = '160k',
) -> str:
  """The text of a challenge's answer file.

  Args:
    top_rows: [Q, K] gallery rows of every query, best first, K >= 10
      (`search.top_k(...).rows`, re-ranked or not); the first ten are written.
    query_paths: [Q] paths of the query pictures.
    gallery_paths: [G] paths of the gallery pictures.
    names: file names of the queries in the order of the answer; see
      `read_names`.
    challenge: '160k' or '160k_wx'.

  Raises:
    ValueError: unknown challenge, fewer than ten rows, lengths that do not
      fit; see `query_order` and `answer`.
  """
  if challenge not in SEPARATORS:
    raise ValueError(
      f'challenge {challenge!r}: expected one of {sorted(SEPARATORS)}'
    )
  top_rows = np.asarray(top_rows)
  if top_rows.ndim != 2 or top_rows.shape[1] < LABELS_PER_LINE:
    raise ValueError(
      f'top_rows of shape {top_rows.shape}: an answer needs '
      f'{LABELS_PER_LINE} gallery rows a query; search with '
      f'k={LABELS_PER_LINE} in the whole gallery'
    )
  if len(top_rows) != len(query_paths):
    raise ValueError(
      f'{len(top_rows)} rows of results for {len(query_paths)} query paths'
    )
  order = query_order(query_paths, names)
  labels = [label(path) for path in gallery_paths]
  return answer(
    top_rows[order, :LABELS_PER_LINE], labels, separator=SEPARATORS[challenge]
  )


def answer(
  top_rows: np.ndarray, labels: Sequence[str], *, separator: str = '\t'
) -> str:
  """The text of an answer file, for any number of labels a line.

  Args:
    top_rows: [Q, K] gallery rows, best first (`search.top_k(...).rows` with
      k=10).
    labels: [G] label of every gallery row; see `label`.
    separator: between labels.

  Raises:
    ValueError: rows that no gallery entry has, a row twice for one query,
      labels that would break the lines, or a repeated label.
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
  ordered = np.sort(top_rows, axis=1)
  twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
  if twice.any():
    raise ValueError(
      f'top_rows: query {np.argmax(twice)} lists a gallery row twice'
    )
  broken = [
    name for name in labels if separator in name or '\n' in name or '\r' in name
  ]
  if broken or '' in labels:
    raise ValueError(f'labels: {(broken or [""])[0]!r} cannot stand in a line')
  if len(set(labels)) < len(labels):
    raise ValueError('labels: some gallery rows share a label')
  lines = (separator.join(labels[row] for row in rows) for rows in top_rows)
  return ''.join(line + '\n' for line in lines)


def label(path: str) -> str:
  """The label of a gallery picture: its file name without the extension."""
  return pathlib.PurePosixPath(path.replace('\\', '/')).stem


def read_names(path: str) -> list[str]:
  """File names of a challenge's list, such as `query_drone_name.txt`.

  Args:
    path: text file, a file name a line; blank lines at the end do not count.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no names, a blank line between names, or a name that comes
      twice; names file and line.
  """
  text = pathlib.Path(path).read_text(encoding='utf-8-sig')
  names = [line.strip() for line in text.rstrip().splitlines()]
  if not names:
    raise ValueError(f'{path}: no names; expected a file name a line')
  seen = {}
  for number, name in enumerate(names, start=1):
    if not name:
      raise ValueError(f'{path}: line {number} is blank')
    if name in seen:
      raise ValueError(
        f'{path}: line {number} repeats {name!r} of line {seen[name]}'
      )
    seen[name] = number
  return names


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
  """Writes an answer file that is never seen half written.

  Args:
    path: of the file. One that ends in `.zip` holds `answer.txt`, as the
      servers take it.
    text: see `challenge_answer`.

  Raises:
    OSError: the folder does not exist or cannot be written; an older file
      stays as it was.
  """
  temporary = f'{path}.{os.getpid()}.tmp'
  # Newlines as they are, on every system: servers compare lines.
  content = text.encode()
  try:
    with open(temporary, 'wb') as file:
      if path.endswith('.zip'):
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
          # With a fixed date, so that equal answers are equal files.
          archive.writestr(zipfile.ZipInfo('answer.txt'), content)
      else:
        file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)
