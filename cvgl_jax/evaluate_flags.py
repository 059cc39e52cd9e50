"""The flags of `main.py evaluate --features ...`, see `evaluate_features`."""

import argparse
from typing import Any

from cvgl_jax.retrieval import evaluation
from cvgl_jax.retrieval.files import feature_files, submission


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of feature files."""
  group = parser.add_argument_group(
    'feature files', 'queries and gallery, from one file or from one each'
  )
  add = group.add_argument
  add(
    '--features',
    nargs='+',
    metavar='FILE',
    help='.mat, .hdf5 or .npz with queries and gallery; several files '
    'complete one another',
  )
  for side in feature_files.SIDES:
    add(
      f'--{side}_features',
      metavar='FILE',
      help=f'{side} features alone: .npy [rows, dimension] (memory-mapped, of '
      'any size) or another feature file',
    )
    add(
      f'--{side}_labels',
      metavar='FILE',
      help=f'what the {side} rows show: a CSV list, one line a row, with the '
      'columns place (or label), path, ... (docs/feature_files.md), or a bare '
      'list of labels, or another feature file. Default: the features file, or '
      'the .csv beside a .npy',
    )
  add = parser.add_argument_group('rules of the metrics').add_argument
  add(
    '--protocol',
    choices=sorted(evaluation.PROTOCOLS),
    help='whose evaluator to follow (default: university1652). CVUSA, CVACT '
    'and VIGOR: sample4geo, or vigor for the 1 %% rule of older papers',
  )
  add('--ranks', nargs='+', type=int, metavar='K', help='recall@K (1 5 10)')
  add(
    '--similarity',
    choices=('cosine', 'dot'),
    help='dot takes features as they are stored, without unit norm',
  )
  add(
    '--percent_index',
    choices=('university', 'floor', 'floor_plus_one'),
    help='the k of recall@1%%: round(G/100) + 1, G//100 or int(G/100) + 1',
  )
  add(
    '--ap',
    choices=('trapezoid', 'plain'),
    help='average precision: trapezoid scores a single hit on rank 2 with 0.25',
  )
  add(
    '--ties',
    choices=('lower', 'higher', 'optimistic'),
    help='of equal scores the lower or higher row first, or the right answer',
  )
  add(
    '--junk_distractors',
    action='store_true',
    help='take gallery entries that answer no query out of the ranking',
  )
  add(
    '--within_metres',
    type=float,
    metavar='M',
    help='right is what lies within M metres of the query (CVACT_test: 5), by '
    'the coordinates in the lists',
  )
  add = parser.add_argument_group('ranking').add_argument
  add(
    '--multi_query',
    action='store_true',
    help='one query a place, the mean of its features',
  )
  add(
    '--multi_gallery',
    action='store_true',
    help='one gallery entry a place, the mean of its features',
  )
  add(
    '--mrm',
    action='store_true',
    help='report the multi-view refinement of PFED too, beside the plain '
    'ranking and the mean; with --multi_query or --multi_gallery',
  )
  add('--rerank', choices=('none', 'gnn', 'k_reciprocal'))
  add('--rerank_k1', type=int, metavar='K', help='size of neighbourhoods')
  add('--rerank_k2', type=int, metavar='K', help='neighbours that are fused')
  add(
    '--rerank_candidates',
    type=int,
    metavar='N',
    help='re-rank only the N best of every query: for galleries of which the '
    'whole needs too much memory',
  )
  add = parser.add_argument_group('cross-diffusion of PLCD').add_argument
  add(
    '--diffusion',
    nargs='+',
    metavar='FILE',
    help='files of the drone-to-satellite model for diffusion '
    '(pytorch_for_diffusion.hdf5): satellites are ranked for the ground '
    'queries of --features, whose gallery are the same drone pictures',
  )
  add(
    '--diffusion_options',
    nargs='+',
    metavar='KEY=VALUE',
    help='kq, kd, n_trunc, alpha, gamma, cg_iterations, cg_tolerance, '
    'converge, hiera, block (default: the published 20, 70, 500, 0.99, 3, ...)',
  )
  add(
    '--diffusion_cache',
    metavar='DIR',
    help='keeps the offline part, by the content of the features',
  )
  add = parser.add_argument_group('output of feature files').add_argument
  add('--output', metavar='FILE.json', help='metrics and what was done')
  add(
    '--per_query',
    action='store_true',
    help='--output lists rank of the first right answer (from 0, -1: none), '
    'average precision and best gallery rows of every query too',
  )
  add(
    '--save_answers',
    metavar='FILE',
    help='answer file of University-160k (answer.txt, or a .zip of it): the '
    'names of the ten best gallery pictures; labels are not needed for it',
  )
  add(
    '--query_names',
    metavar='FILE',
    help='file names of the queries, in the order of the answers '
    '(query_drone_name.txt); default: the order of the features',
  )
  add(
    '--challenge', choices=sorted(submission.SEPARATORS), help='default: 160k'
  )


def defaults() -> dict[str, Any]:
  """The flags of this module, without dashes, and their values if not given."""
  parser = argparse.ArgumentParser(add_help=False)
  add_arguments(parser)
  return vars(parser.parse_args([]))


def given(args: argparse.Namespace) -> list[str]:
  """The flags of this module that were given."""
  return [
    f'--{name}' for name, x in defaults().items() if getattr(args, name) != x
  ]


def is_asked(args: argparse.Namespace) -> bool:
  """Whether there are feature files to evaluate."""
  return bool(args.features or args.query_features or args.gallery_features)
