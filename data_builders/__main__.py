"""`python -m data_builders data_builders/<name> --data_dir=D ...`"""

import argparse
import logging as python_logging
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

from absl import flags, logging

from data_builders import prepare

EXAMPLES = """\
examples:
  python -m data_builders data_builders/rendered_city --config=demo --data_dir=data
  python -m data_builders data_builders/university1652 --data_dir=data \\
      --manual_dir=downloads/University-Release --num-processes=8

data sets: {names}
(`--list` shows the configurations of one; `python -m data_builders.check NAME
--manual_dir=M` says in seconds what is missing in a download.)

The result is DATA_DIR/NAME/[CONFIG/]VERSION and is opened by the name
NAME or NAME/CONFIG; `--list` names the protocols of data sets that have some,
opened as NAME/PROTOCOL. A complete data set is kept; a build that fails or is
stopped leaves nothing that could be taken for a data set.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line; exits with a message when it is wrong."""
  parser = argparse.ArgumentParser(
    prog='python -m data_builders',
    description='Builds a data set: pictures with place, path and pose, in'
    ' ArrayRecord, ready for training.',
    epilog=EXAMPLES.format(names=', '.join(prepare.names())),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    'dataset', help='name of a builder, or its folder data_builders/NAME'
  )
  parser.add_argument(
    *_spellings('data_dir'),
    type=pathlib.Path,
    help='root of the built data sets (created)',
  )
  parser.add_argument(
    *_spellings('manual_dir'),
    type=pathlib.Path,
    help='the unpacked download, for data sets that are made from one',
  )
  parser.add_argument('--config', help='configuration; default: the first')
  parser.add_argument(
    *_spellings('num_processes'),
    type=int,
    default=1,
    metavar='N',
    help='worker processes (default 1); the result does not depend on it.'
    f' This machine has {os.cpu_count()} cores',
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help='build anew even if complete; the old one is replaced at the end',
  )
  parser.add_argument(
    *_spellings('skip_damaged'),
    action='store_true',
    help='leave out pictures that cannot be read (named in the log and in'
    ' build_report.json) instead of refusing to build',
  )
  parser.add_argument(
    '--list', action='store_true', help='list the configurations and end'
  )
  args = parser.parse_args(argv)
  if args.data_dir is None and not args.list:
    parser.error('the following arguments are required: --data_dir')
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Builds; returns 0, or 1 after a message on standard error."""
  args = parse(argv)
  try:
    if args.list:
      sys.stdout.write(_configurations(args.dataset))
      return 0
    folder = prepare.prepare(
      args.dataset,
      args.data_dir,
      config=args.config,
      manual_dir=args.manual_dir,
      num_processes=args.num_processes,
      overwrite=args.overwrite,
      skip_damaged=args.skip_damaged,
    )
  except (ValueError, OSError) as error:
    sys.stderr.write(f'{error}\n')
    return 1
  except KeyboardInterrupt:
    sys.stderr.write('stopped; nothing was built\n')
    return 130
  sys.stdout.write(f'{folder}\n')
  return 0


def _log_to_terminal() -> None:
  """Shows what builders log, with the time and without file names."""
  flags.FLAGS.mark_as_parsed()  # absl's handler waits for its flags otherwise
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  handler = logging.get_absl_handler()
  handler.setFormatter(
    python_logging.Formatter(
      '%(asctime)s %(levelname)s %(message)s', '%H:%M:%S'
    )
  )
  # Libraries speak from warnings upwards.
  handler.addFilter(
    lambda record: (
      'site-packages' not in record.pathname
      or record.levelno >= python_logging.WARNING
    )
  )


def _spellings(name: str) -> tuple[str, ...]:
  """--data_dir and --data-dir are the same."""
  return (f'--{name}', f'--{name.replace("_", "-")}')


def _configurations(dataset: str) -> str:
  name = prepare.name_of(dataset)
  cls = prepare.builder_class(name)
  lines = [f'{name} {cls.VERSION}']
  lines += [f'  {c.name}: {c.description}' for c in cls.BUILDER_CONFIGS]
  for protocol, text in cls.PROTOCOLS.items():
    lines.append(f'  {protocol}: {text} (built with the others)')
  return '\n'.join(lines) + '\n'


def _stop(signum, frame) -> None:
  """SIGTERM ends a build as Ctrl-C does: cleaned up."""
  raise KeyboardInterrupt


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, _stop)
  _log_to_terminal()
  sys.exit(main())
