"""The stream: order, shares of processes, restarts, errors."""

import io
import itertools
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from cvgl_jax.data import plans, stream, transforms

VIEWS = ('satellite', 'drone')
LOAD = transforms.Loader(image_size=(12, 10), autoaugment='imagenet')


class MemorySplit:
  """A split of `per_place` JPEG files for each place 5, 6, 7, ..."""

  def __init__(self, view, num_places, per_place):
    self.name, self.view = f'train_{view}', view
    self.place = np.repeat(5 + np.arange(num_places), per_place)
    self.path = np.array([f'{view}/{n}.jpg' for n in range(self.place.size)])
    rng = np.random.default_rng(num_places * per_place)
    self.files = [_jpeg(rng) for _ in self.path]

  def __len__(self):
    return len(self.files)

  def image_bytes(self, row):
    return self.files[row]


def _jpeg(rng):
  coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
  file = io.BytesIO()
  coarse.resize((32, 24), Image.Resampling.BICUBIC).save(file, 'JPEG')
  return file.getvalue()


def world():
  return {
    'satellite': MemorySplit('satellite', 12, 1),
    'drone': MemorySplit('drone', 12, 4),
  }


def epoch_rows(splits, batch_size=6):
  plan = plans.AllViews(views=VIEWS)
  return plan.rows(splits, batch_size=batch_size, seed=0, epoch=0)


def run(splits, rows, **options):
  defaults = {
    'views': VIEWS,
    'load': LOAD,
    'labels': {place: place - 5 for place in range(5, 17)},
    'seed': 3,
    'epoch': 0,
    'threads': 2,
  }
  return list(stream.batches(splits, rows, **(defaults | options)))


def assert_equal(one, other):
  assert len(one) == len(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_batches_follow_the_plan():
  splits = world()
  rows = epoch_rows(splits)
  plain = transforms.Loader(image_size=(12, 10))
  for step, batch in enumerate(run(splits, rows, load=plain)):
    for slot, view in enumerate(VIEWS):
      place = splits[view].place[rows[step, :, slot]]
      np.testing.assert_array_equal(batch[view]['place'], place)
      np.testing.assert_array_equal(batch[view]['label'], place - 5)
      np.testing.assert_array_equal(batch[view]['row'], rows[step, :, slot])
      expected = [
        plain(splits[view].files[row], None, view, '')
        for row in rows[step, :, slot]
      ]
      np.testing.assert_array_equal(batch[view]['image'], expected)


def test_batches_have_the_agreed_types():
  splits = world()
  batch = run(splits, epoch_rows(splits))[0]
  assert set(batch) == set(VIEWS)
  for view in VIEWS:
    assert {k: (v.dtype, v.shape) for k, v in batch[view].items()} == {
      'image': (np.uint8, (6, 12, 10, 3)),
      'label': (np.int32, (6,)),
      'place': (np.int32, (6,)),
      'row': (np.int32, (6,)),
    }


def test_the_number_of_threads_changes_nothing():
  splits = world()
  rows = epoch_rows(splits)
  assert_equal(run(splits, rows, threads=1), run(splits, rows, threads=7))


@pytest.mark.slow
def test_worker_processes_change_nothing():
  splits = world()
  rows = epoch_rows(splits)
  with_workers = jax.tree.map(np.copy, run(splits, rows, workers=2))
  assert_equal(run(splits, rows), with_workers)


PEERS = ('satellite', 'drone', 'drone', 'drone')


def peer_rows(splits):
  """Steps of 6 anchors, each with three drone pictures of its place."""
  rng = np.random.default_rng(0)
  anchors = rng.permutation(12).reshape(2, 6, 1)
  peers = 4 * anchors + rng.permuted(np.tile(np.arange(4), (2, 6, 1)), axis=2)
  return np.concatenate([anchors, peers[..., :3]], axis=2)


def test_several_slots_of_a_view_stand_in_a_row():
  splits = world()
  rows = peer_rows(splits)
  plain = transforms.Loader(image_size=(12, 10))
  for step, batch in enumerate(run(splits, rows, load=plain, views=PEERS)):
    assert set(batch) == set(VIEWS)
    assert batch['satellite']['image'].shape == (6, 12, 10, 3)
    assert batch['drone']['image'].shape == (18, 12, 10, 3)
    peers = rows[step, :, 1:].reshape(-1)
    np.testing.assert_array_equal(batch['drone']['row'], peers)
    anchors = batch['satellite']['place']
    np.testing.assert_array_equal(batch['drone']['place'], anchors.repeat(3))
    np.testing.assert_array_equal(
      batch['drone']['label'], anchors.repeat(3) - 5
    )
    expected = [
      plain(splits['drone'].files[row], None, 'drone', '') for row in peers
    ]
    np.testing.assert_array_equal(batch['drone']['image'], expected)
    for array in batch['drone'].values():
      assert array.dtype in (np.uint8, np.int32)


def test_every_slot_of_a_view_draws_its_own_random_numbers():
  splits = world()
  rows = np.zeros((1, 2, 4), np.int64)  # the same pictures everywhere
  images = run(splits, rows, views=PEERS)[0]['drone']['image']
  assert len({image.tobytes() for image in images}) > 3


@pytest.mark.parametrize('count', [2, 3])
def test_the_peers_of_an_anchor_go_to_its_process(count):
  splits = world()
  rows = peer_rows(splits)
  shares = [
    run(splits, rows, views=PEERS, process=(p, count)) for p in range(count)
  ]
  for share in shares:
    for batch in share:
      place = batch['satellite']['place'].repeat(3)
      np.testing.assert_array_equal(batch['drone']['place'], place)
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
  assert_equal(run(splits, rows, views=PEERS), joined)


@pytest.mark.slow
def test_worker_processes_change_nothing_for_peers():
  splits = world()
  rows = peer_rows(splits)
  with_workers = jax.tree.map(
    np.copy, run(splits, rows, views=PEERS, workers=2)
  )
  assert_equal(run(splits, rows, views=PEERS), with_workers)


@pytest.mark.parametrize('count', [2, 3])
def test_the_shares_of_all_processes_make_the_global_batch(count):
  splits = world()
  rows = epoch_rows(splits)
  shares = [run(splits, rows, process=(p, count)) for p in range(count)]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
  assert_equal(run(splits, rows), joined)


def test_a_restart_gives_the_same_batches():
  splits = world()
  rows = epoch_rows(splits)
  assert_equal(run(splits, rows)[3:], run(splits, rows, start_step=3))
  assert run(splits, rows, start_step=len(rows)) == []


def test_random_transforms_depend_on_seed_epoch_and_position():
  splits = world()
  rows = np.repeat(
    epoch_rows(splits)[:1, :1], 6, axis=1
  )  # one picture, 6 times
  images = run(splits, rows)[0]['drone']['image']
  assert len({image.tobytes() for image in images}) > 1
  for change in ({'seed': 4}, {'epoch': 1}):
    other = run(splits, rows, **change)[0]['drone']['image']
    assert not np.array_equal(images, other)


def test_labels_may_be_an_array_or_absent():
  splits = world()
  rows = epoch_rows(splits)
  by_place = np.concatenate([np.full(5, -1), np.arange(12)])
  assert_equal(run(splits, rows), run(splits, rows, labels=by_place))
  for batch in run(splits, rows, labels=None):
    np.testing.assert_array_equal(
      batch['drone']['label'], batch['drone']['place']
    )


def test_a_place_without_a_class_is_an_error():
  splits = world()
  with pytest.raises(ValueError, match=r'no class for places \[5, 16\]'):
    run(splits, epoch_rows(splits), labels={p: p for p in range(6, 16)})


def test_a_place_that_no_batch_shows_needs_no_class():
  splits = world()
  splits['drone'].place[7] = -1
  rows = np.array([[[0, 0], [1, 4]]])
  assert len(run(splits, rows)) == 1


def test_a_damaged_picture_is_named():
  splits = world()
  splits['drone'].files[17] = splits['drone'].files[17][:200]
  with pytest.raises(ValueError, match=r'train_drone\[17\] drone/17\.jpg'):
    run(splits, epoch_rows(splits))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'process': (0, 4)}, 'batch 6 is not divisible by 4 processes; use 4'),
    ({'process': (2, 2)}, 'process 2 of 2'),
    ({'start_step': 9}, 'start_step 9'),
    ({'views': ('satellite', 'street')}, "no split for view 'street'"),
    ({'views': ('drone', 'drone', 'drone')}, r'expected \[steps, batch, 3\]'),
    ({'views': ('satellite',)}, r'expected \[steps, batch, 1\]'),
    ({'views': ('drone', 'satellite')}, 'train_satellite, which has 12'),
  ],
)
def test_arguments_that_do_not_fit_are_errors(options, message):
  splits = world()
  with pytest.raises(ValueError, match=message):
    run(splits, epoch_rows(splits), **options)


def test_places_beyond_32_bits_are_errors():
  splits = world()
  rows = epoch_rows(splits)
  splits['drone'].place[3] = 2**40
  with pytest.raises(ValueError, match='does not fit 32 bits'):
    run(splits, rows)


def test_pictures_are_read_ahead_but_not_without_bound():
  splits = {'drone': MemorySplit('drone', 100, 1)}
  read = []

  def load(data, rng, view, where):
    read.append(where)
    return LOAD(data, rng, view, where)

  rows = np.arange(100).reshape(25, 4, 1)
  batches = stream.batches(
    splits,
    rows,
    views=('drone',),
    load=load,
    labels=None,
    seed=0,
    epoch=0,
    threads=2,
  )
  next(batches)
  settled = threading.Event()
  settled.wait(0.5)
  assert 4 < len(read) <= 4 * 6
  del batches


def test_an_abandoned_stream_stops_its_threads():
  splits = world()
  rows = epoch_rows(splits)
  before = threading.active_count()
  for _ in range(5):
    batches = stream.batches(
      splits, rows, views=VIEWS, load=LOAD, labels=None, seed=0, epoch=0
    )
    next(batches)
    del batches
  settled = threading.Event()
  for _ in range(50):
    if threading.active_count() <= before + 1:
      break
    settled.wait(0.1)
  assert threading.active_count() <= before + 1


@pytest.mark.parametrize('batch_size', [4, 5, 48, 50])
def test_sequential_yields_every_row_once_and_pads_the_last_batch(batch_size):
  split = MemorySplit('drone', 12, 4)
  load = transforms.Loader(image_size=(12, 10))
  batches = list(stream.sequential(split, load=load, batch_size=batch_size))
  rows = np.concatenate([batch['row'] for batch in batches])
  assert rows.size % batch_size == 0
  np.testing.assert_array_equal(rows[:48], np.arange(48))
  assert (rows[48:] == -1).all()
  images = np.concatenate([batch['image'] for batch in batches])
  for row, image in zip(rows, images, strict=True):
    if row >= 0:
      expected = load(split.files[row], None, 'drone', '')
      np.testing.assert_array_equal(image, expected)
    else:
      assert not image.any()


def test_sequential_gives_all_processes_the_same_number_of_batches():
  split = MemorySplit('drone', 9, 1)
  load = transforms.Loader(image_size=(12, 10))
  shares = [
    list(stream.sequential(split, load=load, batch_size=4, process=(p, 2)))
    for p in range(2)
  ]
  assert [len(share) for share in shares] == [3, 3]
  rows = [
    batch['row'].tolist()
    for pair in zip(*shares, strict=True)
    for batch in pair
  ]
  assert list(itertools.chain(*rows)) == [*range(9), -1, -1, -1]


def test_sequential_of_an_empty_split_yields_nothing():
  split = MemorySplit('drone', 0, 1)
  load = transforms.Loader(image_size=(12, 10))
  assert list(stream.sequential(split, load=load, batch_size=4)) == []
