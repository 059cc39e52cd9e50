"""`python -m data_builders.check NAME --manual_dir=M`: is a download usable?

Says in seconds what is present, missing or misplaced. Exit code 0: the builder
can use it (warnings included); 1: it cannot.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

from data_builders import prepare


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the report to standard output; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m data_builders.check',
    description=__doc__.split('\n', 2)[2],
    epilog=f'data sets: {", ".join(prepare.names())}',
    allow_abbrev=False,
  )
  parser.add_argument(
    'dataset', help='name of a builder, or its folder data_builders/NAME'
  )
  parser.add_argument(
    '--manual_dir',
    '--manual-dir',
    type=pathlib.Path,
    help='the unpacked download',
  )
  args = parser.parse_args(argv)
  try:
    name = prepare.name_of(args.dataset)
  except ValueError as error:
    parser.error(str(error))
  if not (prepare.BUILDERS / name / 'download.py').is_file():
    sys.stdout.write(f'{name} is generated: there is no download to check\n')
    return 0
  if args.manual_dir is None:
    parser.error('the following arguments are required: --manual_dir')
  module = importlib.import_module(f'data_builders.{name}.download')
  found, _ = module.inspect(args.manual_dir)
  sys.stdout.write(found.text())
  return 0 if found.usable else 1


if __name__ == '__main__':
  sys.exit(main())
