"""The subcommands of `main.py`: their flags, and what each one calls."""

import argparse
import difflib
import functools
import logging as std_logging
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from cvgl_jax import evaluate as evaluate_lib
from cvgl_jax import (
  evaluate_features,
  evaluate_flags,
  experiment,
  settings,
  stop,
)
from cvgl_jax import train as train_lib
from cvgl_jax.chain import recipe as chain_recipe
from cvgl_jax.chain import run as chain_run
from cvgl_jax.report import build
from cvgl_jax.report import chain as chain_page

STOPPED = 143  # 128 + SIGTERM, what a shell reports for a terminated process


def train(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Train a recipe, or resume it.

  Writes config.json, checkpoints/, metrics.jsonl, events/ (TensorBoard) and
  eval/ to --workdir. Stop it at will (SIGTERM, kill -9, preemption): the same
  command resumes from the last checkpoint, bit for bit on the same devices.

  Example:
    python main.py train --config=configs/university1652.py \\
      --workdir=runs/university --config.data.dir=data --config.seed=1
  """
  _check_one_run(args, config)
  try:
    train_lib.train(config, args.workdir)
  except stop.StoppedAtEnd:
    pass  # The run is whole.
  except stop.Stopped as stopped:
    sys.stderr.write(f'{stopped}\n')
    return STOPPED
  return 0


def chain(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Train several recipes in a row and evaluate them together, or resume that.

  A recipe with stages, such as configs/plcd_chain.py: each is trained in
  --workdir/<stage>; then features are extracted, joined by cross-diffusion and
  measured. Stop it at will: the same command goes on where it was, finished
  stages cost seconds. A single value of a stage is --config.stages.NAME.KEY.

  Example:
    python main.py chain --config=configs/plcd_chain.py --workdir=runs/plcd \
      --config.data.dir=data --config.joint.diffusion.kq=20
  """
  try:
    metrics = chain_run.run(config, args.workdir)
  except stop.Stopped as stopped:
    sys.stderr.write(f'{stopped}\n')
    return STOPPED
  _write_metrics(metrics)
  return 0


def evaluate(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Evaluate a run, or feature files of any code base.

  Of a run: a checkpoint with every evaluator of the config. Prints the metrics
  and writes eval/<evaluator>.json and .npz to --workdir. --checkpoint=init
  takes the weights before training (with --config.init.weights=net_119.pth:
  those of the published PyTorch code).

    python main.py evaluate --workdir=runs/university --checkpoint=best

  Of feature files: no data set, recipe or run is needed. Read are the result
  files of University-1652, LPN, MobileGeo (.mat) and PLCD (.hdf5 with its
  .mat), and .npy or .npz with labels in CSV; nothing in them is executed.

    python main.py evaluate --features pytorch_result.mat
    python main.py evaluate --features pytorch.hdf5 pytorch_result.mat
    python main.py evaluate --query_features q.npy --query_labels q.csv \\
      --gallery_features g.npy --gallery_labels g.csv --protocol sample4geo
    python main.py evaluate --query_features F/test_query_drone.npy \\
      --gallery_features F/test_gallery_satellite.npy   (F: of `embed`)
    python main.py evaluate --features G2D/pytorch.hdf5 \\
      --diffusion D2S/pytorch_for_diffusion.hdf5
  """
  if evaluate_flags.is_asked(args):
    if jax.process_count() > 1:
      raise ValueError('feature files are evaluated by one process')
    sys.stdout.write(evaluate_features.run(args))
    return 0
  _check_one_run(args, config)
  _write_metrics(evaluate_lib.evaluate(config, args.workdir, args.checkpoint))
  return 0


def embed(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Write the features of whole splits to features/ of --workdir.

  float32 [pictures, dimension], unit norm, mirrored and scaled as the entry of
  config.evals that reads the split does. As <split>.npy and <split>.csv (place,
  path and coordinates row by row); or with --format of a query split
  and a gallery split as the published PyTorch code writes them, for its
  evaluators. `main.py evaluate` reads all of these.

  Example:
    python main.py embed --workdir=runs/university \\
      --split=test_query_drone --split=test_gallery_satellite
  """
  _check_one_run(args, config)
  evaluate_lib.embed(
    config,
    args.workdir,
    args.checkpoint,
    splits=args.split,
    file_format=args.format,
  )
  return 0


def report(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Write report/index.html: curves, tables, ranking panels, failures.

  One static page with its pictures beside it: no server, no network. Shows
  what the run has so far. Of a chain, its page and those of its stages.

  Example:
    python main.py report --workdir=runs/university
  """
  if chain_recipe.is_chain(config):
    page, table = _report_chain(args, config)
  else:
    page, table = build.build(
      args.workdir, **_report_options(experiment.check(config))
    )
  sys.stdout.write(f'{table}\n\nreport: {page}\n')
  return 0


COMMANDS = {
  'train': train,
  'chain': chain,
  'evaluate': evaluate,
  'embed': embed,
  'report': report,
}


def add_arguments(name: str, parser: argparse.ArgumentParser) -> None:
  """Flags of one subcommand."""
  parser.add_argument(
    '--config',
    metavar='FILE',
    help='recipe, configs/<name>.py'
    + ('' if name == 'train' else ' (default: config.json of the workdir)')
    + '; --config.KEY=VALUE overrides any of its values',
  )
  parser.add_argument(
    '--workdir',
    required=name != 'evaluate',
    metavar='DIR',
    help='folder of the run',
  )
  if name in ('evaluate', 'embed'):
    parser.add_argument(
      '--checkpoint',
      default='best',
      metavar='WHICH',
      help="'best' (default), 'latest', a step, or 'init' (before training)",
    )
  if name == 'embed':
    parser.add_argument(
      '--split',
      action='append',
      required=True,
      metavar='SPLIT',
      help='split of the data set, such as test_query_drone; repeatable',
    )
    parser.add_argument(
      '--format',
      choices=('npy', 'mat', 'hdf5'),
      default='npy',
      help='npy: <split>.npy and .csv (default). mat: pytorch_result.mat of '
      'University-1652, LPN, MobileGeo. hdf5: pytorch.hdf5 and '
      'pytorch_result.mat of PLCD. Those two take the query --split first, the '
      'gallery --split second; two gallery splits make the files for '
      "PLCD's diffusion",
    )
  if name == 'evaluate':
    evaluate_flags.add_arguments(parser)
  parser.add_argument(
    '--compile_cache',
    default='~/.cache/cvgl_jax/compiled',
    metavar='DIR',
    help='keeps compiled programs between runs (default: %(default)s)',
  )
  parser.add_argument(
    '--debug', action='store_true', help='full tracebacks, debug messages'
  )
  several = parser.add_argument_group('several hosts')
  several.add_argument(
    '--distributed',
    action='store_true',
    help='start jax.distributed; SLURM, Open MPI and Cloud TPU need no more',
  )
  several.add_argument('--coordinator', metavar='HOST:PORT')
  several.add_argument('--num_processes', type=int, metavar='N')
  several.add_argument('--process_id', type=int, metavar='I')


def _report_options(checked: settings.Settings) -> dict[str, Any]:
  """What the report asks of a run."""
  return {
    'open_split': functools.partial(experiment.open_split, checked),
    'describe': functools.partial(evaluate_lib.describe, checked),
  }


def _report_chain(
  args: argparse.Namespace, config: Mapping[str, Any]
) -> tuple[pathlib.Path, str]:
  """The report of a chain and of its stages."""
  plan = chain_recipe.check(config, args.workdir)
  stages = {
    stage.name: chain_page.Stage(
      workdir=stage.workdir, **_report_options(stage.checked)
    )
    for stage in plan.stages
  }
  joint = plan.joint.gallery_stage if plan.joint else ''
  return chain_page.build(args.workdir, stages=stages, joint=joint)


def _check_one_run(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
  """Refuses a chain where one run is meant."""
  if chain_recipe.is_chain(config):
    stages = [f'--workdir={args.workdir}/{x}' for x in config['stages']]
    raise ValueError(
      f'this is the config of a chain, and {args.command} is about one run: use '
      f'`main.py chain`, or name a stage: {", ".join(stages)}'
    )


def _write_metrics(metrics: Mapping[str, float]) -> None:
  if jax.process_index() == 0:
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
      sys.stdout.write(f'{name:<{width}}  {value:7.2f}\n')


def config_error(error: Exception) -> Any:
  """What is wrong with a config, of what ml_collections raised.

  It puts a traceback around the ValueError by which a recipe refuses an option.
  """
  message = error.args[0] if error.args else error
  if 'Error whilst parsing config file' in str(message):
    reason = error
    while reason.__context__ is not None:
      reason = reason.__context__
    message = reason if isinstance(reason, ValueError) else message
  return message


def needs_config(args: argparse.Namespace, rest: list[str]) -> bool:
  """Whether a command works on a recipe or run: all but on feature files.

  Raises:
    ValueError: flags that do not go together.
  """
  if args.command != 'evaluate':
    return True
  given = evaluate_flags.given(args)
  if not evaluate_flags.is_asked(args):
    if not args.workdir:
      raise ValueError(
        'evaluate needs --workdir=RUN, or feature files: --features=FILE'
      )
    if given:
      raise ValueError(
        f'{given[0]} belongs to --features; a run is evaluated as its config '
        'says (--config.evals.NAME.KEY=VALUE)'
      )
    return True
  run = [f'--{x}' for x in ('workdir', 'config') if getattr(args, x)]
  if run:
    raise ValueError(f'{run[0]} is of a run; leave it out with {given[0]}')
  if rest:
    flag = rest[0].partition('=')[0]
    near = difflib.get_close_matches(
      flag, [f'--{name}' for name in evaluate_flags.defaults()], n=1
    )
    hint = f'; did you mean {near[0]}?' if near else ''
    raise ValueError(f'unexpected {rest[0]}{hint}')
  return False


def set_up_logging(*, debug: bool) -> None:
  """Our messages with the time; of the libraries only what matters."""

  def matters(record: std_logging.LogRecord) -> bool:
    ours = 'site-packages' not in record.pathname
    warns = record.levelno >= std_logging.WARNING
    # Orbax warns of every checkpoint that is saved without an evaluation.
    expected = 'tracked_metric' in str(record.msg)
    return debug or ours or (warns and not expected)

  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter('%(asctime)s  %(message)s', '%T'))
  handler.addFilter(matters)
  logging.set_verbosity(logging.DEBUG if debug else logging.INFO)


def start(args: argparse.Namespace) -> None:
  """Connects the processes of a run; sets where programs are kept.

  Raises:
    ValueError: an incomplete set of flags.
  """
  explicit = (args.coordinator, args.num_processes, args.process_id)
  if any(value is not None for value in explicit):
    if any(value is None for value in explicit):
      raise ValueError(
        'give --coordinator, --num_processes and --process_id together, or '
        '--distributed alone where the scheduler knows them'
      )
    jax.distributed.initialize(*explicit)
  elif args.distributed:
    try:
      jax.distributed.initialize()
    except Exception as error:
      raise ValueError(
        f'--distributed: no scheduler that jax knows was found ({error}); give '
        '--coordinator, --num_processes and --process_id'
      ) from error
  jax.config.update(
    'jax_compilation_cache_dir', os.path.expanduser(args.compile_cache)
  )
