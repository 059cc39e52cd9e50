"""Runs evaluators: during training, and for `main.py evaluate` and `embed`."""

import csv
import functools
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from cvgl_jax import checkpoint, experiment, settings, sharding, writer
from cvgl_jax.evaluators import embedder as embedder_lib
from cvgl_jax.methods import contract


def make_embedder(
  checked: settings.Settings,
  method: Any,
  variables: Any,
  mesh: jax.sharding.Mesh,
) -> embedder_lib.Embedder:
  """Pictures to features with this run's network and transform."""
  return embedder_lib.Embedder(
    method,
    variables,
    batch_size=checked.data.eval_batch_size,
    load=experiment.make_loader(checked, train=False),
    mesh=mesh,
    threads=checked.data.threads,
  )


def run(
  evaluators: Mapping[str, Any],
  embedder: embedder_lib.Embedder,
  checked: settings.Settings,
  *,
  workdir: str,
  step: int,
) -> dict[str, float]:
  """Runs every evaluator and writes `eval/<name>.json` and `.npz`.

  Returns:
    '<evaluator>/<metric>' -> number.

  Raises:
    ValueError: features are not finite; nothing is reported on them.
  """
  metrics = {}
  for name, evaluator in evaluators.items():
    try:
      result = evaluator.run(
        embedder, functools.partial(experiment.open_split, checked)
      )
    except ValueError as error:
      raise ValueError(f'config.evals.{name}, step {step}: {error}') from error
    result.write(workdir, name, step=step)
    metrics |= {f'{name}/{key}': v for key, v in result.metrics.items()}
    logging.info(
      'step %d  %s  %s',
      step,
      name,
      '  '.join(f'{key} {v:.2f}' for key, v in result.metrics.items()),
    )
  return metrics


def restored(
  config: Mapping[str, Any], workdir: str, which: str
) -> tuple[settings.Settings, embedder_lib.Embedder, int]:
  """Settings, an embedder with weights, and the step they are of.

  Args:
    config: of the run.
    workdir: of the run.
    which: 'latest', 'best', a step, or 'init': the weights before training
      (`config.init`: random, or a published checkpoint).
  """
  checked = experiment.check(config)
  mesh = sharding.make_mesh()
  if which == 'init':
    step = 0
    method = contract.without_training_data(
      experiment.make_method(checked), checked.init.weights
    )
    variables = experiment.variables_before_training(method, checked, mesh)
  else:
    step = checkpoint.choose(workdir, which)
    trained = settings.load_config(workdir)['method'].get('num_classes', 0)
    method = experiment.make_method(checked, num_classes=trained)
    variables = checkpoint.restore_variables(
      workdir, step, experiment.init_shapes(method, checked)
    )
    variables = jax.device_put(variables, sharding.replicated(mesh))
  logging.info('weights: %s, step %d', which, step)
  return checked, make_embedder(checked, method, variables, mesh), step


def evaluate(
  config: Mapping[str, Any], workdir: str, which: str
) -> dict[str, float]:
  """`main.py evaluate`: all evaluators of the config on one checkpoint."""
  checked, embedder, step = restored(config, workdir, which)
  settings.save_config_if_absent(workdir, config)
  evaluators = experiment.make_evaluators(checked)
  if not evaluators:
    raise ValueError('config.evals is empty: there is nothing to evaluate')
  return run(evaluators, embedder, checked, workdir=workdir, step=step)


def embed(
  config: Mapping[str, Any], workdir: str, which: str, *, splits: list[str]
) -> list[pathlib.Path]:
  """`main.py embed`: features of whole splits, for use elsewhere.

  Writes `features/<split>.npy` (float32 [N, D], unit norm; the picture and its
  mirror image summed, scale 1) and `features/<split>.csv` (row, place, path,
  latitude, longitude).
  """
  checked, embedder, _ = restored(config, workdir, which)
  folder = pathlib.Path(workdir) / 'features'
  written = []
  for name in splits:
    split = experiment.open_split(checked, (), name)
    features = embedder(split)
    if jax.process_index():
      continue
    data = io.BytesIO()
    np.save(data, features)
    writer.replace_bytes(folder / f'{name}.npy', data.getvalue())
    writer.replace_text(folder / f'{name}.csv', _listing(split))
    written.append(folder / f'{name}.npy')
    logging.info('%s: %d x %d', written[-1], *features.shape)
  return written


def _listing(split: Any) -> str:
  text = io.StringIO()
  rows = csv.writer(text, lineterminator='\n')
  rows.writerow(['row', 'place', 'path', 'latitude_deg', 'longitude_deg'])
  for i in range(len(split)):
    rows.writerow([i, split.place[i], split.path[i], *split.latlon_deg[i]])
  return text.getvalue()
