"""Peer batches: anchors with one drone picture from each direction."""

import types

import numpy as np
import pytest

from cvgl_jax.data import peer_batches, plans

STREETS = (1, 4, 2, 3, 5)  # pictures of places 100, 103, ...


def drone_split(places, views=54):
  places = np.asarray(places)
  place = np.repeat(places, views)
  frame = np.tile(np.arange(views) + 1, len(places))
  path = [
    f'train/drone/{p:04d}/image-{f:02d}.jpeg'
    for p, f in zip(place, frame, strict=True)
  ]
  return types.SimpleNamespace(
    name='train_drone', place=place, frame=frame, path=np.array(path)
  )


def world(views=54):
  ids = 100 + 3 * np.arange(len(STREETS))
  street = types.SimpleNamespace(place=np.repeat(ids, STREETS))
  return {'street': street, 'drone': drone_split(ids, views)}


def epochs(plan, splits, *, batch_size=5, count=1, seed=0):
  """[count * steps, batch, slots]."""
  return np.concatenate(
    [
      plan.rows(splits, batch_size=batch_size, seed=seed, epoch=epoch)
      for epoch in range(count)
    ]
  )


PLAN = peer_batches.PeerBatches()


def test_the_plan_is_pure_in_seed_and_epoch():
  splits = world()
  options = {'batch_size': 4, 'seed': 1, 'epoch': 2}
  rows = PLAN.rows(splits, **options)
  np.random.seed(7)  # the global generator must not matter
  np.testing.assert_array_equal(rows, PLAN.rows(splits, **options))
  for change in ({'seed': 2}, {'epoch': 3}):
    other = PLAN.rows(splits, **(options | change))
    assert not np.array_equal(rows, other)


@pytest.mark.parametrize('batch_size', [1, 4, 15])
def test_every_anchor_comes_once_and_the_rest_is_dropped(batch_size):
  splits = world()
  rows = epochs(PLAN, splits, batch_size=batch_size)
  steps = PLAN.steps_per_epoch(splits, batch_size)
  assert rows.shape == (steps, batch_size, 7) and rows.dtype == np.int64
  assert steps == sum(STREETS) // batch_size
  assert np.unique(rows[..., 0]).size == steps * batch_size


def test_peers_are_of_the_place_of_their_anchor():
  splits = world()
  rows = epochs(PLAN, splits, count=5)
  place = splits['street'].place[rows[..., 0]]
  peers = splits['drone'].place[rows[..., 1:]]
  np.testing.assert_array_equal(peers, np.repeat(place[..., None], 6, axis=-1))


def test_peers_look_from_the_published_sectors():
  splits = world()
  rows = epochs(PLAN, splits, count=100)
  number = splits['drone'].frame[rows[..., 1:]].reshape(-1, 6)
  for group in range(6):
    expected = np.array([1, 2, 3, 19, 20, 21, 37, 38, 39]) + 3 * group
    drawn, counts = np.unique(number[:, group], return_counts=True)
    np.testing.assert_array_equal(drawn, expected)
    # 1500 draws over nine: 167 each, standard deviation 12.
    assert counts.min() > 110 and counts.max() < 225


def test_peers_are_drawn_independently_of_each_other():
  splits = world()
  rows = epochs(PLAN, splits, count=200)
  number = splits['drone'].frame[rows[..., 1:]].reshape(-1, 6)
  altitude = (number - 1) // 18
  together = (altitude[:, 0] == altitude[:, 1]).mean()
  assert 0.29 < together < 0.38  # a third; 3000 draws, deviation 0.009


def test_the_order_of_the_rows_in_the_split_does_not_matter():
  splits = world()
  order = np.random.default_rng(0).permutation(splits['drone'].place.size)
  drone = splits['drone']
  mixed = types.SimpleNamespace(
    name='train_drone',
    place=drone.place[order],
    frame=drone.frame[order],
    path=drone.path[order],
  )
  rows = epochs(PLAN, splits)
  shuffled = epochs(PLAN, splits | {'drone': mixed})
  np.testing.assert_array_equal(rows[..., 0], shuffled[..., 0])
  np.testing.assert_array_equal(rows[..., 1:], order[shuffled[..., 1:]])


def test_names_of_files_tell_the_order_where_frames_are_unknown():
  splits = world()
  rows = epochs(PLAN, splits)
  splits['drone'].frame[:] = -1
  np.testing.assert_array_equal(rows, epochs(PLAN, splits))


def test_other_flights_are_cut_in_rounds_and_sectors():
  splits = world(views=12)  # 3 rounds of 4 views, two sectors
  plan = peer_batches.PeerBatches(groups=2)
  rows = epochs(plan, splits, count=60)
  number = splits['drone'].frame[rows[..., 1:]].reshape(-1, 2)
  assert set(number[:, 0]) == {1, 2, 5, 6, 9, 10}
  assert set(number[:, 1]) == {3, 4, 7, 8, 11, 12}


def test_anchors_without_drone_pictures_and_of_unknown_place_are_left_out():
  splits = world()
  splits['street'].place[[0, 5]] = [999, -1]
  splits['drone'].place[:3] = -1  # place 100 is not used any more
  rows = epochs(PLAN, splits, batch_size=13)
  assert set(rows[..., 0].reshape(-1)) == set(range(15)) - {0, 5}


def test_slots_name_the_view_of_every_column():
  plan = peer_batches.PeerBatches(views=('satellite', 'drone'), groups=3)
  assert plan.slots == ('satellite', 'drone', 'drone', 'drone')
  assert plans.slots(plan) == plan.slots
  assert plans.slots(plans.Pairs(views=('a', 'b'))) == ('a', 'b')


def _without_views(splits):
  del splits['drone']


def _no_common_place(splits):
  splits['street'].place[:] = 7


def _empty(splits):
  splits['street'].place = splits['street'].place[:0]


def _one_missing(splits):
  for name in ('place', 'frame', 'path'):
    column = getattr(splits['drone'], name)
    setattr(splits['drone'], name, np.delete(column, 60))


def _twice_the_same(splits):
  splits['drone'].frame[60] = splits['drone'].frame[61]


def _no_order(splits):
  splits['drone'].frame[60] = -1
  splits['drone'].path[60] = 'train/drone/0103/photo.jpeg'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_without_views, "no view 'drone'"),
    (_no_common_place, 'none of the 15 pictures.*same data set'),
    (_empty, "view 'street' has no pictures at all"),
    (_one_missing, 'place 103 has 53 pictures, 4 of 5 places have 54'),
    (_twice_the_same, r'image-07.jpeg.*image-08.jpeg.*the same view'),
    (_no_order, r'photo\.jpeg.*has no number in a flight'),
  ],
)
def test_data_that_do_not_fit_are_errors(change, message):
  splits = world()
  change(splits)
  with pytest.raises(ValueError, match=message):
    epochs(PLAN, splits)


def test_flights_that_do_not_divide_are_errors():
  message = r'places have 20 pictures.*multiple of 18'
  with pytest.raises(ValueError, match=message):
    epochs(PLAN, world(views=20))
  # What is asked before a run is compiled.
  with pytest.raises(ValueError, match=message):
    PLAN.steps_per_epoch(world(views=20), 5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 16}, 'batch 16 is larger than the 15 pictures'),
    ({'batch_size': 0}, 'batch size is 0'),
    ({'seed': -1}, 'must not be negative'),
    ({'neighbours': np.zeros(1)}, 'does not use mined neighbours'),
  ],
)
def test_arguments_that_do_not_fit_are_errors(options, message):
  arguments = {'batch_size': 5, 'seed': 0, 'epoch': 0} | options
  with pytest.raises(ValueError, match=message):
    PLAN.rows(world(), **arguments)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'groups': 0}, 'groups is 0'),
    ({'rounds': 0}, 'rounds is 0'),
    ({'views': ('drone', 'drone')}, 'two different ones'),
  ],
)
def test_options_that_make_no_sense_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    peer_batches.PeerBatches(**options)


def test_the_published_epochs_have_332_and_87_steps():
  streets = np.repeat(np.arange(701), 4)[:2659]
  splits = {
    'street': types.SimpleNamespace(place=streets),
    'satellite': types.SimpleNamespace(place=np.arange(701)),
    'drone': drone_split(np.arange(701)),
  }
  assert PLAN.steps_per_epoch(splits, 8) == 332
  satellite = peer_batches.PeerBatches(views=('satellite', 'drone'))
  rows = satellite.rows(splits, batch_size=8, seed=0, epoch=0)
  assert rows.shape == (87, 8, 7)
