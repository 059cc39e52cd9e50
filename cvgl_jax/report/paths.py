"""How queries reach the gallery through the pictures of a bridge (a chain).

`paths.npz` and the joint rankings are written by `cvgl_jax/chain/joint.py`. A
panel shows one query: its best bridge pictures, the gallery pictures that the
diffusion leads to from each of them, and the rankings with and without it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cvgl_jax import writer
from cvgl_jax.report import figures, panels, rankings

FILE = 'paths.npz'
DIFFUSED = 'cross_diffusion'
# Rankings of a panel, and what they are called there.
_SHOWN = {
  'direct': 'direct',
  'one_hop': 'one hop',
  'no_diffusion': 'no diffusion',
  DIFFUSED: 'cross-diffusion',
}
_TOP, _NEIGHBOURS = 7, 2
# Title, description and number of panels of each group.
_GROUPS = (
  ('Diffusion helps', 'The right place moves up the most.', 3),
  ('Random', 'Drawn without looking at the result.', 3),
  ('Diffusion hurts', 'The right place moves down the most.', 3),
)


class Paths:
  """The arrays of `paths.npz`, and the rankings that they belong to.

  Args:
    workdir: of the chain.
    evaluations: ranking ('query_to_bridge', 'cross_diffusion', ...) ->
      evaluation.

  Raises:
    ValueError: the file is damaged, or of another evaluation.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    evaluations: Mapping[str, rankings.Evaluation],
  ):
    self.of = evaluations
    path = workdir / FILE
    self.arrays = rankings.read_arrays(path, again='main.py chain')
    queries = len(self.of[DIFFUSED].arrays['first_rank'])
    if len(self.arrays['hop_rows']) != queries:
      raise ValueError(
        f'{path} is of {len(self.arrays["hop_rows"])} queries, eval/ of '
        f'{queries}; run `main.py chain` again'
      )

  @property
  def reached(self) -> np.ndarray:
    """Queries [Q] whose diffusion reaches anything; else its order is that of
    the gallery."""
    return self.of[DIFFUSED].arrays['top_scores'][:, 0] != 0

  def first_rank(self, kind: str, query: int) -> int:
    """Rank of the first right answer from 1; 0: there is none."""
    return int(self.of[kind].arrays['first_rank'][query]) + 1


def groups(
  paths: Paths, folder: pathlib.Path, open_split: Any
) -> list[dict[str, Any]]:
  """Panels of queries that diffusion helps, of any, and of those it hurts.

  Args:
    paths: what is shown.
    folder: of the report.
    open_split: as for `build.build`.

  Raises:
    ValueError: the data cannot be read, or is not what was evaluated.
  """
  sides = pictures(paths, open_split)
  made = []
  for (title, description, _), chosen in zip(
    _GROUPS, _choose(paths), strict=True
  ):
    shown = []
    for query in map(int, chosen):
      file = f'path_{title.split()[-1].lower()}_{len(shown)}.png'
      drawn = panels.grid(rows(paths, query, sides))
      writer.replace_bytes(folder / file, drawn)
      shown.append({'file': file} | _text(paths, query))
    if shown:
      made.append({'title': title, 'description': description, 'panels': shown})
  return made


def pictures(paths: Paths, open_split: Any) -> dict[str, rankings.Pictures]:
  """Pictures of the 'query', 'bridge' and 'gallery'; Raises as `groups`."""
  ends, first = paths.of[DIFFUSED], paths.of['query_to_bridge']
  return {
    'query': rankings.Pictures(ends, 'query', open_split),
    'bridge': rankings.Pictures(first, 'gallery', open_split),
    'gallery': rankings.Pictures(ends, 'gallery', open_split),
  }


def rows(
  paths: Paths, query: int, sides: Mapping[str, rankings.Pictures]
) -> list[tuple[str, list[panels.Tile | None]]]:
  """Labelled rows of a panel, for `panels.grid`.

  Args:
    paths: what is shown.
    query: its number.
    sides: of `pictures`.
  """
  bridge, gallery = paths.of['query_to_bridge'], paths.of[DIFFUSED]
  place = int(gallery.arrays['query_place'][query])
  hops = paths.arrays['hop_rows'][query]

  def tile(side: str, row: int, title: str, extra: str = '') -> panels.Tile:
    of = bridge if side == 'bridge' else gallery
    found = of.arrays['gallery_place'][row] == place
    return panels.Tile(
      sides[side][row],
      f'{title} {"✓" if found else "✗"}',
      f'place {of.arrays["gallery_place"][row]}{extra}',
      figures.RIGHT if found else figures.WRONG,
    )

  asked = panels.Tile(
    sides['query'][query], 'query', f'place {place}', figures.NEUTRAL
  )
  similar = [
    tile('bridge', row, f'{score:.2f}', f', {100 * weight:.0f} %')
    for row, score, weight in zip(
      hops,
      paths.arrays['hop_scores'][query],
      paths.arrays['hop_weights'][query],
      strict=True,
    )
  ]
  made = [(f'best {bridge.views[1]}\npictures', [asked, *similar])]
  right = gallery.right(query)
  truth = None
  if len(right):
    image = sides['gallery'][int(right[0])]
    truth = panels.Tile(image, 'truth', f'place {place}', figures.NEUTRAL)
  near = paths.arrays['near_rows'][query]
  parts = paths.arrays['near_share'][query]
  for number in range(min(_NEIGHBOURS, near.shape[1])):
    reached = [
      tile('gallery', row, f'{100 * part:.0f} %') if part > 0 else None
      for row, part in zip(near[:, number], parts[:, number], strict=True)
    ]
    if number == 0:
      label = f'{gallery.views[1]}s that\ndiffusion reaches\nfrom there'
      made.append((label, [truth, *reached]))
    elif any(reached):
      made.append(('', [None, *reached]))
  for kind, name in _SHOWN.items():
    if kind in paths.of:
      top = paths.of[kind].arrays['top_rows'][query][:_TOP]
      tiles = [tile('gallery', row, str(i)) for i, row in enumerate(top, 1)]
      rank = paths.first_rank(kind, query) or 'none'
      made.append((f'{name}:\nright on rank\n{rank}', tiles))
  return made


def _choose(paths: Paths) -> list[np.ndarray]:
  """Queries of each group, of different places."""
  after = paths.of[DIFFUSED].arrays['first_rank'].astype(np.int64)
  before = paths.of['no_diffusion'].arrays['first_rank'].astype(np.int64)
  place = paths.of[DIFFUSED].arrays['query_place']
  known = (after >= 0) & paths.reached
  gain = np.where(known, before - after, 0)
  anyone = np.random.default_rng(0).permutation(len(gain))
  up = np.argsort(-gain, kind='stable')
  down = np.argsort(gain, kind='stable')
  orders = (up[gain[up] > 0], anyone, down[gain[down] < 0])
  chosen = []
  for order, (_, _, count) in zip(orders, _GROUPS, strict=True):
    _, first = np.unique(place[order], return_index=True)
    chosen.append(order[np.sort(first)][:count])
  return chosen


def _text(paths: Paths, query: int) -> dict[str, str]:
  arrays = paths.of[DIFFUSED].arrays
  bridge = paths.of['query_to_bridge']
  found = ', '.join(
    f'{paths.first_rank(kind, query) or "none"} {name}'
    for kind, name in (
      ('no_diffusion', 'without'),
      (DIFFUSED, 'with diffusion'),
      ('direct', 'directly'),
    )
    if kind in paths.of
  )
  place = arrays['query_place'][query]
  hops = bridge.arrays['gallery_place'][paths.arrays['hop_rows'][query]]
  right = int((hops == place).sum())
  return {
    'caption': f'{arrays["query_path"][query]}: right answer on rank {found}.'
    + ('' if paths.reached[query] else ' Diffusion reaches nothing from here.'),
    'alt': (
      f'Query of place {place}, its {len(hops)} best {bridge.views[1]} pictures '
      f'({right} of its place), what diffusion reaches from them, and the '
      f'rankings; right answer on rank {found}.'
    ),
  }
