import pathlib
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import checkpoint, sharding


def state_of(step: int, size: int = 64):
  return {
    'params': {'w': jnp.full((size, 4), float(step))},
    'mutable': {'batch_stats': {'mean': jnp.zeros(4)}},
    'ema': {'w': jnp.full((size, 4), -float(step))},
    'step': jnp.asarray(step, jnp.int32),
  }


def placed(state):
  mesh = sharding.make_mesh()
  return jax.tree.map(lambda _: sharding.replicated(mesh), state)


def restore(workdir, state):
  checkpoints = checkpoint.Checkpoints(workdir)
  found = checkpoints.restore_latest(
    jax.eval_shape(lambda: state), placed(state)
  )
  checkpoints.close()
  return found


def saved(workdir, steps, metrics=None):
  checkpoints = checkpoint.Checkpoints(workdir)
  for step in steps:
    metric = (metrics or {}).get(step)
    checkpoints.save(step, state_of(step), {'note': step}, metric)
  checkpoints.wait()
  steps = checkpoints.steps()
  checkpoints.close()
  return steps


def test_the_two_latest_and_the_best_are_kept(tmp_path):
  kept = saved(tmp_path, [1, 2, 3, 4], {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.2})
  assert kept == [2, 3, 4]
  assert checkpoint.choose(tmp_path, 'best') == 2
  assert checkpoint.choose(tmp_path, 'latest') == 4


def test_the_latest_comes_back_bit_for_bit(tmp_path):
  saved(tmp_path, [3, 7])
  state, loop = restore(tmp_path, state_of(0))
  assert loop == {'note': 7}
  for a, b in zip(
    jax.tree.leaves(state), jax.tree.leaves(state_of(7)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_a_state_restores_onto_another_sharding(tmp_path):
  saved(tmp_path, [3])
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(lambda: state_of(0))
  split = sharding.state_sharding(shapes, mesh, fsdp=True, fsdp_min_size=8)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state, _ = checkpoints.restore_latest(shapes, split)
  checkpoints.close()
  assert not state['params']['w'].sharding.is_fully_replicated
  np.testing.assert_array_equal(state['params']['w'], 3.0)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path, state_of(0)) is None


def damage(folder: pathlib.Path):
  """Cuts every data file of a checkpoint short."""
  files = [f for f in folder.rglob('*') if f.is_file() and f.stat().st_size]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path):
  saved(tmp_path, [10, 20])
  damage(tmp_path / 'checkpoints' / '20')
  state, loop = restore(tmp_path, state_of(0))
  assert int(state['step']) == 10 and loop == {'note': 10}
  assert (tmp_path / 'damaged-20').is_dir()  # nothing was deleted
  # The step can be saved again.
  assert saved(tmp_path, [20]) == [10, 20]
  assert int(restore(tmp_path, state_of(0))[0]['step']) == 20


def test_when_no_checkpoint_fits_the_error_lists_them(tmp_path):
  saved(tmp_path, [10, 20])
  with pytest.raises(ValueError, match='another --workdir') as error:
    restore(tmp_path, state_of(0, size=32))
  assert '10' in str(error.value) and '20' in str(error.value)
  assert checkpoint.choose(tmp_path, 'latest') == 20  # left as it was


def test_variables_can_be_read_without_the_rest(tmp_path):
  saved(tmp_path, [5])
  shapes = jax.eval_shape(
    lambda: {
      'params': state_of(0)['params'],
      'batch_stats': {'mean': jnp.zeros(4)},
    }
  )
  plain = checkpoint.restore_variables(tmp_path, 5, shapes)
  np.testing.assert_array_equal(plain['params']['w'], 5.0)
  assert plain['batch_stats']['mean'].shape == (4,)
  average = checkpoint.restore_variables(tmp_path, 5, shapes, use_ema=True)
  np.testing.assert_array_equal(average['params']['w'], -5.0)


def test_a_step_that_does_not_exist_lists_those_that_do(tmp_path):
  saved(tmp_path, [5, 6])
  with pytest.raises(ValueError, match=r'\[5, 6\]'):
    checkpoint.choose(tmp_path, '7')
  with pytest.raises(ValueError, match='nothing was trained'):
    checkpoint.choose(tmp_path / 'nowhere', 'latest')


def test_a_full_disk_is_an_error_with_path_and_free_space(tmp_path):
  saved(tmp_path, [1])
  big = {**state_of(2), 'more': jnp.asarray(np.random.rand(256, 1024))}
  # A cap on the size of files stands in for a full disk.
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  try:
    with pytest.raises(OSError, match='MiB free') as error:
      checkpoints.save(2, big, {}, None)
      checkpoints.wait()
    assert str(tmp_path) in str(error.value)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert int(restore(tmp_path, state_of(0))[0]['step']) == 1
