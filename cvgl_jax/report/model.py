"""What the page shows of the method: its cost, and how it cuts pictures.

The method says what there is to show (`evaluate.describe`); this module knows
no method. Published systems to compare with are in `published.csv`, by data set
and gallery split.
"""

import csv
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cvgl_jax import writer
from cvgl_jax.data import prepare, transforms
from cvgl_jax.report import figures, panels, rankings

_PUBLISHED = pathlib.Path(__file__).with_name('published.csv')


def facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Lines of the head of the page."""
  macs = ', '.join(
    f'{view} {1e-9 * macs:.3g}' for view, macs in model['macs'].items()
  )
  flops = ', '.join(
    f'{view} {1e-9 * flops:.3g}' for view, flops in model['flops'].items()
  )
  return [
    ('parameters', f'{1e-6 * model["parameters"]:.4g} million'),
    ('forward pass', f'{macs} GMAC a picture ({flops} GFLOP by XLA)'),
  ]


def picture_sizes(values: Mapping[str, Any], views: Iterable[str]) -> str:
  """Height x width of what the network sees: one size, or one for every view.

  Args:
    values: the run's config, flat, with 'data.image_size'.
    views: of the run; those of `data.view_sizes` count anyway.

  Raises:
    ValueError: `data.polar_size` or `data.fov_deg` do not fit the sizes.
  """
  own = 'data.view_sizes.'
  named = [key.removeprefix(own) for key in values if key.startswith(own)]
  ready = prepare.Prepare(
    polar_size=tuple(values.get('data.polar_size', ())),
    fov_deg=values.get('data.fov_deg', 0.0),
  )
  sizes = {}  # text -> views
  for view in dict.fromkeys([*views, *named]):
    size_hw = values.get(own + view, values['data.image_size'])
    height, width = ready.size(view, tuple(size_hw))
    sizes.setdefault(f'{height} x {width}', []).append(view)
  if not sizes:
    return ' x '.join(map(str, values['data.image_size']))
  if len(sizes) == 1:
    return next(iter(sizes))
  return '; '.join(f'{", ".join(of)} {size}' for size, of in sizes.items())


def peers(data: str, gallery_split: str) -> list[dict[str, str]]:
  """Rows of `published.csv` about a data set, by the end of its name."""
  with _PUBLISHED.open(newline='', encoding='utf-8') as file:
    return [
      row
      for row in csv.DictReader(file)
      if row['gallery_split'] == gallery_split
      and (data == row['data'] or data.endswith('/' + row['data']))
    ]


def cost_figure(
  evaluation: rankings.Evaluation,
  folder: pathlib.Path,
  *,
  model: Mapping[str, Any],
  values: Mapping[str, Any],
) -> dict[str, str] | None:
  """Accuracy over cost among published systems; None without any.

  Args:
    evaluation: whose R@1 is shown.
    folder: of the report.
    model: of `evaluate.describe`.
    values: the run's config, flat.
  """
  settings, metrics = (
    evaluation.summary['settings'],
    evaluation.summary['metrics'],
  )
  names = settings['data_names'] or values.get('data.names', ())
  views = evaluation.views
  if (
    len(names) != 1
    or values.get('data.fov_deg')  # another task
    or 'R@1' not in metrics
    or not all(view in model['macs'] for view in views)
  ):
    return None
  rows = peers(names[0], settings['gallery_split'])
  if not rows:
    return None
  own = figures.Bubble(
    name='this run',
    gmac=1e-9 * sum(model['macs'][view] for view in views),
    recall=metrics['R@1'],
    parameters_m=1e-6 * model['parameters'],
    own=True,
  )
  others = [
    figures.Bubble(
      name=row['system'],
      gmac=float(row['gmac']),
      recall=float(row['recall_at_1']),
      parameters_m=float(row['parameters_m'] or 'nan'),
      own=False,
    )
    for row in rows
  ]
  file = f'cost_{evaluation.anchor}.png'
  writer.replace_bytes(folder / file, figures.cost_bubbles([*others, own]))
  sources = '; '.join(f'{row["system"]}: {row["source"]}' for row in rows)
  return {
    'file': file,
    'alt': 'R@1 over the cost of a pair of this run and of '
    + ', '.join(row['system'] for row in rows)
    + '.',
    'caption': (
      'Accuracy over the multiply-accumulates of both pictures of a pair; the '
      f'area is the number of parameters. This run is measured. {sources}.'
    ),
  }


def layout_figure(
  evaluation: rankings.Evaluation,
  folder: pathlib.Path,
  *,
  layouts: Mapping[str, np.ndarray],
  pictures: Mapping[str, rankings.Pictures],
  values: Mapping[str, Any],
) -> dict[str, str] | None:
  """The parts of a query and of its right answer; None if there are none.

  None too where the network sees another picture than the stored one: unrolled
  (`data.polar_size`) or a sector of unknown orientation (`data.fov_deg`).

  Args:
    evaluation: of the pictures.
    folder: of the report.
    layouts: view -> int [h, w], the part of every cell, 0 = none.
    pictures: 'query' and 'gallery'.
    values: the run's config, flat.
  """
  if (
    values.get('data.polar_size')
    or values.get('data.fov_deg')
    or not all(view in layouts for view in evaluation.views)
  ):
    return None
  # The first that is right at once: a typical pair, whatever the weights are.
  first = evaluation.arrays['first_rank']
  order = np.argsort(np.where(first < 0, len(first), first), kind='stable')
  query = int(order[0])
  right = evaluation.right(query)
  if not len(right):
    return None
  entries = {'query': query, 'gallery': int(right[0])}
  pair = [
    (
      f'{view} ({side})',
      transforms.cut(
        pictures[side][entries[side]],
        view,
        middle_half=values.get('data.middle_half', ()),
        rows=values.get(f'data.cut_rows.{view}', 0),
        where=f'{view} ({side})',
      ),
      layouts[view],
    )
    for view, side in zip(evaluation.views, entries, strict=True)
  ]
  file = f'layout_{evaluation.anchor}.png'
  writer.replace_bytes(folder / file, panels.layout_pair(pair))
  counts = ' and '.join(
    f'{len(np.unique(parts[parts > 0]))} of the {title}'
    for title, _, parts in pair
  )
  return {
    'file': file,
    'alt': f'Numbered parts over a pair of pictures: {counts}.',
    'caption': (
      'What the descriptor is made of: parts of equal number stand at the same '
      'place of both descriptors and are compared with each other.'
    ),
  }
