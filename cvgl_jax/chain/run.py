"""Runs a chain: its stages one after the other, then the joint evaluation.

The same command resumes it wherever it was stopped: finished stages are
recognised by `chain.json`, the stage in the middle resumes as any run does, and
features and rankings are made again only where the weights or options that they
were made from are others.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from cvgl_jax import stop, writer
from cvgl_jax import train as train_lib
from cvgl_jax.chain import joint as joint_lib
from cvgl_jax.chain import ledger as ledger_lib
from cvgl_jax.chain import preflight, recipe


def run(config: Mapping[str, Any], workdir: str) -> dict[str, float]:
  """Trains all stages and evaluates them together, or resumes that.

  Args:
    config: of a chain, see `recipe`.
    workdir: of the chain: config.json, chain.json, a folder of every stage;
      features/, diffusion/ and eval/ of the joint evaluation.

  Returns:
    '<stage>/<evaluator>/<metric>' of every stage's last evaluation, and
    '<evaluator>/<metric>' of the joint one.

  Raises:
    ValueError: a config that cannot work, before the first stage starts; a
      stage whose checkpoint is gone.
    stop.Stopped: SIGTERM, Ctrl-C or preemption; the same command resumes.
  """
  plan = recipe.check(config, workdir)
  path = pathlib.Path(workdir) / 'config.json'
  if path.exists() and recipe.read_config(workdir) is None:
    raise ValueError(
      f'{path} is of a single run, not of a chain; use another --workdir'
    )
  preflight.check(plan)
  ledger = ledger_lib.Ledger(workdir)
  # Nothing was written before: a command that is refused changes nothing.
  ledger_lib.agreed(lambda: _write_config(path, config))
  for number, stage in enumerate(plan.stages, 1):
    logging.info('stage %d of %d: %s', number, len(plan.stages), stage.name)
    _train(stage, plan, ledger)
  if plan.joint is not None:
    joint_lib.run(plan, ledger)
  return results(plan)


def results(plan: recipe.Plan) -> dict[str, float]:
  """What stands in eval/ of the stages and of the chain."""
  folders = {f'{s.name}/': pathlib.Path(s.workdir) for s in plan.stages}
  folders[''] = pathlib.Path(plan.workdir)
  numbers = {}
  for prefix, folder in folders.items():
    for path in sorted(folder.glob('eval/*.json')):
      for key, value in json.loads(path.read_text())['metrics'].items():
        numbers[f'{prefix}{path.stem}/{key}'] = value
  return numbers


def _train(
  stage: recipe.Stage, plan: recipe.Plan, ledger: ledger_lib.Ledger
) -> None:
  if ledger.is_finished(stage, plan):
    logging.info('%s is finished: nothing to do', stage.workdir)
    return
  ledger.begin(stage, plan)
  try:
    with recipe.of_stage(stage.name):
      train_lib.train(stage.config, stage.workdir)
  except stop.Stopped as stopped:
    raise stop.Stopped(f'stage {stage.name}: {stopped}') from stopped
  ledger.finish(stage)


def _write_config(path: pathlib.Path, config: Mapping[str, Any]) -> bool:
  writer.replace_text(path, json.dumps(config, indent=2) + '\n')
  return True
