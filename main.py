"""cvgl_jax: cross-view geo-localization. One command line for everything.

  python main.py train    --config=configs/quickstart.py --workdir=runs/quickstart
  python main.py chain    --config=configs/plcd_chain.py --workdir=runs/plcd
  python main.py evaluate --workdir=runs/quickstart
  python main.py embed    --workdir=runs/quickstart --split=test_query_drone
  python main.py report   --workdir=runs/quickstart
  python main.py evaluate --features pytorch_result.mat   (of any code base)

Any value of a config can be set: --config.optim.lr=0.02. The commands after
`train` read the config that the run wrote to its workdir.
"""

import argparse
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_dict, config_flags

from cvgl_jax import commands, settings
from cvgl_jax.chain import recipe as chain_recipe


def parser() -> argparse.ArgumentParser:
  """The command line, without `--config`, which ml_collections reads."""
  top = argparse.ArgumentParser(
    prog='python main.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  subparsers = top.add_subparsers(dest='command', required=True)
  for name, command in commands.COMMANDS.items():
    sub = subparsers.add_parser(
      name,
      help=command.__doc__.splitlines()[0],
      description=command.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    commands.add_arguments(name, sub)
  return top


def load_config(args: argparse.Namespace, rest: list[str]) -> dict:
  """The config file with its overrides, or that of the workdir."""
  if not commands.needs_config(args, rest):
    return {}
  values = flags.FlagValues()
  argv = [sys.argv[0], *rest]
  if args.config:
    path = pathlib.Path(args.config.partition(':')[0])
    if not path.is_file():
      known = sorted(str(p) for p in path.parent.glob('[!_]*.py'))
      raise ValueError(f'--config: no file {path}; there are {known}')
    argv.insert(1, f'--config={args.config}')
    config_flags.DEFINE_config_file(
      'config', flag_values=values, lock_config=True, sys_argv=argv
    )
  elif args.command == 'train':
    raise ValueError('train needs --config=configs/<recipe>.py')
  else:
    saved = config_dict.ConfigDict(settings.load_config(args.workdir))
    chain_recipe.tie(saved)
    config_flags.DEFINE_config_dict(
      'config', saved, flag_values=values, sys_argv=argv
    )
  try:
    left_over = values(argv)[1:]
    config = values.config
  except Exception as error:
    message = f'{" ".join(argv[1:])}: {commands.config_error(error)}'
    raise ValueError(f'{message} (keys: the recipe)') from error
  if left_over:
    raise ValueError(
      f'unexpected {left_over}; overrides are --config.KEY=VALUE'
    )
  return config.to_dict()


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns the exit code."""
  args, rest = parser().parse_known_args(argv)
  flags.FLAGS.mark_as_parsed()  # Grain reads absl flags
  commands.set_up_logging(debug=args.debug)
  try:
    commands.start(args)
    return commands.COMMANDS[args.command](args, load_config(args, rest))
  except (ValueError, OSError, FloatingPointError) as error:
    if args.debug:
      raise
    logging.error('error: %s\n(--debug shows where)', error)
    return 1


if __name__ == '__main__':
  sys.exit(main())
