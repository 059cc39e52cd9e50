"""`main.py evaluate --features ...`: metrics of feature files of any code base.

No data set, recipe, network or run is needed. Which files there are:
`retrieval/files/`; what is done with them:
`retrieval/evaluation.py`.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from absl import logging

from cvgl_jax import evaluate_flags, strict, writer
from cvgl_jax.retrieval import evaluation, metres
from cvgl_jax.retrieval.diffusion import cross
from cvgl_jax.retrieval.files import feature_files, inputs, submission


def run(args: argparse.Namespace) -> str:
  """Evaluates feature files and writes what was asked for.

  Returns:
    A table for people.

  Raises:
    ValueError: files, lists or options that do not fit; names them.
    OSError: an output that cannot be written.
  """
  _check_together(args)
  rules = _rules(args)
  sides = {
    side: inputs.load(
      side,
      alone=getattr(args, f'{side}_features'),
      shared=args.features or (),
      labels=getattr(args, f'{side}_labels'),
    )
    for side in feature_files.SIDES
  }
  rank = _diffuse if args.diffusion else _rank
  outcomes = rank(args, sides['query'], sides['gallery'], rules=rules)
  numbers = {}
  for outcome in outcomes:
    numbers |= outcome.metrics
  if args.save_answers:
    _save_answers(args, outcomes[0])
  if args.output:
    summary = {
      'metrics': numbers,
      'rules': {'protocol': args.protocol} | dataclasses.asdict(rules),
      'flags': {
        name: getattr(args, name) for name in evaluate_flags.defaults()
      },
      'rankings': [
        outcome.summary(per_query=args.per_query) for outcome in outcomes
      ],
    }
    text = json.dumps(summary, indent=2) + '\n'
    writer.replace_text(pathlib.Path(args.output), text)
  return _table(outcomes, numbers)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
  """One ranking.

  Attributes:
    name: behind the names of its metrics; '' for the first.
    query: of the ranking, for paths.
    gallery: the same.
    ranked: metrics and lists.
    errors_m: [Q] metres from the query to the best answer, where known.
  """

  name: str
  query: feature_files.Side
  gallery: feature_files.Side
  ranked: evaluation.Ranked
  errors_m: np.ndarray | None = None

  @property
  def metrics(self) -> dict[str, float]:
    """Percent, and metres where the name says so."""
    result = self.ranked.result
    numbers = result.report() if result else {}
    if self.errors_m is not None:
      numbers |= metres.metre_accuracy(self.errors_m).report()
    return {f'{key}{self.name}': value for key, value in numbers.items()}

  def summary(self, *, per_query: bool) -> dict[str, Any]:
    """For --output."""
    result, best = self.ranked
    summary = {
      'name': self.name.strip(),
      'query': self.query.name,
      'gallery': self.gallery.name,
      'num_queries': len(best.rows),
      'gallery_size': len(self.gallery.features),
    }
    if result:
      summary |= {
        'num_orphans': result.num_orphans,
        'percent_rank': result.percent_rank,
      }
    if self.errors_m is not None:
      accuracy = metres.metre_accuracy(self.errors_m)
      summary['metre_accuracy'] = {
        'thresholds_m': accuracy.thresholds_m.tolist(),
        'accuracy': accuracy.accuracy.tolist(),
      }
    if per_query:
      arrays = {'best_rows': best.rows, 'errors_m': self.errors_m}
      if result:
        arrays |= {
          'first_rank': result.first_rank,
          'average_precision': result.query_average_precision,
          'hit': result.query_hit,
        }
      summary['per_query'] = {
        key: x.tolist() for key, x in arrays.items() if x is not None
      }
    return summary


def _check_together(args: argparse.Namespace) -> None:
  """Refuses flags that need or exclude one another."""
  for needed, flags in (
    (('diffusion',), ('diffusion_options', 'diffusion_cache')),
    (('save_answers',), ('query_names', 'challenge')),
    (('output',), ('per_query',)),
    (('multi_query', 'multi_gallery'), ('mrm',)),
  ):
    lonely = [flag for flag in flags if getattr(args, flag)]
    if lonely and not any(getattr(args, name) for name in needed):
      raise ValueError(f'--{lonely[0]} needs --{" or --".join(needed)}')
  merges = ('multi_query', 'multi_gallery')
  ranks = ('rerank', 'similarity', 'within_metres')
  for flag, others in (
    ('diffusion', (*merges, *ranks)),
    ('save_answers', merges),
    ('within_metres', merges),
  ):
    both = [other for other in others if getattr(args, other)]
    if getattr(args, flag) and both:
      raise ValueError(f'--{flag} and --{both[0]} do not go together')


def _rules(args: argparse.Namespace) -> evaluation.Rules:
  names = [field.name for field in dataclasses.fields(evaluation.Rules)]
  chosen = {name: getattr(args, name) for name in names if getattr(args, name)}
  if 'ranks' in chosen:
    chosen['ranks'] = tuple(chosen['ranks'])
  protocol = evaluation.PROTOCOLS[args.protocol or 'university1652']
  return dataclasses.replace(protocol, **chosen)


def _rank(
  args: argparse.Namespace,
  query: inputs.Input,
  gallery: inputs.Input,
  *,
  rules: evaluation.Rules,
) -> list[Outcome]:
  inputs.check(query.side, gallery.side, similarity=rules.similarity)
  answers = inputs.answers(query, gallery, within_metres=args.within_metres)
  if answers is None:
    _check_unlabelled(args, query, gallery)
  options = {
    'rules': rules,
    'rerank': evaluation.Reranking(
      method=args.rerank or 'none',
      k1=args.rerank_k1,
      k2=args.rerank_k2,
      candidates=args.rerank_candidates or 0,
    ),
  }

  def outcome(name, query_side, gallery_side, answers):
    ranked = evaluation.rank(
      query_side.features, gallery_side.features, answers=answers, **options
    )
    return Outcome(
      name=name, query=query_side, gallery=gallery_side, ranked=ranked
    )

  merged = [s for s in feature_files.SIDES if getattr(args, f'multi_{s}')]
  if not merged:
    plain = outcome('', query.side, gallery.side, answers)
    errors_m = inputs.errors_m(query, gallery, plain.ranked.best.rows[:, 0])
    return [dataclasses.replace(plain, errors_m=errors_m)]
  if 'query_place' not in answers or 'semi_positives' in answers:
    raise ValueError(
      f'--multi_{merged[0]} needs labels of both sides, and no other ground '
      f'truth; {query.source} lists positives'
    )
  outcomes = []
  if args.mrm:
    outcomes.append(outcome('', query.side, gallery.side, answers))
  fusions = {'mean': ' mean', 'mrm': ' w/ MRM'} if args.mrm else {'mean': ''}
  for fusion, name in fusions.items():
    sides = {'query': query.side, 'gallery': gallery.side}
    places = dict(answers)
    for which in merged:
      one = evaluation.merge(
        sides[which].features,
        places[f'{which}_place'],
        fusion=fusion,
        unit=rules.similarity == 'cosine',
      )
      sides[which] = dataclasses.replace(sides[which], features=one.features)
      places[f'{which}_place'] = one.place
    outcomes.append(outcome(name, sides['query'], sides['gallery'], places))
  return outcomes


def _check_unlabelled(
  args: argparse.Namespace, query: inputs.Input, gallery: inputs.Input
) -> None:
  """Without labels there is nothing but lists."""
  if args.save_answers:
    return
  side = 'query' if query.side.labels is None else 'gallery'
  source = query.source if side == 'query' else gallery.source
  raise ValueError(
    f'{source}: no labels; give --{side}_labels=FILE with one for every row '
    '(only --save_answers needs none)'
  )


def _diffuse(
  args: argparse.Namespace,
  query: inputs.Input,
  drone: inputs.Input,
  *,
  rules: evaluation.Rules,
) -> list[Outcome]:
  """PLCD: the drone pictures of both models lead from street to satellite."""
  # With --low_altitude the published script lists all drone pictures here.
  other = feature_files.read_side(args.diffusion, 'query', lenient=True)
  satellite = feature_files.read_side(args.diffusion, 'gallery')
  inputs.check(query.side, drone.side, similarity='cosine')
  inputs.check(other, satellite, similarity='cosine')
  target = inputs.Input(side=satellite)
  answers = inputs.answers(query, target)
  if answers is None:
    _check_unlabelled(args, query, target)
  paths = None
  if drone.side.paths is not None and other.paths is not None:
    # Building and picture: the folders above may differ between machines.
    paths = tuple(
      ['/'.join(path.replace('\\', '/').split('/')[-2:]) for path in side.paths]
      for side in (drone.side, other)
    )
  scores = cross.cross_diffusion(
    query.side.features,
    drone.side.features,
    other.features,
    satellite.features,
    options=_diffusion_options(args.diffusion_options or ()),
    drone_paths=paths,
    cache_dir=args.diffusion_cache,
  )
  ranked = evaluation.rank_scores(scores, answers=answers, rules=rules)
  return [Outcome(name='', query=query.side, gallery=satellite, ranked=ranked)]


def _diffusion_options(settings: list[str]) -> cross.Options:
  values = {}
  for setting in settings:
    key, _, text = setting.partition('=')
    try:
      values[key] = json.loads(text.lower())
    except ValueError as error:
      raise ValueError(
        f'--diffusion_options {setting}: expected KEY=VALUE, such as kq=20'
      ) from error
  return strict.make(cross.Options, values, '--diffusion_options')


def _save_answers(args: argparse.Namespace, outcome: Outcome) -> None:
  rows, query, gallery = (
    outcome.ranked.best.rows,
    outcome.query,
    outcome.gallery,
  )
  if gallery.paths is None:
    raise ValueError(
      f'--save_answers writes names of gallery pictures, but {gallery.name} '
      'comes with no paths; list them in --gallery_labels (a column path)'
    )
  if args.query_names and query.paths is None:
    raise ValueError(
      f'--query_names orders queries by name, but {query.name} comes with no '
      'paths; list them in --query_labels (a column path)'
    )
  text = evaluation.answer_text(
    rows,
    query_paths=query.paths,
    gallery_paths=gallery.paths,
    names_file=args.query_names or '',
    challenge=args.challenge or '160k',
  )
  submission.write(args.save_answers, text)
  logging.info('%s: %d lines', args.save_answers, text.count('\n'))


def _table(outcomes: list[Outcome], numbers: dict[str, float]) -> str:
  lines = []
  for outcome in outcomes:
    result = outcome.ranked.result
    orphans = f', {result.num_orphans} without an answer' if result else ''
    lines.append(
      f'{len(outcome.query.features)} queries{orphans}, gallery of '
      f'{len(outcome.gallery.features)}{outcome.name and ":" + outcome.name}'
    )
  width = max(map(len, numbers), default=0)
  lines += [f'{name:<{width}}  {x:7.2f}' for name, x in numbers.items()]
  return '\n'.join(lines) + '\n'
