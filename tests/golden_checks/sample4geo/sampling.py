"""Neighbours on the ground, and the batches that are built from neighbours."""

import functools
import random

import numpy as np

from cvgl_jax.data import hard_batches, neighbours
from tests.golden_case import Case

# Refused pairs in a row that end an epoch.
GIVE_UP = 1024


def check_places(case: Case, *, points: str, coordinates: str) -> None:
  ids = case['in/ids']
  near = neighbours.nearest_places(
    case[points],
    k=case['out/near'].shape[1],
    coordinates=coordinates,
    haversine='published',
  )
  case.equal('out/near', ids[near])


def _batches(case: Case, ids: np.ndarray) -> np.ndarray:
  """Numbers of pairs in order; `ids` [n]: what no batch holds twice."""
  names = np.unique(ids)
  lists = None
  if 'in/near' in case:
    near, keys = case['in/near'], case['in/near_keys']
    # Item -> the row of the list of neighbours of its id.
    order = np.argsort(keys)
    of_item = order[np.searchsorted(keys[order], names)]
    lists = [
      np.searchsorted(names, row[row >= 0]).tolist() for row in near[of_item]
    ]
  pairs = hard_batches.with_neighbours(
    np.searchsorted(names, ids).tolist(),
    lists,
    batch_size=case.scalar('in/batch_size'),
    select=case.scalar('in/neighbour_select'),
    reach=case.scalar('in/neighbour_range'),
    rng=random.Random(case.scalar('in/python_random_seed')),
    give_up=GIVE_UP,
  )
  return pairs.reshape(-1)


def check_shuffle(case: Case) -> None:
  ids = case['in/ids']
  case.equal('out/samples', ids[_batches(case, ids)])


def check_shuffle_vigor(case: Case) -> None:
  pairs = case['in/pairs']
  case.equal('out/samples', pairs[_batches(case, pairs[:, 1])])


CHECKS = {
  'shuffle_cv': check_shuffle,
  'shuffle_vigor': check_shuffle_vigor,
  'gps_cvusa': functools.partial(
    check_places, points='in/coord_ground_lat_lon', coordinates='degrees'
  ),
  'gps_cvact': functools.partial(
    check_places, points='in/utm', coordinates='metres'
  ),
  'gps_vigor_': functools.partial(
    check_places, points='in/lat_lon', coordinates='degrees'
  ),
}
