"""Several pictures of one place as one feature.

Source: layumi/LPN `test.py` (multi-query: the mean of a place's drone
features) and layumi/University1652-Baseline `test.py` (street features
averaged per building, commented out there).
"""

from typing import NamedTuple

import numpy as np


class PlaceFeatures(NamedTuple):
  """One feature for every place.

  Attributes:
    features: [K, D] float32.
    place: [K] the places, ascending.
  """

  features: np.ndarray
  place: np.ndarray


def mean_by_place(
  features: np.ndarray, place: np.ndarray, *, normalize: bool = False
) -> PlaceFeatures:
  """The mean feature of every place.

  Args:
    features: [N, D] float array.
    place: [N] integers.
    normalize: divide the means by their L2 norm. Cosine ranking does not
      change by it.

  Returns:
    `PlaceFeatures`, sums taken in float64.

  Raises:
    ValueError: lengths differ, nothing to average, or (normalize) a place
      whose features cancel out.
  """
  features, place = np.asarray(features), np.asarray(place)
  if features.ndim != 2 or place.shape != features.shape[:1] or not len(place):
    raise ValueError(
      f'features of shape {features.shape} with places of shape {place.shape}; '
      'expected [N, D] and [N], N > 0'
    )
  places, inverse, count = np.unique(
    place, return_inverse=True, return_counts=True
  )
  total = np.zeros((len(places), features.shape[1]), np.float64)
  np.add.at(total, inverse, features)
  mean = total / count[:, None]
  if normalize:
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    if not norm.all():
      raise ValueError(
        f'place {places[np.argmin(norm)]}: its features cancel out, so their '
        'mean has no direction'
      )
    mean /= norm
  return PlaceFeatures(mean.astype(np.float32), places)
