"""The page of a chain: all stages in one table, and the way through the bridge.

Writes the report of every stage that has run, and `report/index.html` of the
chain itself, which leads to them.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cvgl_jax.report import build as build_lib
from cvgl_jax.report import files, paths, rankings

# Keys that have a column; further metrics stand on the stage's own page.
_COLUMNS = ('R@1', 'R@5', 'R@10', 'R@1%', 'AP')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """What `build.build` asks of a run.

  Attributes:
    workdir: of the run.
    open_split: of its data.
    describe: of its method.
  """

  workdir: str
  open_split: build_lib.OpenSplit
  describe: Callable[[], Mapping[str, Any]]


def build(
  workdir: str, *, stages: Mapping[str, Stage], joint: str = ''
) -> tuple[pathlib.Path, str]:
  """Writes the report of a chain and those of its stages.

  Args:
    workdir: of the chain.
    stages: by name, in their order.
    joint: the stage whose data the joint evaluation reads; '' without one.

  Returns:
    Path of the chain's `report/index.html`, and its table as plain text.

  Raises:
    ValueError: there is no such workdir, or a damaged file in it (named).
  """
  root = pathlib.Path(workdir)
  if not root.is_dir():
    raise ValueError(f'{workdir}: there is no such workdir')
  rows = []
  for name, stage in stages.items():
    folder = pathlib.Path(stage.workdir)
    if not (folder / 'config.json').exists():
      rows.append(_row(name, note='not started'))
      continue
    build_lib.build(
      stage.workdir, open_split=stage.open_split, describe=stage.describe
    )
    found = [_row(name, summary=summary) for summary in _summaries(folder)]
    found = found or [_row(name, note='no evaluation yet')]
    link = f'../{folder.relative_to(root).as_posix()}/report/index.html'
    rows += [row | {'link': link} for row in found]
  rows += [_row('joint', summary=summary) for summary in _summaries(root)]
  page, _ = build_lib.build(
    workdir,
    open_split=stages[joint].open_split if joint else _no_data,
    extra=lambda folder: {
      'columns': _COLUMNS,
      'rows': rows,
      'has_published': any(
        cell['published'] for r in rows for cell in r['cells']
      ),
      **_paths(root, folder, stages[joint].open_split if joint else _no_data),
    },
  )
  return page, _plain_table(rows)


def joint_evaluations(root: pathlib.Path) -> dict[str, rankings.Evaluation]:
  """Ranking ('one_hop', 'cross_diffusion', ...) -> evaluation of a chain."""
  found = {}
  for path in sorted(root.glob('eval/*.json')):
    evaluation = rankings.Evaluation(path)
    found[evaluation.summary['settings']['ranking']] = evaluation
  return found


def _no_data(names: tuple[str, ...], split: str) -> Any:
  raise ValueError(f'{split}: the chain has no joint evaluation')


def _summaries(folder: pathlib.Path) -> list[dict[str, Any]]:
  return [files.read_json(path) for path in sorted(folder.glob('eval/*.json'))]


def _row(
  stage: str, *, summary: Mapping[str, Any] | None = None, note: str = ''
) -> dict[str, Any]:
  """A line of the table: one evaluation of one stage, or a note."""
  metrics = summary['metrics'] if summary else {}
  published = summary['published'] if summary else {}
  return {
    'stage': stage,
    'link': '',
    'name': summary['name'] if summary else note,
    'anchor': files.safe_name(summary['name']) if summary else '',
    'splits': _splits(summary['settings']) if summary else '',
    'step': f'{summary["step"]:,}' if summary else '',
    'cells': [
      {
        'value': f'{metrics[key]:.2f}' if key in metrics else '',
        'published': f'{published[key]:.2f}' if key in published else '',
      }
      for key in _COLUMNS
    ],
  }


def _splits(settings: Mapping[str, Any]) -> str:
  return f'{settings["query_split"]} → {settings["gallery_split"]}'


def _paths(
  root: pathlib.Path, folder: pathlib.Path, open_split: build_lib.OpenSplit
) -> dict[str, Any]:
  """Panels of the way through the bridge; none without a joint evaluation."""
  if not (root / paths.FILE).exists():
    return {'path_groups': [], 'path_problem': ''}
  evaluations = joint_evaluations(root)
  if paths.DIFFUSED not in evaluations:
    return {'path_groups': [], 'path_problem': ''}
  shown = paths.Paths(root, evaluations)
  try:
    groups = paths.groups(shown, folder, open_split)
  except (ValueError, OSError) as error:
    # The numbers are still worth a page.
    problem = f'The pictures cannot be shown: {error}'
    return {'path_groups': [], 'path_problem': problem}
  return {'path_groups': groups, 'path_problem': ''}


def _plain_table(rows: list[dict[str, Any]]) -> str:
  """The table for a terminal; a published number stands in brackets."""
  lines = [['stage', 'evaluation', 'step', *_COLUMNS]]
  for row in rows:
    cells = [
      cell['value'] + (f' ({cell["published"]})' if cell['published'] else '')
      for cell in row['cells']
    ]
    lines.append([row['stage'], row['name'], row['step'], *cells])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = []
  for line in lines:
    left = [cell.ljust(w) for cell, w in zip(line[:2], widths, strict=False)]
    right = [
      cell.rjust(w) for cell, w in zip(line[2:], widths[2:], strict=True)
    ]
    text.append('  '.join(left + right).rstrip())
  if any(cell['published'] for row in rows for cell in row['cells']):
    text.append('(in brackets: published)')
  return '\n'.join(text)
