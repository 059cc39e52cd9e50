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
from cvgl_jax.data import flight, stream, transforms
from cvgl_jax.report import figures, files, panels

# What np.load raises on a cut or foreign file.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_TOP = 10  # gallery pictures in a panel
_TOP_WIDE = 5  # beside a panorama
_SHEET_ROWS = 3
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
    self.arrays = read_arrays(path.with_suffix('.npz'))

  @property
  def anchor(self) -> str:
    return files.safe_name(self.name)

  @property
  def views(self) -> tuple[str, str]:
    """What the queries and the gallery show."""
    settings = self.summary['settings']
    return tuple(
      flight.view_of(settings[f'{side}_split']) for side in ('query', 'gallery')
    )

  @property
  def framed(self) -> bool:
    """Whether frames mark the truth, as usual where panoramas are searched for
    or several pictures of the gallery show the place."""
    return 'panorama' in self.views or 'semi_positives' in self.arrays

  def right(self, query: int) -> np.ndarray:
    """Gallery entries that answer a query."""
    return self._listed('positives', query)

  def semi(self, query: int) -> np.ndarray:
    """Gallery entries that show the place of a query off their middle."""
    return self._listed('semi_positives', query)

  def _listed(self, name: str, query: int) -> np.ndarray:
    if name in self.arrays:
      rows = self.arrays[name][query]
      return rows[rows >= 0]
    if name == 'semi_positives':
      return np.zeros(0, np.int64)
    place = self.arrays['query_place'][query]
    return np.flatnonzero(self.arrays['gallery_place'] == place)


def read_arrays(
  path: pathlib.Path, *, again: str = 'main.py evaluate'
) -> dict[str, np.ndarray]:
  """Arrays of an .npz; ValueError with what writes it anew if it is damaged."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in file.files}
  except _UNREADABLE as error:
    raise ValueError(
      f'{path}: cannot be read ({error}); run `{again}` again'
    ) from error


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


def groups(
  evaluation: Evaluation,
  folder: pathlib.Path,
  pictures: Mapping[str, 'Pictures'],
) -> list[dict[str, Any]]:
  """Ranking panels: query, its best, and a right answer where there is none.

  Args:
    evaluation: what is shown.
    folder: of the report.
    pictures: 'query' and 'gallery'.

  Raises:
    ValueError: the data cannot be read, or is not what was evaluated.
  """
  made = []
  for (title, description, _), chosen in zip(
    _GROUPS, _choose(evaluation.arrays), strict=True
  ):
    stem = f'ranking_{evaluation.anchor}_{title.lower()}'
    draw = _sheet if evaluation.framed else _panels
    shown = draw(evaluation, [int(i) for i in chosen], pictures, stem, folder)
    if shown:
      group = {'title': title, 'description': description, 'panels': shown}
      made.append(group)
  return made


def _panels(evaluation, chosen, pictures, stem, folder) -> list[dict[str, str]]:
  """A picture a query; titles and frames say right or wrong."""
  made = []
  for index in chosen:
    file = f'{stem}_{len(made)}.png'
    tiles = _tiles(evaluation, index, pictures)
    writer.replace_bytes(folder / file, panels.ranking_panel(tiles))
    made.append({'file': file} | _panel_text(evaluation, index))
  return made


def _sheet(evaluation, chosen, pictures, stem, folder) -> list[dict[str, str]]:
  """One picture of a few queries; frames say what is true."""
  chosen = chosen[:_SHEET_ROWS]
  if not chosen:
    return []
  rows = [_framed_tiles(evaluation, index, pictures) for index in chosen]
  writer.replace_bytes(folder / f'{stem}.png', panels.sheet(rows))
  texts = [_panel_text(evaluation, index) for index in chosen]
  legend = 'Red frame: the right answer.'
  if 'semi_positives' in evaluation.arrays:
    legend += ' Green frame: shows the place too, off its middle.'
  return [
    {
      'file': f'{stem}.png',
      'alt': ' '.join(text['alt'] for text in texts),
      'caption': ' '.join([legend, *(text['caption'] for text in texts)]),
    }
  ]


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


class Pictures:
  """Pictures of the queries or of the gallery of an evaluation.

  Args:
    evaluation: of the pictures.
    side: 'query' or 'gallery'.
    open_split: (data set names, split name) -> split.

  Raises:
    ValueError: the data cannot be opened.
  """

  def __init__(
    self,
    evaluation: Evaluation,
    side: str,
    open_split: Callable[[tuple[str, ...], str], stream.Split],
  ):
    settings = evaluation.summary['settings']
    names = tuple(settings['data_names'])
    self._split = open_split(names, settings[f'{side}_split'])
    self._rows = evaluation.arrays[f'{side}_row']
    self._paths = evaluation.arrays[f'{side}_path']

  def __getitem__(self, index: int) -> np.ndarray:
    row, path = int(self._rows[index]), str(self._paths[index])
    if row >= len(self._split) or str(self._split.path[row]) != path:
      raise ValueError(
        f'{self._split.name} is not the one that was evaluated (row {row} was '
        f'{path}); run `main.py evaluate` again'
      )
    return transforms.decode(self._split.image_bytes(row), path)


def _tiles(evaluation, index, pictures) -> list[panels.Tile]:
  arrays, right = evaluation.arrays, evaluation.right(index)
  place = arrays['query_place'][index]
  query, gallery = pictures['query'], pictures['gallery']
  tiles = [
    panels.Tile(query[index], 'query', f'place {place}', figures.NEUTRAL)
  ]
  top = arrays['top_rows'][index][:_TOP]
  for rank, row in enumerate(top, 1):
    found = row in right
    tiles.append(
      panels.Tile(
        gallery[row],
        f'{rank} {"✓" if found else "✗"}',
        f'place {arrays["gallery_place"][row]}',
        figures.RIGHT if found else figures.WRONG,
      )
    )
  if not np.isin(top, right).any():
    for row in right[:1]:
      tiles.append(
        panels.Tile(
          gallery[row],
          'right answer',
          f'place {arrays["gallery_place"][row]}',
          figures.NEUTRAL,
        )
      )
  return tiles


def _framed_tiles(evaluation, index, pictures) -> list[panels.Tile]:
  """The query, its five best, and the right answer where it is not there."""
  arrays = evaluation.arrays
  right, semi = evaluation.right(index), evaluation.semi(index)
  place, first = arrays['query_place'][index], arrays['first_rank'][index]

  def tile(row: int, title: str) -> panels.Tile:
    colour = figures.NEUTRAL
    if row in right:
      colour = figures.TRUTH
    elif row in semi:
      colour = figures.SEMI
    caption = f'place {arrays["gallery_place"][row]}'
    framed = colour != figures.NEUTRAL
    return panels.Tile(pictures['gallery'][row], title, caption, colour, framed)

  top = arrays['top_rows'][index][:_TOP_WIDE]
  tiles = [
    panels.Tile(
      pictures['query'][index],
      'query',
      f'place {place}',
      figures.NEUTRAL,
      False,
    ),
    *(tile(int(row), str(rank)) for rank, row in enumerate(top, 1)),
  ]
  if not np.isin(top, right).any():
    title = 'truth' if first < _TOP_WIDE else f'rank {first + 1}'
    tiles += [tile(int(row), title) for row in right[:1]]
  return tiles


def _panel_text(evaluation, index: int) -> dict[str, str]:
  arrays = evaluation.arrays
  first = int(arrays['first_rank'][index])
  path, place = arrays['query_path'][index], arrays['query_place'][index]
  rank = f'first right answer on rank {first + 1}'
  if first < 0:
    rank = 'no right answer in the gallery'
  precision = 100 * arrays['average_precision'][index]
  shown = _TOP_WIDE if evaluation.framed else _TOP
  top = arrays['top_rows'][index][:shown]
  found = np.isin(top, evaluation.right(index))
  right = [str(i) for i in np.flatnonzero(found) + 1]
  return {
    'caption': f'{path}: {rank}, AP {precision:.1f} %.',
    'alt': (
      f'Query of place {place} and its {len(top)} best gallery pictures; right '
      f'on rank {", ".join(right) or "none of them"}.'
    ),
  }
