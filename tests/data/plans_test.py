"""Epoch plans: who meets whom, and that they are pure in (seed, epoch)."""

import time
import types

import numpy as np
import pytest

from cvgl_jax.data import plans

VIEWS = ('satellite', 'drone')


def world(num_places=40, drones=9, street=True):
  """Places 100, 103, 106, ...: ids need not be consecutive."""
  rng = np.random.default_rng(0)
  ids = 100 + 3 * np.arange(num_places)
  places = {'satellite': ids, 'drone': rng.permutation(np.repeat(ids, drones))}
  if street:
    places['street'] = np.repeat(ids, rng.integers(1, 6, num_places))
  return places


def splits_of(places):
  """As a plan sees splits: by their columns."""
  return {
    view: types.SimpleNamespace(place=np.asarray(place))
    for view, place in places.items()
  }


def rows_of(plan, places, batch_size=8, seed=0, epoch=0):
  splits = splits_of(places)
  return plan.rows(splits, batch_size=batch_size, seed=seed, epoch=epoch)


def meets_a_place_twice(place):
  ordered = np.sort(place, axis=1)
  return bool((ordered[:, 1:] == ordered[:, :-1]).any())


ALL = (
  plans.IndependentViews(views=VIEWS),
  plans.AllViews(views=VIEWS),
  plans.Pairs(views=VIEWS, pictures_per_place=4),
)


@pytest.mark.parametrize('plan', ALL, ids=lambda p: type(p).__name__)
def test_a_plan_is_pure_in_seed_and_epoch(plan):
  places = world()
  rows = rows_of(plan, places, seed=1, epoch=2)
  np.random.seed(7)  # the global generator must not matter
  np.testing.assert_array_equal(rows, rows_of(plan, places, seed=1, epoch=2))
  assert not np.array_equal(rows, rows_of(plan, places, seed=1, epoch=3))
  assert not np.array_equal(rows, rows_of(plan, places, seed=2, epoch=2))


@pytest.mark.parametrize('plan', ALL, ids=lambda p: type(p).__name__)
def test_steps_per_epoch_is_the_length_of_the_plan(plan):
  places = world()
  for batch_size in (1, 7, 8, 40):
    rows = rows_of(plan, places, batch_size=batch_size)
    assert rows.shape == (
      plan.steps_per_epoch(splits_of(places), batch_size),
      batch_size,
      len(VIEWS),
    )
    assert rows.dtype == np.int64


@pytest.mark.parametrize('plan', ALL, ids=lambda p: type(p).__name__)
def test_a_plan_refuses_what_it_cannot_do(plan):
  with pytest.raises(ValueError, match='larger than the 40'):
    rows_of(plan, world(), batch_size=41)
  with pytest.raises(ValueError, match="no view 'drone'"):
    rows_of(plan, {'satellite': np.arange(40)})
  with pytest.raises(ValueError, match='must not be negative'):
    rows_of(plan, world(), seed=-1)
  with pytest.raises(ValueError, match='batch size is 0'):
    rows_of(plan, world(), batch_size=0)
  with pytest.raises(ValueError, match='does not use mined neighbours'):
    plan.rows(
      splits_of(world()),
      batch_size=8,
      seed=0,
      epoch=0,
      neighbours=np.zeros(1),
    )


def test_the_baseline_epoch_has_87_steps_and_uses_no_picture_twice():
  places = {
    'satellite': np.arange(701),
    'street': np.repeat(np.arange(701), 8),
    'drone': np.repeat(np.arange(701), 54),
  }
  plan = plans.IndependentViews(views=('satellite', 'street', 'drone'))
  rows = rows_of(plan, places)
  assert rows.shape == (87, 8, 3)
  for slot in range(3):
    assert np.unique(rows[..., slot]).size == 87 * 8


def test_independent_views_show_different_places_in_a_step():
  places = world(num_places=200, drones=1)
  rows = rows_of(plans.IndependentViews(views=VIEWS), places)
  same = places['satellite'][rows[..., 0]] == places['drone'][rows[..., 1]]
  assert same.mean() < 0.1


def test_independent_views_end_with_the_shortest_view():
  places = {'satellite': np.arange(50), 'google': np.arange(19)}
  plan = plans.IndependentViews(views=('satellite', 'google'))
  assert plan.steps_per_epoch(splits_of(places), 8) == 2


@pytest.mark.parametrize('batch_size', [1, 7, 16, 40])
def test_all_views_uses_every_picture_and_a_place_once_a_batch(batch_size):
  places = world()
  views = ('satellite', 'drone', 'street')
  rows = rows_of(plans.AllViews(views=views), places, batch_size=batch_size)
  place = np.stack(
    [places[view][rows[..., slot]] for slot, view in enumerate(views)], axis=-1
  )
  assert (place == place[..., :1]).all()
  assert not meets_a_place_twice(place[..., 0])
  assert set(rows[..., 1].reshape(-1)) == set(range(360))
  repeated = rows[..., 1].size - 360
  assert 0 <= repeated < batch_size


def test_all_views_takes_the_other_views_in_turn():
  places = world()
  views = ('satellite', 'drone', 'street')
  rows = rows_of(plans.AllViews(views=views), places)
  uses = np.bincount(rows[..., 2].reshape(-1), minlength=places['street'].size)
  for place in places['satellite']:
    of_place = uses[places['street'] == place]
    assert of_place.max() - of_place.min() <= 1


def test_all_views_holds_a_place_with_many_pictures():
  places = {
    'satellite': np.arange(6),
    'drone': np.repeat(np.arange(6), [30, 1, 2, 1, 1, 1]),
  }
  rows = rows_of(plans.AllViews(views=VIEWS), places, batch_size=4)
  assert rows.shape == (30, 4, 2)
  assert not meets_a_place_twice(rows[..., 0])
  assert set(rows[..., 1].reshape(-1)) == set(range(36))


def test_all_views_leaves_out_unknown_and_incomplete_places():
  places = {
    'satellite': np.array([1, 2, 3, -1]),
    'drone': np.array([1, 1, 2, 2, 9, -1]),
  }
  rows = rows_of(plans.AllViews(views=VIEWS), places, batch_size=2)
  assert set(rows[..., 1].reshape(-1)) == {0, 1, 2, 3}
  assert set(rows[..., 0].reshape(-1)) == {0, 1}


def test_places_of_a_batch_are_mixed_at_random():
  # 60 places of 12 pictures in batches of 10: two places should meet
  # 12 * 9 / 59 times on average, with the spread of random meetings.
  places = {'satellite': np.arange(60), 'drone': np.repeat(np.arange(60), 12)}
  meetings = np.zeros((60, 60), int)
  for epoch in range(20):
    rows = rows_of(
      plans.AllViews(views=VIEWS), places, batch_size=10, epoch=epoch
    )
    once = np.zeros((60, 60), int)
    for batch in rows[..., 0]:
      once[np.ix_(batch, batch)] += 1
    others = once[~np.eye(60, dtype=bool)]
    assert others.max() < 10  # the regular start has pairs that meet 12 times
    meetings += once
  others = meetings[~np.eye(60, dtype=bool)]
  expected = 20 * 12 * 9 / 59
  np.testing.assert_allclose(others.mean(), expected, rtol=1e-6)
  assert 0.6 * expected < others.var() < 1.1 * expected


def test_pairs_uses_each_place_as_often_as_asked():
  places = world()
  plan = plans.Pairs(views=VIEWS, pictures_per_place=4)
  rows = rows_of(plan, places)
  assert rows.shape == (20, 8, 2)
  place = places['drone'][rows[..., 1]]
  np.testing.assert_array_equal(place, places['satellite'][rows[..., 0]])
  assert not meets_a_place_twice(place)
  assert (np.unique(place, return_counts=True)[1] == 4).all()
  assert np.unique(rows[..., 1]).size == rows[..., 1].size


def test_pairs_sees_every_picture_when_asked_for_all_of_them():
  rows = rows_of(plans.Pairs(views=VIEWS, pictures_per_place=9), world())
  assert set(rows[..., 1].reshape(-1)) == set(range(360))


def test_pairs_drops_other_places_every_epoch():
  places = world(num_places=10)
  plan = plans.Pairs(views=VIEWS)
  left_out = {
    frozenset(range(10)) - set(rows_of(plan, places, epoch=e)[..., 0].flat)
    for e in range(8)
  }
  assert all(len(rest) == 2 for rest in left_out)
  assert len(left_out) > 3


def test_plans_of_pairs_refuse_views_of_different_data_sets():
  places = {'satellite': np.arange(10), 'drone': np.arange(20, 30)}
  for plan in ALL[1:]:
    with pytest.raises(ValueError, match='no place has pictures in every view'):
      rows_of(plan, places)


def test_options_are_checked():
  with pytest.raises(ValueError, match='must be 1 or more'):
    plans.Pairs(views=VIEWS, pictures_per_place=0)
  with pytest.raises(ValueError, match="'street' is not one of"):
    plans.AllViews(views=VIEWS, view='street')


def test_a_plan_of_the_whole_training_set_takes_a_fraction_of_a_second():
  ids = np.arange(701)
  places = {'satellite': ids, 'drone': np.repeat(ids, 72)}
  start = time.process_time()
  rows_of(plans.AllViews(views=VIEWS), places, batch_size=8)
  assert time.process_time() - start < 1.0


class FakeSplit:
  name = 'train_drone'

  def __init__(self, path):
    self.path = np.asarray(path)

  def select(self, rows):
    return FakeSplit(self.path[rows])


def official(number=54):
  return FakeSplit(
    [f'train/drone/0839/image-{k:02}.jpeg' for k in range(1, number + 1)]
  )


@pytest.mark.parametrize(
  ('kept', 'first'),
  [
    (27, [1, 3, 5]),
    (18, [1, 4, 7]),
    (9, [1, 7, 13]),
    (3, [1, 19, 37]),
    (1, [1]),
  ],
)
def test_limit_views_keeps_the_published_numbers(kept, first):
  split = plans.limit_views(official(), kept)
  numbers = [int(path[-7:-5]) for path in split.path]
  assert len(numbers) == kept
  assert numbers[:3] == first


def test_limit_views_keeps_all_54():
  assert len(plans.limit_views(official(), 54).path) == 54


def test_limit_views_names_what_it_cannot_read():
  with pytest.raises(ValueError, match='expected one of'):
    plans.limit_views(official(), 10)
  with pytest.raises(ValueError, match=r'photo\.jpg'):
    plans.limit_views(FakeSplit(['train/drone/0839/photo.jpg']), 3)
  dated = types.SimpleNamespace(
    name='x', path=np.array(['a/image-20100100.jpg'])
  )
  with pytest.raises(ValueError, match='official numbering'):
    plans.limit_views(dated, 1)
