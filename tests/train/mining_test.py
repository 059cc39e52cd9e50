"""Mined runs: what the bank holds, which batches follow, stop and resume."""

import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cvgl_jax import checkpoint, evaluate, experiment, mining, sharding, stop
from cvgl_jax import state as state_lib
from cvgl_jax import train as train_lib
from cvgl_jax.optim import sam
from tests import state_test, tiny_world
from tests.train import loop_test, resume_test

VIEWS = ('drone', 'satellite')
# 16 places of three drone pictures: epochs of six steps of eight pairs.
BANK = {'name': 'GlobalMining', 'views': VIEWS, 'hardest': 4, 'visits': 3}
EMBED = {
  'name': 'NeighbourBatches',
  'views': VIEWS,
  'gps': False,
  'select': 4,
  'reach': 6,
  'refresh_epochs': 1,
}
EPOCH = 6
# Nothing but a stop saves, and the end; epochs 1 and 2 are mined.
OPTIONS = {
  'train.epochs': 3,
  'train.eval_every_epochs': 0,
  'train.save_every_steps': 0,
  'train.save_every_epochs': 0,
}
IN_MICRO_BATCHES = {
  'optim.sam': 'asam',
  'optim.sam_rho': 0.5,
  'train.batch_size': 16,
  'train.micro_batches': 2,
}
SHARDED = {'train.fsdp': True, 'train.fsdp_min_size': 64}


def config(plan: dict, **options) -> dict:
  return tiny_world.config(**OPTIONS | options) | {'plan': plan}


def train(workdir: pathlib.Path, plan: dict, **options) -> None:
  train_lib.train(config(plan, **options), str(workdir))


def restored(
  workdir: pathlib.Path, step: int, plan: dict, **options
) -> tuple[mining.Miner, state_lib.State, evaluate.embedder_lib.Embedder]:
  """The state of a checkpoint on the mesh, and what would mine it."""
  checked = experiment.check(config(plan, **options))
  method = experiment.make_method(checked, num_classes=16)
  mesh = sharding.make_mesh()
  miner = mining.Miner(
    experiment.make_plan(checked),
    experiment.training_data(checked, method.views).splits,
    batch_size=checked.train.batch_size,
    seed=checked.seed,
  )
  arrays = tiny_world.saved_arrays(workdir, step)
  tree = lambda start: jax.device_put(
    jax.tree.map(
      lambda x: arrays['/'.join((start, *x))],
      paths(arrays, start),
      is_leaf=lambda x: isinstance(x, tuple),
    ),
    sharding.replicated(mesh),
  )
  found = tree('mining')
  state = state_lib.State(
    step=step,
    params=tree('params'),
    mutable=tree('mutable'),
    opt_state=None,
    ema=None,
    mining=state_lib.Mining(found.get('bank', {}), found['neighbours']),
  )
  variables = {'params': state.params, **state.mutable}
  embedder = evaluate.make_embedder(checked, method, variables, mesh)
  return miner, state, embedder


def paths(arrays: dict, start: str) -> dict:
  """Nested dict of the paths below `start`, as tuples."""
  tree = {}
  for name in arrays:
    if not name.startswith(f'{start}/'):
      continue
    node, path = tree, tuple(name.split('/')[1:])
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = path
  return tree


@pytest.mark.parametrize(
  ('plan', 'options'),
  [
    (BANK, {}),
    (BANK | {'bank_dtype': 'bfloat16'}, IN_MICRO_BATCHES),
    (BANK, SHARDED),
    (EMBED, {}),
  ],
  ids=['bank', 'asam_in_micro_batches', 'fsdp', 'embed'],
)
def test_a_run_that_stops_in_a_mined_epoch_resumes_bit_for_bit(
  tmp_path, plan, options
):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole, plan, **options)
  steps = checkpoint.choose(whole, 'latest')
  stopped_at = steps // 3 + 2  # two steps into the second epoch
  with loop_test.sigterm_at(stopped_at - 1), pytest.raises(stop.Stopped):
    train(cut, plan, **options)
  assert checkpoint.choose(cut, 'latest') == stopped_at
  # What mining would find by now is not what the epoch began with.
  miner, state, embed = restored(cut, stopped_at, plan, **options)
  began_with = np.array(state.mining.neighbours)
  assert (began_with >= 0).any()
  now = miner.mine(state, 1, embed).mining.neighbours
  assert not np.array_equal(now, began_with)
  train(cut, plan, **options)
  resume_test.assert_equal_runs(cut, whole)


def test_a_run_that_stops_between_epochs_mines_when_it_resumes(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  train(whole, BANK, **{'train.save_every_epochs': 1})
  shutil.copytree(whole, cut)
  shutil.rmtree(cut / 'checkpoints' / str(3 * EPOCH))
  assert checkpoint.choose(cut, 'latest') == 2 * EPOCH
  train(cut, BANK, **{'train.save_every_epochs': 1})
  resume_test.assert_equal_runs(cut, whole)


@pytest.mark.slow
def test_killed_by_kill_9_in_a_mined_epoch_a_run_resumes(tmp_path):
  options = OPTIONS | {'train.save_every_steps': 4}

  def arguments(name: str) -> list[str]:
    words = tiny_world.train_arguments(tmp_path / name, **options)
    recipe = '--config=tests/train/mined_recipe.py'
    return [recipe if word.startswith('--config=') else word for word in words]

  resume_test.finish(arguments('whole'))
  # During the save of step 12, so that the checkpoint of step 8 is the last.
  point = ('os.rename', '/12.orbax-checkpoint-tmp', 1)
  resume_test.interrupt(arguments('cut'), signal.SIGKILL, *point)
  assert checkpoint.choose(tmp_path / 'cut', 'latest') == 8
  assert 'resumed at step 8' in resume_test.finish(arguments('cut'))
  resume_test.assert_equal_runs(tmp_path / 'cut', tmp_path / 'whole')


@pytest.fixture(scope='module')
def mined(tmp_path_factory):
  """Folder of a run with a checkpoint after its first epoch."""
  workdir = tmp_path_factory.mktemp('mined') / 'run'
  train(workdir, BANK, **{'train.save_every_epochs': 1, 'train.epochs': 2})
  return workdir


def test_the_bank_holds_what_was_visited(mined):
  miner, state, _ = restored(mined, EPOCH, BANK)
  rows = miner.rows(state, 0)
  for slot, view in enumerate(VIEWS):
    bank = np.array(state.mining.bank[view])
    visited = np.zeros(len(bank), bool)
    visited[rows[..., slot]] = True
    # Of the three drone pictures of a place some had no turn yet.
    assert visited.all() == (view == 'satellite')
    norm = np.linalg.norm(bank, axis=1)
    np.testing.assert_allclose(norm, visited.astype(float), atol=1e-5)


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_the_bank_gets_the_features_of_the_first_pass(micro_batches):
  """SAM makes a second pass, at other parameters."""
  method, batch = state_test.Toy(), state_test.batch_of()
  row = np.arange(16, dtype=np.int32)[::-1] + 3
  batch = {view: slot | {'row': row} for view, slot in batch.items()}
  tx = sam.sharpness_aware(optax.sgd(0.1), rho=5.0)
  variables = method.init(jax.random.key(0), batch)
  bank = {view: jnp.zeros((20, 16)) for view in method.views}
  state = state_lib.make_state(
    variables,
    tx,
    ema=False,
    mining=state_lib.Mining(bank, jnp.zeros((20, 1), jnp.int32)),
  )
  step = state_lib.make_train_step(
    method,
    tx,
    augment=state_test.as_float,
    seed=0,
    micro_batches=micro_batches,
  )
  after, _ = jax.jit(step)(state, batch)
  pictures = {
    view: {'image': slot['image'].astype(np.float32)}
    for view, slot in batch.items()
  }
  features, _ = method.features(
    variables['params'],
    {'stats': variables['stats']},
    pictures,
    jax.random.key(0),
  )
  for view in method.views:
    x = np.asarray(features[view])
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = np.asarray(after.mining.bank[view])
    np.testing.assert_allclose(found[row], expected, atol=1e-5)
    assert not found[:3].any() and not found[19:].any()


def test_the_batches_of_a_mined_epoch_hold_hard_picks(mined):
  miner, state, embed = restored(mined, EPOCH, BANK)
  state = miner.mine(state, 1, embed)
  near = np.array(state.mining.neighbours)
  drone, satellite = (miner.splits[view].place for view in VIEWS)
  rows = miner.rows(state, 1)
  np.testing.assert_array_equal(drone[rows[..., 0]], satellite[rows[..., 1]])
  of_place = {place: set() for place in satellite.tolist()}
  for query, place in enumerate(drone.tolist()):
    of_place[place] |= set(satellite[near[query]].tolist())
  assert sum(map(len, of_place.values())) < 16 * 16  # a choice, not all
  half = rows.shape[1] // 2
  for batch in satellite[rows[..., 1]].tolist():
    assert len(set(batch)) == len(batch)
    for seed, hard in zip(batch[:half], batch[half:], strict=True):
      assert hard in of_place[seed] or not of_place[seed] - set(batch)


def update(devices: int, *, dtype: str = 'float32', split: bool = False):
  """A bank of 40 rows after a batch in which rows come twice."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  rng = np.random.default_rng(0)
  features = rng.standard_normal((16, 8)).astype(np.float32)
  row = np.array([3, 5, 3, 39, 0, 5, 7, 3, 9, 1, 2, 4, 6, 8, 10, 0], np.int32)
  everywhere = sharding.replicated(mesh)
  target = sharding.batch_sharding(mesh) if split else everywhere
  bank = {'drone': jax.device_put(jnp.full((40, 8), 0.5, dtype), target)}
  batch = sharding.to_devices({'drone': {'row': row}}, mesh)
  found = jax.jit(state_lib.update_bank, out_shardings={'drone': target})(
    bank, batch, sharding.to_devices({'drone': features}, mesh)
  )
  expected = np.full((40, 8), 0.5, np.float32)
  expected[row] = features / np.linalg.norm(features, axis=1, keepdims=True)
  return found['drone'], expected


@pytest.mark.parametrize(
  ('devices', 'split'), [(1, False), (8, False), (8, True)]
)
def test_the_last_of_equal_rows_of_a_batch_stays_in_the_bank(devices, split):
  found, expected = update(devices, split=split)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(mining.rows_of(found), expected, atol=1e-6)
  some = np.array([39, 3, 0])
  np.testing.assert_array_equal(
    mining.rows_of(found, some), np.asarray(found)[some]
  )


def test_a_bank_of_half_the_size_is_read_as_float32():
  found, expected = update(8, dtype='bfloat16')
  assert found.dtype == jnp.bfloat16
  values = mining.rows_of(found)
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, expected, atol=4e-3)


def test_a_bank_is_read_in_parts(monkeypatch):
  found, _ = update(8, split=True)
  monkeypatch.setattr(mining, '_CHUNK', 7)
  np.testing.assert_array_equal(mining.rows_of(found), np.asarray(found))
  none = mining.rows_of(found, np.zeros(0, np.int64))
  assert none.shape == (0, 8)


def test_features_that_do_not_fit_the_bank_are_named():
  bank = {'drone': jnp.zeros((4, 8))}
  batch = {'drone': {'row': jnp.zeros(2, jnp.int32)}}
  for features in ({'drone': jnp.ones((2, 9))}, [jnp.ones((2, 8))]):
    with pytest.raises(ValueError, match="view 'drone' of 8 numbers"):
      state_lib.update_bank(bank, batch, features)
