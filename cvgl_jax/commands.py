"""The subcommands of `main.py`: their flags, and what each one calls."""

import argparse
import functools
import logging as std_logging
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from cvgl_jax import evaluate as evaluate_lib
from cvgl_jax import experiment, stop
from cvgl_jax import train as train_lib
from cvgl_jax.report import build

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
  try:
    train_lib.train(config, args.workdir)
  except stop.Stopped as stopped:
    sys.stderr.write(f'{stopped}\n')
    return STOPPED
  return 0


def evaluate(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Evaluate a checkpoint with every evaluator of the config.

  Prints the metrics and writes eval/<evaluator>.json and .npz to --workdir.
  --checkpoint=init takes the weights before training (with
  --config.init.weights=net_119.pth: those of the published PyTorch code).

  Example:
    python main.py evaluate --workdir=runs/university --checkpoint=best
  """
  metrics = evaluate_lib.evaluate(config, args.workdir, args.checkpoint)
  if jax.process_index() == 0:
    width = max(map(len, metrics))
    for name, value in metrics.items():
      sys.stdout.write(f'{name:<{width}}  {value:7.2f}\n')
  return 0


def embed(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Write the features of whole splits to features/<split>.npy and .csv.

  float32 [pictures, dimension], unit norm; the .csv lists place, path and
  coordinates row by row.

  Example:
    python main.py embed --workdir=runs/university \\
      --split=test_query_drone --split=test_gallery_satellite
  """
  evaluate_lib.embed(config, args.workdir, args.checkpoint, splits=args.split)
  return 0


def report(args: argparse.Namespace, config: Mapping[str, Any]) -> int:
  """Write report/index.html: curves, tables, ranking panels, failures.

  One static page with its pictures beside it: no server, no network. Shows
  what the run has so far.

  Example:
    python main.py report --workdir=runs/university
  """
  checked = experiment.check(config)
  page, table = build.build(
    args.workdir, open_split=functools.partial(experiment.open_split, checked)
  )
  sys.stdout.write(f'{table}\n\nreport: {page}\n')
  return 0


COMMANDS = {
  'train': train,
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
    '--workdir', required=True, metavar='DIR', help='folder of the run'
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


def start_distributed(args: argparse.Namespace) -> None:
  """Connects the processes of a run; nothing for a single one.

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
