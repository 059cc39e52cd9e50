"""The global mining sampler, over epochs of features that do not change."""

import types

import numpy as np

from cvgl_jax.data import global_mining, relations
from tests.golden_case import Case

VIEWS = ('panorama', 'satellite')


def unit(features: np.ndarray) -> np.ndarray:
  features = features.astype(np.float64)
  norm = np.linalg.norm(features, axis=1, keepdims=True)
  return (features / norm).astype(np.float32)


def epochs_of(case: Case) -> list[int]:
  found = case.keys('out/indices_epoch')
  return sorted(int(key.removeprefix('out/indices_epoch')) for key in found)


class Run:
  """A plan and the features of what its epochs have visited."""

  def __init__(self, case: Case, splits: dict, features: dict):
    self.case = case
    replicas = case.scalar('in/num_replicas')
    self.batch_size = case.scalar('in/batch_size') * replicas
    self.splits = splits
    self.features = features
    self.bank = {view: np.zeros_like(x) for view, x in features.items()}
    self.plan = global_mining.GlobalMining(
      views=VIEWS, order='published', overlap_check='published'
    )

  def rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of the epoch [S, 2], and the neighbours [N, T] that it used."""
    options = {'batch_size': self.batch_size, 'seed': 0, 'epoch': epoch}
    near = self.plan.find_neighbours(self.splits, self._features, **options)
    rows = self.plan.rows(self.splits, neighbours=near, **options)
    return rows.reshape(-1, 2), near

  def _features(self, view: str, rows: np.ndarray | None) -> np.ndarray:
    return self.bank[view] if rows is None else self.bank[view][rows]

  def visit(self, query: np.ndarray, reference: np.ndarray) -> None:
    for view, rows in zip(VIEWS, (query, reference), strict=True):
      self.bank[view][rows] = self.features[view][rows]


def check_pairs(case: Case) -> None:
  """CVUSA, CVACT: a pair is an item."""
  features = {
    'panorama': unit(case['in/feat_grd']),
    'satellite': unit(case['in/feat_sat']),
  }
  place = np.arange(len(features['panorama']))
  split = types.SimpleNamespace(place=place, positive=None, semi_positives=None)
  run = Run(case, dict.fromkeys(VIEWS, split), features)
  visits = np.zeros_like(place)
  for epoch in epochs_of(case):
    rows, near = run.rows(epoch)
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    case.equal(f'out/indices_epoch{epoch}', rows[:, 1])
    if near is not None:
      # Stored in ascending similarity.
      case.equal(f'out/mining_save_epoch{epoch}', near[:, ::-1])
    run.visit(*rows.T)
    visits += np.bincount(rows[:, 0], minlength=len(place))
  case.equal('out/queue_counter', visits)


def check_vigor(case: Case) -> None:
  """Tiles with one or two panoramas."""
  label = case['in/train_label']
  features = {
    'panorama': unit(case['in/feat_grd']),
    'satellite': unit(case['in/feat_sat_by_sat_index']),
  }
  splits = {
    'panorama': types.SimpleNamespace(
      name='train_panorama',
      place=label[:, 0],
      positive=label[:, 0],
      semi_positives=label[:, 1:],
      gallery='train_satellite',
    ),
    'satellite': types.SimpleNamespace(
      name='train_satellite', place=np.arange(len(features['satellite']))
    ),
  }
  tiles = relations.tiles(splits, VIEWS)
  np.testing.assert_array_equal(
    tiles.reference, case['in/train_sat_cover_list']
  )
  np.testing.assert_array_equal(tiles.queries, case['in/train_sat_cover_dict'])
  run = Run(case, splits, features)
  for epoch in epochs_of(case):
    rows, near = run.rows(epoch)
    case.equal(f'out/indices_epoch{epoch}', tiles.tile[rows[:, 0]])
    if near is not None:
      case.equal(f'out/mining_save_epoch{epoch}', near[:, ::-1])
    # Which panorama of a tile was shown is up to the published loader.
    shown = case[f'in/ground_pick_epoch{epoch}']
    np.testing.assert_array_equal(label[shown, 0], rows[:, 1])
    np.testing.assert_array_equal(label[rows[:, 0], 0], rows[:, 1])
    run.visit(shown, rows[:, 1])


CHECKS = {'sampler_cv_': check_pairs, 'sampler_vigor_': check_vigor}
