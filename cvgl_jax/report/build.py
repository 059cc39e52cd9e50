"""Writes `report/index.html` of a run: one static page, no server, no network.

Reads what the run has so far (config.json, metrics.jsonl, eval/*.json and
.npz) and the pictures of the data set; what is missing is said on the page.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import numpy as np
from flax import traverse_util

from cvgl_jax import writer
from cvgl_jax.report import figures, files, model, rankings

OpenSplit = Callable[[tuple[str, ...], str], Any]


def build(
  workdir: str,
  *,
  open_split: OpenSplit,
  describe: Callable[[], Mapping[str, Any]] | None = None,
  extra: Callable[[pathlib.Path], Mapping[str, Any]] | None = None,
) -> tuple[pathlib.Path, str]:
  """Writes the report of a run.

  Args:
    workdir: of the run.
    open_split: (data set names, split name) -> split, as for the evaluators;
      where it cannot open the data, the page has no ranking panels and says
      why.
    describe: what `evaluate.describe` says of the run's method; None: nothing
      is shown of it.
    extra: what a chain shows beside it, see `chain`, made in the folder that it
      is called with; None for a run.

  Returns:
    Path of `report/index.html`, and the metric tables as plain text.

  Raises:
    ValueError: there is no such workdir, or a damaged file in it (named).
  """
  run = pathlib.Path(workdir)
  if not run.is_dir():
    raise ValueError(f'{workdir}: there is no such workdir')
  folder = run / 'report'
  folder.mkdir(exist_ok=True)
  saved = run / 'config.json'
  values = files.read_json(saved) if saved.exists() else {}
  values = traverse_util.flatten_dict(values, sep='.')
  log = writer.read(workdir)
  evaluations = [
    rankings.Evaluation(p) for p in sorted(run.glob('eval/*.json'))
  ]
  described = {} if describe is None else describe()
  views = list(described.get('macs', ()))
  views += [view for e in evaluations for view in e.views]
  tasks = [
    _task(
      e, log, folder, open_split=open_split, described=described, values=values
    )
    for e in evaluations
  ]
  page = _template().render(
    title=run.resolve().name,
    workdir=workdir,
    chain=None if extra is None else extra(folder),
    facts=_facts(values, log, views)
    + (model.facts(described) if described else []),
    tasks=tasks,
    has_hit_rate=any('hit rate' in e.summary['metrics'] for e in evaluations),
    curves=_training_curves(log, folder),
    match_curves=_match_curves(evaluations, folder),
    metre_curves=_metre_curves(evaluations, folder),
    config=[(name, _text(value)) for name, value in sorted(values.items())],
  )
  writer.replace_bytes(folder / 'index.html', page.encode())
  return folder / 'index.html', _plain_tables(tasks)


def _task(
  evaluation: rankings.Evaluation,
  log: list[dict[str, float]],
  folder: pathlib.Path,
  *,
  open_split: OpenSplit,
  described: Mapping[str, Any],
  values: Mapping[str, Any],
) -> dict[str, Any]:
  """Everything that the page says about one evaluator."""
  summary, settings = evaluation.summary, evaluation.summary['settings']
  orphans = summary['num_orphans']
  description = (
    f'{summary["num_queries"]:,} queries ({settings["query_split"]}) against '
    f'{summary["gallery_size"]:,} gallery entries of '
    f'{summary["gallery_places"]:,} places ({settings["gallery_split"]}).'
  )
  if orphans:
    description += f' {orphans:,} queries have no right answer; they count.'
  if settings['rerank'] != 'none':
    description += f' Re-ranked ({settings["rerank"]}).'
  task = {
    'name': evaluation.name,
    'anchor': evaluation.anchor,
    'description': description,
    'step': summary['step'],
    'published_source': settings['published_source'],
    'problem': '',
    'groups': [],
    'embedding_map': _embedding_map(evaluation, folder),
    'cost': None,
    'layout': None,
  }
  if described:
    task['cost'] = model.cost_figure(
      evaluation, folder, model=described, values=values
    )
  task |= _metric_rows(evaluation, log) | rankings.failures(evaluation, folder)
  try:
    pictures = _pictures(evaluation, open_split)
    task['groups'] = rankings.groups(evaluation, folder, pictures)
    task['layout'] = model.layout_figure(
      evaluation,
      folder,
      layouts=described.get('layouts', {}),
      pictures=pictures,
      values=values,
    )
  except (ValueError, OSError) as error:
    # The numbers are still worth a page.
    task['problem'] = f'The pictures cannot be shown: {error}'
  return task


def _pictures(
  evaluation: rankings.Evaluation, open_split: OpenSplit
) -> dict[str, rankings.Pictures]:
  return {
    side: rankings.Pictures(evaluation, side, open_split)
    for side in ('query', 'gallery')
  }


def _metric_rows(
  evaluation: rankings.Evaluation, log: list[dict[str, float]]
) -> dict[str, Any]:
  """The table: first evaluation of the run, this one, published."""
  summary = evaluation.summary
  key = f'eval/{evaluation.name}/'
  first = next((row for row in log if any(k.startswith(key) for k in row)), {})
  if first.get('step') == summary['step']:
    first = {}
  rows = []
  for name, value in summary['metrics'].items():
    before = first.get(key + name)
    published = summary['published'].get(name)
    difference = None if published is None else value - published
    sign = ''
    if difference is not None:
      better = difference <= 0 if _in_metres(name) else difference >= 0
      sign = 'above' if better else 'below'
    rows.append(
      {
        'name': name,
        'first': _number(before),
        'value': _number(value),
        'published': _number(published),
        'difference': '' if difference is None else f'{difference:+.2f}',
        'sign': sign,
      }
    )
  return {
    'rows': rows,
    'has_first': bool(first),
    'first_step': int(first['step']) if first else 0,
    'has_published': bool(summary['published']),
  }


def _in_metres(metric: str) -> bool:
  """Errors: lower is better, and they are no percentages."""
  return metric.endswith(' m')


def _training_curves(
  log: list[dict[str, float]], folder: pathlib.Path
) -> list[dict[str, str]]:
  """Loss, learning rate and the rest; then metrics by evaluator."""
  names = sorted(
    {key for row in log for key in row if key.startswith('train/')}
  )
  # What people look for first stands first.
  names.sort(
    key=lambda n: ('loss' not in n, n != 'train/loss', n != 'train/lr')
  )
  made = []
  if names:
    curves = {n.removeprefix('train/'): _curve(log, n) for n in names}
    writer.replace_bytes(
      folder / 'training.png', figures.small_multiples(curves)
    )
    made.append(
      {
        'file': 'training.png',
        'alt': 'Curves over the steps of ' + ', '.join(curves) + '.',
        'caption': '',
      }
    )
  evaluators = {}
  for row in log:
    for key in row:
      if key.startswith('eval/'):
        evaluator, metric = key.removeprefix('eval/').rsplit('/', 1)
        # Metres have a curve of their own.
        if not (_in_metres(metric) or metric.startswith('within ')):
          evaluators.setdefault(evaluator, {})[metric] = _curve(log, key)
  for evaluator, curves in evaluators.items():
    settings = folder.parent / 'eval' / f'{evaluator}.json'
    published = (
      files.read_json(settings)['published'] if settings.exists() else {}
    )
    file = f'metrics_{files.safe_name(evaluator)}.png'
    writer.replace_bytes(
      folder / file, figures.metric_curves(curves, published)
    )
    made.append(
      {
        'file': file,
        'alt': f'{", ".join(curves)} of {evaluator} over the steps.',
        'caption': f'{evaluator}, unseen places.',
      }
    )
  return made


def _match_curves(
  evaluations: list[rankings.Evaluation], folder: pathlib.Path
) -> dict[str, str] | None:
  if not evaluations:
    return None
  curves = {
    e.name: (e.arrays['first_rank'], e.summary['gallery_size'])
    for e in evaluations
  }
  writer.replace_bytes(folder / 'recall.png', figures.match_curves(curves))
  return {
    'file': 'recall.png',
    'alt': 'Recall at k over k of ' + ', '.join(curves) + '.',
    'caption': 'Share of queries whose place is among the k best.',
  }


def _metre_curves(
  evaluations: list[rankings.Evaluation], folder: pathlib.Path
) -> dict[str, str] | None:
  errors_m = {
    e.name: e.arrays['error_m'] for e in evaluations if 'error_m' in e.arrays
  }
  if not errors_m:
    return None
  writer.replace_bytes(folder / 'metres.png', figures.metre_curves(errors_m))
  return {
    'file': 'metres.png',
    'alt': 'Share of queries over the error in metres of '
    + ', '.join(errors_m),
    'caption': (
      'Share of queries of which the best answer lies within a distance. The '
      'answer is the middle of its picture.'
    ),
  }


def _embedding_map(
  evaluation: rankings.Evaluation, folder: pathlib.Path
) -> dict[str, str] | None:
  arrays = evaluation.arrays
  query, gallery = arrays['query_sample'], arrays['gallery_sample']
  if len(query) + len(gallery) < 5:
    return None
  file = f'features_{evaluation.anchor}.png'
  drawn = figures.embedding_map(
    arrays['query_sample_features'],
    arrays['gallery_sample_features'],
    arrays['query_place'][query],
    arrays['gallery_place'][gallery],
    names=tuple(
      f'{view} ({side})'
      for view, side in zip(evaluation.views, ('query', 'gallery'), strict=True)
    ),
  )
  writer.replace_bytes(folder / file, drawn)
  places = len(np.unique(arrays['query_place'][query]))
  return {
    'file': file,
    'alt': f't-SNE of the features of {places} places.',
    'caption': (
      f't-SNE of the features of {places} places (cosine distance): where a '
      'colour forms one group of dots and triangles, the views of that place '
      'agree; a long line leads to a place whose views do not. Distances between '
      'groups mean little.'
    ),
  }


def _facts(
  values: Mapping[str, Any], log: list[dict[str, float]], views: list[str]
) -> list[tuple[str, str]]:
  """The head of the page, as far as it is known."""
  facts = []
  if 'data.image_size' in values:
    sizes = model.picture_sizes(values, views)
    values = {**values, 'data.image_size': sizes}
  for key, name in (
    ('method.name', 'method'),
    ('data.names', 'data'),
    ('data.image_size', 'picture size, height x width'),
    ('train.batch_size', 'batch size'),
    ('train.epochs', 'epochs'),
    ('seed', 'seed'),
  ):
    if key in values:
      facts.append((name, _text(values[key])))
  if log:
    facts.append(('last logged step', f'{int(log[-1]["step"]):,}'))
  return facts


def _plain_tables(tasks: list[dict[str, Any]]) -> str:
  """The metric tables for a terminal."""
  if not tasks:
    return 'no evaluation yet'
  lines = []
  for task in tasks:
    lines.append(f'{task["name"]}: {task["description"]}')
    head = ['metric', f'step {task["step"]}']
    rows = [[row['name'], row['value']] for row in task['rows']]
    if task['has_first']:
      head.insert(1, f'step {task["first_step"]}')
      for cells, row in zip(rows, task['rows'], strict=True):
        cells.insert(1, row['first'])
    if task['has_published']:
      head.append('published')
      for cells, row in zip(rows, task['rows'], strict=True):
        cells.append(row['published'])
    wide = 2 + max(len(cells[0]) for cells in rows)
    for cells in [head, *rows]:
      numbers = ''.join(f'{c:>12}' for c in cells[1:])
      lines.append(f'  {cells[0]:<{wide}}{numbers}')
    lines.append('')
  return '\n'.join(lines).rstrip()


def _template() -> jinja2.Template:
  folder = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(folder),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template('template.html.j2')


def _text(value: Any) -> str:
  if isinstance(value, (list, tuple)):
    return ', '.join(map(str, value))
  return str(value)


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def _curve(log: list[dict[str, float]], name: str) -> figures.Curve:
  rows = [row for row in log if name in row]
  return figures.Curve([r['step'] for r in rows], [r[name] for r in rows])
