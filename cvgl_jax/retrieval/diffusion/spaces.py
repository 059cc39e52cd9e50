"""The two spaces of a cross-diffusion: do they fit, do they meet?"""

from collections.abc import Sequence

import numpy as np
from absl import logging

from cvgl_jax.retrieval import features as feature_rows


def pair(*sides: tuple[np.ndarray, str]) -> list[np.ndarray]:
  """Unit rows of two sides of one model.

  Args:
    *sides: features [N, D] and what to call them.

  Raises:
    ValueError: features that cannot be ranked, or of different dimensions.
  """
  unit = [feature_rows.prepare(values, name) for values, name in sides]
  dims = [rows.shape[1] for rows in unit]
  if dims[0] != dims[1]:
    raise ValueError(
      f'{sides[0][1]} have dimension {dims[0]}, {sides[1][1]} {dims[1]}; both '
      'must come from the same model'
    )
  return unit


def check_paths(
  drone_paths: tuple[Sequence[str], Sequence[str]] | None, count: int
) -> None:
  """Both models must list the same drone pictures; without lists: a warning.

  Raises:
    ValueError: names the first row that differs.
  """
  if drone_paths is None:
    logging.warning(
      'cross-diffusion without drone_paths: nothing checks that both models '
      'list the same drone pictures in the same order'
    )
    return
  first, second = ([str(path) for path in paths] for paths in drone_paths)
  if not len(first) == len(second) == count:
    raise ValueError(
      f'drone_paths have {len(first)} and {len(second)} entries for {count} '
      'drone pictures'
    )
  for row, (a, b) in enumerate(zip(first, second, strict=True)):
    if a != b:
      raise ValueError(
        f'the two models list different drone pictures: row {row} is {a!r} for '
        f'ground-to-drone and {b!r} for drone-to-satellite; extract both from '
        'the same list of pictures'
      )


def mention_lost(scores: np.ndarray, *, kq: int, kd: int) -> None:
  """Warns of queries that reach no satellite: their ranking means nothing."""
  lost = int((~scores.any(axis=1)).sum())
  if lost:
    logging.warning(
      f'cross-diffusion: {lost} of {len(scores)} queries reach no satellite '
      'picture and rank them in the order of the gallery: around the '
      f'{kq} drone pictures that they start from, no drone and satellite picture '
      f'are among the kd={kd} neighbours of each other. Larger kd and n_trunc '
      'may help; or both views still lie apart in the features'
    )
