"""Plans that mine: what meets in their batches, and that they are pure."""

import random
import types

import numpy as np
import pytest

from cvgl_jax.data import (
  global_mining,
  hard_batches,
  neighbour_batches,
  relations,
)
from cvgl_jax.retrieval import metres

VIEWS = ('panorama', 'satellite')
GLOBAL, NEAR = global_mining.GlobalMining, neighbour_batches.NeighbourBatches


def split(name: str, count: int, **columns) -> types.SimpleNamespace:
  columns = {
    'place': np.arange(count),
    'latlon_deg': np.random.default_rng(count).uniform(40, 41, (count, 2)),
    'positive': None,
    'semi_positives': None,
    'utm_m': None,
    'gallery': '',
  } | columns
  return types.SimpleNamespace(name=name, **columns)


def pairs(count: int = 203) -> dict:
  """As CVUSA: a panorama and a satellite picture of each place."""
  place = 7 + 3 * np.random.default_rng(0).permutation(count)
  return {
    'panorama': split('train_panorama', count, place=place),
    'satellite': split('train_satellite', count, place=np.sort(place)),
  }


def overlapping(side: int = 14) -> dict:
  """As VIGOR: a grid of tiles, one or two panoramas on two thirds of them.

  A panorama lies on its tile and on the three next to it.
  """
  rng = np.random.default_rng(1)
  row, column = np.divmod(np.arange(side * side), side)
  used = np.flatnonzero((row + column) % 3 > 0)
  positive = np.sort(np.concatenate([used, used[::3]]))
  there = np.stack([row, column], axis=1)
  step = rng.choice([-1, 1], (len(positive), 2))
  near = there[positive][:, None] + np.stack(
    [step * [1, 0], step * [0, 1], step], axis=1
  )
  near = near.clip(0, side - 1)
  semi = near[..., 0] * side + near[..., 1]
  return {
    'panorama': split(
      'train_panorama',
      len(positive),
      place=positive,
      positive=positive,
      semi_positives=semi,
      gallery='train_satellite',
    ),
    'satellite': split(
      'train_satellite', side * side, latlon_deg=40 + there * 1e-3
    ),
  }


def features(view: str, rows: np.ndarray | None, *, splits: dict) -> np.ndarray:
  """Nearly the same for both views of a place; of unit norm."""
  place = splits[view].place
  # Place numbers of the two views agree.
  table = np.random.default_rng(5).standard_normal((1000, 8))
  noise = np.random.default_rng(len(view)).standard_normal((len(place), 8))
  x = table[place] + 0.2 * noise
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return x if rows is None else x[rows]


def run(plan, splits: dict, epoch: int, *, batch_size=16, seed=0, found=None):
  """(rows, neighbours) of an epoch; `found`: neighbours from before."""
  options = {'batch_size': batch_size, 'seed': seed, 'epoch': epoch}
  get = lambda view, rows: features(view, rows, splits=splits)
  if plan.mining:
    new = plan.find_neighbours(splits, get, **options)
    found = found if new is None else new
  return plan.rows(splits, neighbours=found, **options), found


WORLDS = {'pairs': pairs(), 'overlapping': overlapping()}
PLANS = [GLOBAL(hardest=20), NEAR(select=8, reach=12, refresh_epochs=2)]


def case(name: str):
  return pytest.mark.parametrize(name, WORLDS.values(), ids=WORLDS)


@case('splits')
@pytest.mark.parametrize('plan', PLANS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize('epoch', [0, 2])
def test_a_mined_plan_is_pure_and_has_pairs_and_the_length_it_says(
  plan, splits, epoch
):
  rows, found = run(plan, splits, epoch)
  np.random.seed(7)
  random.seed(7)
  again, found_again = run(plan, splits, epoch)
  np.testing.assert_array_equal(rows, again)
  if found is not None:
    np.testing.assert_array_equal(found, found_again)
    assert found.shape == plan.neighbours_shape(splits)
  for other in (
    run(plan, splits, epoch, seed=1),
    run(plan, splits, epoch + 2),
  ):
    assert not np.array_equal(rows, other[0])
  steps = plan.steps_per_epoch(splits, 16)
  assert rows.shape == (steps, 16, 2) and rows.dtype == np.int64
  query, reference = (splits[view] for view in VIEWS)
  np.testing.assert_array_equal(
    query.place[rows[..., 0]], reference.place[rows[..., 1]]
  )
  # A tile once a batch.
  for batch in rows[..., 1]:
    assert len(set(batch.tolist())) == 16


def test_the_first_epoch_of_global_mining_is_a_random_order():
  rows, _ = run(GLOBAL(), pairs(), 0)
  assert rows.shape == (12, 16, 2)
  assert len(np.unique(rows[..., 0])) == 12 * 16
  left_out = [
    set(range(203)) - set(run(GLOBAL(), pairs(), 0, seed=s)[0][..., 0].flat)
    for s in range(3)
  ]
  assert left_out[0] != left_out[1] != left_out[2]
  published = [
    set(range(203))
    - set(run(GLOBAL(order='published'), pairs(), 0, seed=s)[0][..., 0].flat)
    for s in range(2)
  ]
  assert published == [set(range(192, 203))] * 2


@case('splits')
def test_a_mined_epoch_has_seeds_and_a_hard_pick_for_each(splits):
  plan = GLOBAL(hardest=20)
  rows, found = run(plan, splits, 3)
  tiles = relations.tiles(splits, VIEWS)
  tile = tiles.tile[rows[..., 0]]
  if splits is WORLDS['pairs']:
    assert len(np.unique(tile[:, :8])) == tile[:, :8].size
  hard = 0
  for batch in tile:
    for seed, pick in zip(batch[:8], batch[8:], strict=True):
      queries = tiles.queries[seed]
      hard += pick in found[queries[queries >= 0]]
  assert hard == tile.size // 2
  # Neighbours are what is similar, oneself first where features are so.
  own = tiles.tile[np.arange(len(found))]
  assert np.mean(found[:, 0] == own) > 0.9


def overlaps(splits: dict, rows: np.ndarray) -> int:
  """Pairs of a batch that show a tile in common."""
  tiles = relations.tiles(splits, VIEWS)
  shown = tiles.shown_by()
  count = 0
  for batch in tiles.tile[rows[..., 0]].tolist():
    for i, one in enumerate(batch):
      count += sum(bool(shown[one] & shown[other]) for other in batch[:i])
  return count


def test_hard_picks_overlap_nothing_but_for_the_published_mistake():
  splits = overlapping()
  rows, _ = run(GLOBAL(hardest=60), splits, 1)
  tiles = relations.tiles(splits, VIEWS)
  shown = tiles.shown_by()
  for batch in tiles.tile[rows[..., 0]].tolist():
    for i, pick in enumerate(batch[8:], 8):
      assert not any(shown[pick] & shown[other] for other in batch[:i])
  published = GLOBAL(hardest=60, overlap_check='published')
  wrong, _ = run(published, splits, 1)
  assert overlaps(splits, wrong) > overlaps(splits, rows)


def test_a_plan_without_hard_picks_is_random_in_all_epochs():
  plan = GLOBAL(hardest=0)
  assert plan.mining == ''
  rows, _ = run(plan, pairs(), 5, batch_size=15)  # odd is fine then
  assert len(np.unique(rows[..., 0])) == rows[..., 0].size
  late = GLOBAL(hardest=20, start_epoch=4)
  assert run(late, pairs(), 3)[1] is None
  assert run(late, pairs(), 4)[1] is not None


def test_the_pool_limits_what_is_picked():
  _, found = run(GLOBAL(hardest=20, pool=30), pairs(), 1)
  assert len(np.unique(found)) <= 30
  rows, found = run(GLOBAL(hardest=20, pool=5), pairs(), 1)
  assert (found[:, 5:] == -1).all() and (found[:, :5] >= 0).all()
  assert rows.shape == (12, 16, 2)  # other items where nothing hard is left


@pytest.mark.parametrize('unseen', [slice(0, 60), slice(None)])
def test_a_query_that_was_not_seen_has_no_hard_references(unseen):
  splits = overlapping()

  def get(view, rows):
    x = features(view, None, splits=splits)
    if view == 'panorama':
      x[unseen] = 0
    return x if rows is None else x[rows]

  options = {'batch_size': 16, 'seed': 0, 'epoch': 1}
  found = GLOBAL(hardest=20).find_neighbours(splits, get, **options)
  is_unseen = np.zeros(len(found), bool)
  is_unseen[unseen] = True
  assert (found[is_unseen] == -1).all() and (found[~is_unseen] >= 0).all()
  rows = GLOBAL(hardest=20).rows(splits, neighbours=found, **options)
  assert all(len(np.unique(batch[:, 1])) == 16 for batch in rows)


def test_tiles_of_several_panoramas_come_twice_and_show_all_in_turn():
  splits = overlapping()
  tiles = relations.tiles(splits, VIEWS)
  count = len(tiles.reference)
  assert GLOBAL().steps_per_epoch(splits, 16) == 2 * count // 16
  assert GLOBAL(visits=1).steps_per_epoch(splits, 16) == count // 16
  shown = {
    int(q)
    for e in range(12)
    for q in run(GLOBAL(), splits, 0, seed=e)[0][..., 0].flat
  }
  assert shown == set(range(len(splits['panorama'].place)))


def test_batches_of_neighbours_hold_neighbours_and_use_every_pair():
  splits = pairs()
  rows, found = run(NEAR(select=8, reach=12), splits, 0)
  tiles = relations.tiles(splits, VIEWS)
  tile = tiles.tile[rows[..., 0]]
  assert len(np.unique(tile)) == tile.size == 12 * 16
  # The first of a batch brings its four nearest and four of eight others.
  first = tile[0]
  assert set(found[first[0], :4]) <= set(first[1:5])
  assert set(first[5:9]) <= set(found[first[0], 4:])


def test_neighbours_are_on_the_ground_first_then_by_similarity():
  splits = overlapping()
  plan = NEAR(select=8, reach=12, refresh_epochs=2)
  options = {'batch_size': 16, 'seed': 0}
  calls = []

  def get(view, rows):
    calls.append((view, len(rows)))
    return features(view, rows, splits=splits)

  found = [
    plan.find_neighbours(splits, get, epoch=e, **options) for e in range(5)
  ]
  assert [x is not None for x in found] == [True, False, True, False, True]
  tiles = relations.tiles(splits, VIEWS)
  count = len(tiles.reference)
  # Once for each tile: the second panorama of a tile replaces the first.
  assert calls == [('panorama', count), ('satellite', count)] * 2
  place = splits['satellite'].latlon_deg[tiles.reference]
  distance = metres.great_circle_m(place[:, None], place[None])
  np.fill_diagonal(distance, np.inf)
  expected = np.argsort(distance, axis=1, kind='stable')[:, :12]
  reached = lambda rows: np.take_along_axis(distance, rows, axis=1)
  np.testing.assert_allclose(reached(found[0]), reached(expected), rtol=1e-6)
  assert not np.array_equal(found[0], found[2])
  assert not (found[2] == np.arange(count)[:, None]).any()


def test_gps_uses_metres_where_they_are_known_and_misses_none():
  splits = pairs()
  utm = np.random.default_rng(3).uniform(0, 1e3, (203, 2))
  splits['panorama'].utm_m = utm
  _, found = run(NEAR(reach=5, select=4), splits, 0)
  distance = np.linalg.norm(utm[:, None] - utm[None], axis=-1)
  np.fill_diagonal(distance, np.inf)
  np.testing.assert_array_equal(found, np.argsort(distance, axis=1)[:, :5])
  splits['panorama'].utm_m = utm * np.nan
  with pytest.raises(ValueError, match=r'config\.plan\.gps=False'):
    run(NEAR(), splits, 0)


def test_overlapping_tiles_can_be_kept_apart():
  splits = overlapping()
  rows, _ = run(NEAR(select=8, reach=12), splits, 0, batch_size=8)
  assert overlaps(splits, rows) > 0
  plan = NEAR(select=8, reach=12, exclude_overlaps=True)
  rows, _ = run(plan, splits, 0, batch_size=8)
  assert overlaps(splits, rows) == 0


def test_without_neighbours_places_meet_at_random_as_for_university():
  places = np.arange(40)
  splits = {
    'drone': split('train_drone', 360, place=np.repeat(places, 9)),
    'satellite': split('train_satellite', 40, place=places),
  }
  plan = NEAR(views=('drone', 'satellite'), gps=False, refresh_epochs=0)
  assert plan.mining == ''
  rows, _ = run(plan, splits, 0, batch_size=32)
  assert rows.shape == (11, 32, 2)
  used = np.unique(rows[..., 0])
  assert len(used) > 0.95 * rows[..., 0].size  # the last batch is filled up
  for batch in rows[..., 1]:
    assert len(set(batch.tolist())) == 32


def test_the_published_end_loses_pairs_and_ours_fills_up():
  # Half of the pairs are of one item, which a batch has once.
  items = [0] * 20 + list(range(1, 21))
  lists = [
    [other for other in range(21) if other != item] for item in range(21)
  ]
  make = lambda **more: hard_batches.with_neighbours(
    items,
    lists,
    batch_size=8,
    select=4,
    reach=8,
    rng=random.Random(0),
    **more,
  )
  published, ours = make(give_up=1024), make()
  assert len(published) == 2 and ours.shape == (5, 8)
  np.testing.assert_array_equal(ours[:2], published)
  assert len(np.unique(published)) == published.size
  # All that can be used are, and no item is in a batch twice.
  assert set(range(20, 40)) <= set(ours.flat)
  for batch in np.array(items)[ours].tolist():
    assert len(set(batch)) == 8


def test_spread_moves_what_is_twice_in_a_group():
  order = [0, 0, 1, 2, 3, 3, 1, 2]
  found = hard_batches.spread(order, 4, random.Random(0))
  assert sorted(found) == sorted(order)
  for start in (0, 4):
    assert len(set(found[start : start + 4])) == 4
  # Too few for that: they stay, and nothing hangs.
  assert hard_batches.spread([1, 1, 1, 1], 2, random.Random(0)) == [1] * 4


@case('splits')
def test_plans_refuse_what_they_cannot_do(splits):
  for plan in PLANS:
    with pytest.raises(ValueError, match='the number of places'):
      run(plan, splits, 0, batch_size=400)
    with pytest.raises(ValueError, match='must not be negative'):
      run(plan, splits, 0, seed=-1)
    with pytest.raises(ValueError, match="no view 'panorama'"):
      run(plan, {'satellite': splits['satellite']}, 0)
  with pytest.raises(ValueError, match='odd'):
    run(GLOBAL(), splits, 0, batch_size=15)
  with pytest.raises(ValueError, match='needs neighbours'):
    GLOBAL().rows(splits, batch_size=16, seed=0, epoch=1)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: GLOBAL(hardest=-1), 'hardest'),
    (lambda: GLOBAL(pool=0), 'pool'),
    (lambda: GLOBAL(start_epoch=0), 'start_epoch'),
    (lambda: NEAR(select=9, reach=8), 'select 9'),
    (lambda: NEAR(refresh_epochs=-1), 'refresh_epochs'),
  ],
)
def test_options_are_checked(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_tiles_know_their_queries():
  splits = {
    'panorama': split(
      'train_panorama',
      4,
      positive=np.array([5, 2, 5, -1]),
      semi_positives=np.array([[1, -1], [0, 1], [3, -1], [2, 4]]),
      gallery='train_satellite',
    ),
    'satellite': split('train_satellite', 6),
  }
  tiles = relations.tiles(splits, VIEWS)
  np.testing.assert_array_equal(tiles.reference, [5, 2])
  np.testing.assert_array_equal(tiles.queries, [[0, 2], [1, -1]])
  np.testing.assert_array_equal(tiles.tile, [0, 1, 0, -1])
  assert tiles.listed
  assert tiles.shown_by() == [frozenset({5, 1, 3}), frozenset({2, 0, 1})]
  splits['panorama'].gallery = 'test_gallery_satellite'
  with pytest.raises(ValueError, match='one protocol'):
    relations.tiles(splits, VIEWS)


def test_tiles_of_places_are_their_first_references():
  splits = {
    'drone': split('train_drone', 5, place=np.array([4, 9, 4, -1, 8])),
    'satellite': split('train_satellite', 4, place=np.array([9, 4, 4, -1])),
  }
  tiles = relations.tiles(splits, ('drone', 'satellite'))
  np.testing.assert_array_equal(tiles.reference, [1, 0])
  np.testing.assert_array_equal(tiles.tile, [0, 1, 0, -1, -1])
  assert not tiles.listed
  splits['satellite'].place = np.array([1, 2, 3, -1])
  with pytest.raises(ValueError, match='no place has pictures in every view'):
    relations.tiles(splits, ('drone', 'satellite'))
