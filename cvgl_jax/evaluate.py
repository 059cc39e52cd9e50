"""Runs evaluators: during training, and for `main.py evaluate` and `embed`."""

import csv
import functools
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cvgl_jax import checkpoint, experiment, settings, sharding, writer
from cvgl_jax.evaluators import embedder as embedder_lib
from cvgl_jax.methods import contract
from cvgl_jax.models import cost
from cvgl_jax.retrieval.files import feature_files


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
    prepare=experiment.make_prepare(checked),
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
  config: Mapping[str, Any],
  workdir: str,
  which: str,
  *,
  splits: list[str],
  file_format: str = 'npy',
) -> list[pathlib.Path]:
  """`main.py embed`: features of whole splits, for use elsewhere.

  Float32 [N, D], unit norm, one row a picture. A split is embedded as the entry
  of `config.evals` that reads it does: branch, mirror image, scales. An entry on
  the run's own data goes before one on other `data_names`, and one that reads
  all the splits before one that reads a part of them. A split that no entry
  reads (of the training set) is embedded as those of the entries are, by the
  branch of its own view; without any entry, with the mirror image, at scale 1.
  Pictures of a place stay apart, whatever the entries merge.

  'npy' writes `features/<split>.npy` and `features/<split>.csv` (row, place,
  path, latitude, longitude). 'mat' and 'hdf5' write the files of the published
  code (see `retrieval.files.feature_files.write`) from two splits, the queries and
  the gallery; two gallery splits make those for PLCD's diffusion.

  Raises:
    ValueError: an unknown split; entries that embed it differently; not two
      splits where that is needed, or the gallery first.
  """
  suffix = '' if file_format == 'npy' else _check_sides(file_format, splits)
  checked, embedder, _ = restored(config, workdir, which)
  folder = pathlib.Path(workdir) / 'features'
  opened = [experiment.open_split(checked, (), name) for name in splits]
  evaluators, own = experiment.make_evaluators(checked), checked.data.names
  options = [
    _embedding(evaluators, split, own=tuple(own), splits=splits)
    for split in opened
  ]
  sides = {}
  written = []
  for split, how in zip(opened, options, strict=True):
    features = embedder(split, **how)
    if jax.process_index():
      continue
    if file_format != 'npy':
      sides['gallery' if sides else 'query'] = feature_files.Side(
        features=features, labels=split.place, paths=split.path
      )
      continue
    data = io.BytesIO()
    np.save(data, features)
    writer.replace_bytes(folder / f'{split.name}.npy', data.getvalue())
    writer.replace_text(folder / f'{split.name}.csv', _listing(split))
    written.append(folder / f'{split.name}.npy')
    logging.info('%s: %d x %d', written[-1], *features.shape)
  if sides:
    written = feature_files.write(folder, file_format, sides, suffix=suffix)
    logging.info('%s', ', '.join(map(str, written)))
  return written


def describe(checked: settings.Settings) -> dict[str, Any]:
  """What the report shows of the method itself; nothing is computed or read.

  Returns:
    'parameters': how many; 'macs' and 'flops': view -> those of a forward pass
    of one picture, see `models.cost`; 'layouts': view -> int [h, w], the part of
    the descriptor (from 1) that every cell of a picture goes into, 0 = none, of
    a method that has such parts and offers `layout(view, picture_hw)`.
  """
  method = contract.without_training_data(experiment.make_method(checked), '')
  shapes = experiment.init_shapes(method, checked)
  embed = getattr(method, 'embed_raw', None) or method.embed
  sizes = experiment.network_sizes(checked, dict.fromkeys(method.views))
  costs, layouts = {}, {}
  for view, size_hw in sizes.items():
    image = jax.ShapeDtypeStruct((1, *size_hw, 3), jnp.uint8)
    costs[view] = cost.forward(
      functools.partial(embed, view=view), shapes, image
    )
    layout = method.layout(view, size_hw) if hasattr(method, 'layout') else None
    if layout is not None:
      layouts[view] = np.asarray(layout)
  return {
    'parameters': sum(x.size for x in jax.tree.leaves(shapes['params'])),
    'macs': {view: one.macs for view, one in costs.items()},
    'flops': {view: one.flops for view, one in costs.items()},
    'layouts': layouts,
  }


def _embedding(
  evaluators: Mapping[str, Any],
  split: Any,
  *,
  own: tuple[str, ...],
  splits: list[str],
) -> dict[str, Any]:
  """Options of the embedder for a split, from the evaluators; see `embed`.

  Args:
    evaluators: of the config.
    split: the one to embed.
    own: names of the run's own data sets.
    splits: names of all that are embedded.

  Raises:
    ValueError: evaluators disagree; says in what, and how to make them agree.
  """
  readers = [
    (name, side)
    for name, evaluator in evaluators.items()
    for side in ('query', 'gallery')
    if getattr(evaluator, f'{side}_split') == split.name
  ]
  reads_own = lambda entry: tuple(entry.data_names) in ((), own)
  reads_all = lambda entry: (
    set(splits) <= {entry.query_split, entry.gallery_split}
  )
  for better in (reads_own, reads_all):
    readers = [one for one in readers if better(evaluators[one[0]])] or readers
  found = [
    (name, side, evaluators[name].embedding(side)) for name, side in readers
  ]
  if not readers:
    found = [
      (name, 'query', evaluator.embedding('query') | {'view': None})
      for name, evaluator in evaluators.items()
    ]
  if not found:
    return {}
  for _, _, options in found:
    options['view'] = options['view'] or split.view
  first, _, chosen = found[0]
  for name, side, options in found[1:]:
    for key, value in chosen.items():
      if options[key] == value:
        continue
      field = f'{side}_view' if key == 'view' else key
      raise ValueError(
        f'{split.name}: config.evals.{first} and config.evals.{name} embed it '
        f'differently, with {key} {value!r} and {options[key]!r}; make them '
        f"agree for this command, such as by '--config.evals.{name}.{field}="
        f"{value}'"
      )
  logging.info(
    '%s: embedded as for config.evals.%s: %s', split.name, first, chosen
  )
  return chosen


def _check_sides(file_format: str, splits: list[str]) -> str:
  """The suffix of the published code's file names."""
  galleries = ['_gallery_' in name for name in splits]
  if len(splits) != 2 or not galleries[1]:
    raise ValueError(
      f'--format={file_format} writes queries and gallery together: give two '
      '--split, such as --split=test_query_drone '
      f'--split=test_gallery_satellite, not {splits}'
    )
  # In PLCD's second pair of files the drone gallery stands as the queries.
  return '_for_diffusion' if galleries[0] else ''


def _listing(split: Any) -> str:
  text = io.StringIO()
  rows = csv.writer(text, lineterminator='\n')
  rows.writerow(['row', 'place', 'path', 'latitude_deg', 'longitude_deg'])
  for i in range(len(split)):
    rows.writerow([i, split.place[i], split.path[i], *split.latlon_deg[i]])
  return text.getvalue()
