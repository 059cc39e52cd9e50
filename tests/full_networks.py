"""Published networks of full size with formula weights, for golden checks."""

import json

import jax
import numpy as np

from tests import formula_weights, golden_case
from tests.torch_names import nchw, nhwc


def source(case: golden_case.Case, listing: str) -> dict[str, np.ndarray]:
  """Formula weights for the names in `<listing>.json`, which files share."""
  delivered = golden_case.DEFAULT / case.path.parent.name
  choices = [
    folder / f'{listing}.json' for folder in (case.path.parent, delivered)
  ]
  path = next(path for path in choices if path.exists())
  return formula_weights.state_dict(json.loads(path.read_text()))


def variables(method, views_hw, source) -> dict:
  """Variables of a method for pictures of these sizes, from torch entries."""
  batch = {
    view: {'image': jax.ShapeDtypeStruct((1, *size_hw, 3), np.float32)}
    for view, size_hw in views_hw.items()
  }
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
  return method.variables_from_torch(shapes, source, where='golden')


def inputs(case: golden_case.Case, seed: str, shape: str) -> np.ndarray:
  """The normalised pictures that only their seed is stored of, NHWC."""
  shape = tuple(case[shape].tolist())
  rng = np.random.default_rng(case.scalar(seed))
  return nhwc(rng.standard_normal(shape).astype(np.float32))


def run(module, params, x, **options) -> tuple[np.ndarray, dict]:
  """Output in evaluation mode and the outputs of the modules, by name."""
  with jax.default_matmul_precision('highest'):
    y, state = jax.jit(
      lambda params, x: module.apply(
        {'params': params},
        x,
        capture_intermediates=True,
        mutable=['intermediates'],
        **options,
      )
    )(params, x)
  return y, state['intermediates']


def output(maps: dict, name: str) -> np.ndarray:
  """What one module returned, channels first where it is a map."""
  value = np.asarray(maps[name]['__call__'][0], np.float64)
  return nchw(value) if value.ndim == 4 else value


def stats(value: np.ndarray) -> list[float]:
  """Mean, population deviation and largest magnitude, as the README says."""
  return [value.mean(), value.std(), np.abs(value).max()]


def last_of(maps: dict, prefix: str) -> str:
  """The last module of a torch Sequential: the highest index behind it."""
  names = [name for name in maps if name.startswith(f'{prefix}_')]
  return max(names, key=lambda name: int(name.rsplit('_', 1)[1]))
