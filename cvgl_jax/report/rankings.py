"""What the page shows of one evaluator's rankings: panels and failures."""

import csv
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cvgl_jax import writer
from cvgl_jax.data import stream, transforms
from cvgl_jax.report import figures, files

# What np.load raises on a cut or foreign file.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_TOP = 10  # gallery pictures in a panel
_LISTED_FAILURES = 20
# Title, description and number of panels of each group.
_GROUPS = (
  ('Best', 'Right at once, with the highest average precision.', 3),
  ('Random', 'Drawn without looking at the result.', 5),
  ('Worst', 'The right place is furthest down the list.', 5),
)


class Evaluation:
  """`eval/<name>.json` and the arrays beside it."""

  def __init__(self, path: pathlib.Path):
    self.name = path.stem
    self.summary = files.read_json(path)
    arrays = path.with_suffix('.npz')
    try:
      with np.load(arrays, allow_pickle=False) as file:
        self.arrays = {key: file[key] for key in file.files}
    except _UNREADABLE as error:
      raise ValueError(
        f'{arrays}: cannot be read ({error}); run `main.py evaluate` again'
      ) from error

  @property
  def anchor(self) -> str:
    return files.safe_name(self.name)


def failures(evaluation: Evaluation, folder: pathlib.Path) -> dict[str, Any]:
  """Queries that are not right at once, worst first, and a CSV of them all."""
  arrays = evaluation.arrays
  first, precision = arrays['first_rank'], arrays['average_precision']
  missed = np.flatnonzero(first != 0)
  # Orphans (-1) have nothing to find: they come last.
  distance = np.where(first < 0, -1, first)
  missed = missed[np.lexsort((precision[missed], -distance[missed]))]
  rows = []
  for query in missed:
    best = arrays['top_rows'][query, 0]
    rows.append(
      {
        'rank': int(first[query]) + 1 if first[query] >= 0 else 'none',
        'ap': f'{100 * precision[query]:.1f}',
        'place': int(arrays['query_place'][query]),
        'path': str(arrays['query_path'][query]),
        'best_place': int(arrays['gallery_place'][best]),
        'best_path': str(arrays['gallery_path'][best]),
      }
    )
  file = f'failures_{evaluation.anchor}.csv'
  text = io.StringIO()
  columns = ['rank', 'ap', 'place', 'path', 'best_place', 'best_path']
  table = csv.DictWriter(text, columns, lineterminator='\n')
  table.writeheader()
  table.writerows(rows)
  writer.replace_bytes(folder / file, text.getvalue().encode())
  shown = min(_LISTED_FAILURES, len(rows))
  return {
    'failures': rows[:shown],
    'failure_file': file,
    'failure_summary': (
      f'{len(rows):,} of {len(first):,} queries do not have their place on '
      f'rank 1; the {shown} worst:'
      if shown < len(rows)
      else f'{len(rows):,} of {len(first):,} queries do not have their place '
      'on rank 1.'
    ),
  }


def panels(
  evaluation: Evaluation,
  folder: pathlib.Path,
  open_split: Callable[[tuple[str, ...], str], stream.Split],
) -> list[dict[str, Any]]:
  """Ranking panels: query, top 10, and a right answer where there is none.

  Raises:
    ValueError: the data cannot be opened, or is not what was evaluated.
  """
  settings, arrays = evaluation.summary['settings'], evaluation.arrays
  names = tuple(settings['data_names'])
  query = _Pictures(open_split(names, settings['query_split']), arrays, 'query')
  gallery = _Pictures(
    open_split(names, settings['gallery_split']), arrays, 'gallery'
  )
  groups = []
  for (title, description, _), chosen in zip(
    _GROUPS, _choose(arrays), strict=True
  ):
    made = []
    for index in chosen:
      file = f'ranking_{evaluation.anchor}_{title.lower()}_{len(made)}.png'
      tiles = _tiles(arrays, int(index), query, gallery)
      writer.replace_bytes(folder / file, figures.ranking_panel(tiles))
      made.append({'file': file} | _panel_text(arrays, int(index)))
    if made:
      groups.append(
        {'title': title, 'description': description, 'panels': made}
      )
  return groups


def _choose(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
  """Queries of each group, of different places where there are enough."""
  first, precision = arrays['first_rank'], arrays['average_precision']
  place, margin = arrays['query_place'], arrays['top_scores'][:, 0]
  right = np.flatnonzero(first == 0)
  right = right[np.lexsort((-margin[right], -precision[right]))]
  wrong = np.flatnonzero(first > 0)
  wrong = wrong[np.lexsort((precision[wrong], -first[wrong]))]
  anyone = np.random.default_rng(0).permutation(len(first))
  chosen = []
  for order, (_, _, count) in zip((right, anyone, wrong), _GROUPS, strict=True):
    _, new_place = np.unique(place[order], return_index=True)
    order = order[np.sort(new_place)]
    chosen.append(order[:count])
  return chosen


class _Pictures:
  """Pictures of the queries or of the gallery of an evaluation."""

  def __init__(
    self, split: stream.Split, arrays: Mapping[str, np.ndarray], side: str
  ):
    self._split = split
    self._rows = arrays[f'{side}_row']
    self._paths = arrays[f'{side}_path']

  def __getitem__(self, index: int) -> np.ndarray:
    row, path = int(self._rows[index]), str(self._paths[index])
    if row >= len(self._split) or str(self._split.path[row]) != path:
      raise ValueError(
        f'{self._split.name} is not the one that was evaluated (row {row} was '
        f'{path}); run `main.py evaluate` again'
      )
    return transforms.decode(self._split.image_bytes(row), path)


def _tiles(arrays, index, query, gallery) -> list[figures.Tile]:
  place = arrays['query_place'][index]
  tiles = [
    figures.Tile(query[index], 'query', f'place {place}', figures.NEUTRAL)
  ]
  top = arrays['top_rows'][index][:_TOP]
  for rank, row in enumerate(top, 1):
    found = arrays['gallery_place'][row]
    right = found == place
    tiles.append(
      figures.Tile(
        gallery[row],
        f'{rank} {"✓" if right else "✗"}',
        f'place {found}',
        figures.RIGHT if right else figures.WRONG,
      )
    )
  if not (arrays['gallery_place'][top] == place).any():
    for row in np.flatnonzero(arrays['gallery_place'] == place)[:1]:
      tiles.append(
        figures.Tile(
          gallery[row], 'right answer', f'place {place}', figures.NEUTRAL
        )
      )
  return tiles


def _panel_text(arrays, index: int) -> dict[str, str]:
  first = int(arrays['first_rank'][index])
  path, place = arrays['query_path'][index], arrays['query_place'][index]
  rank = f'first right answer on rank {first + 1}'
  if first < 0:
    rank = 'no right answer in the gallery'
  precision = 100 * arrays['average_precision'][index]
  top = arrays['gallery_place'][arrays['top_rows'][index][:_TOP]]
  right = [str(i) for i, found in enumerate(top, 1) if found == place]
  return {
    'caption': f'{path}: {rank}, AP {precision:.1f} %.',
    'alt': (
      f'Query of place {place} and its {len(top)} best gallery pictures; right '
      f'on rank {", ".join(right) or "none of them"}.'
    ),
  }
