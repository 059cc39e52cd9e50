import json
import pathlib
import resource
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from cvgl_jax import checkpoint, integrity, sharding
from tests import tiny_world


def state_of(step: int, size: int = 64, ema: bool = True):
  return {
    'params': {'w': jnp.full((size, 4), float(step))},
    'mutable': {'batch_stats': {'mean': jnp.zeros(4)}},
    'ema': {'w': jnp.full((size, 4), -float(step))} if ema else None,
    'step': jnp.asarray(step, jnp.int32),
  }


def variables(**params):
  """Shapes of variables with these parameters."""
  collections = {'params': params, 'batch_stats': {'mean': jnp.zeros(4)}}
  return jax.eval_shape(lambda: collections)


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


def test_a_fingerprint_is_that_of_the_arrays(tmp_path):
  saved(tmp_path / 'one', [3, 4])
  saved(tmp_path / 'two', [4], {4: 0.5})
  of = lambda name, step: checkpoint.fingerprint(str(tmp_path / name), step)
  assert of('one', 4) == of('two', 4) != of('one', 3)
  with pytest.raises(ValueError, match=r'checkpoints/5 is missing or damaged'):
    of('one', 5)
  path = tmp_path / 'one/checkpoints/4/loop/metadata'
  path.write_text('{"note": 4}')
  with pytest.raises(ValueError, match=r'checkpoints/4 is damaged'):
    of('one', 4)
  path.write_text('{"note"')
  with pytest.raises(ValueError, match=r'checkpoints/4 is missing or damaged'):
    of('one', 4)


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


def save_one(workdir, step, state):
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(step, state, {})
  checkpoints.close()


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


def test_variables_are_the_average_where_there_is_one(tmp_path):
  saved(tmp_path, [5])
  shapes = variables(w=jnp.zeros((64, 4)))
  average = checkpoint.restore_variables(tmp_path, 5, shapes)
  np.testing.assert_array_equal(average['params']['w'], np.full((64, 4), -5.0))
  np.testing.assert_array_equal(average['batch_stats']['mean'], np.zeros(4))
  plain = checkpoint.restore_variables(tmp_path, 5, shapes, use_ema=False)
  np.testing.assert_array_equal(plain['params']['w'], np.full((64, 4), 5.0))


def test_asking_for_an_average_that_was_not_kept_is_an_error(tmp_path):
  save_one(tmp_path, 5, state_of(5, ema=False))
  shapes = variables(w=jnp.zeros((64, 4)))
  plain = checkpoint.restore_variables(tmp_path, 5, shapes)
  np.testing.assert_array_equal(plain['params']['w'], np.full((64, 4), 5.0))
  with pytest.raises(ValueError, match='no moving average'):
    checkpoint.restore_variables(tmp_path, 5, shapes, use_ema=True)


def test_variables_of_another_network_are_listed(tmp_path):
  saved(tmp_path, [5])
  with pytest.raises(ValueError, match='of another network') as error:
    checkpoint.restore_variables(
      tmp_path, 5, variables(w=jnp.zeros((32, 4)), bias=jnp.zeros(4))
    )
  assert 'not in the checkpoint (1): ema/bias' in str(error.value)
  assert 'ema/w is float32[64, 4], not float32[32, 4]' in str(error.value)
  with pytest.raises(ValueError, match=r'only in the checkpoint \(1\): ema/w'):
    checkpoint.restore_variables(
      tmp_path, 5, variables(kernel=jnp.zeros((64, 4)))
    )


def test_a_network_without_statistics_can_be_read(tmp_path):
  save_one(tmp_path, 5, state_of(5) | {'mutable': {}})
  shapes = {'params': variables(w=jnp.zeros((64, 4)))['params']}
  found = checkpoint.restore_variables(tmp_path, 5, shapes)
  assert found.keys() == {'params'}
  np.testing.assert_array_equal(found['params']['w'], np.full((64, 4), -5.0))


def noise(step: int):
  """A state whose data are stored uncompressed, as those of networks are."""
  w = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
  return {'params': {'w': jnp.asarray(w)}, 'step': jnp.asarray(step, jnp.int32)}


def flip_bytes(folder: pathlib.Path):
  """Changes a few bytes in the middle of the largest file."""
  file = max(
    (f for f in folder.rglob('*') if f.is_file()),
    key=lambda f: f.stat().st_size,
  )
  content = bytearray(file.read_bytes())
  assert len(content) > 4000
  for at in range(len(content) // 2, len(content) // 2 + 8):
    content[at] ^= 0x10
  file.write_bytes(content)


def test_flipped_bytes_are_found_and_the_one_before_used(tmp_path):
  for step in (10, 20):
    save_one(tmp_path, step, noise(step))
  flip_bytes(tmp_path / 'checkpoints' / '20')
  shapes = {'params': {'w': jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
  with pytest.raises(ValueError, match=r'20 is damaged.*params/w'):
    checkpoint.restore_variables(tmp_path, 20, shapes)
  assert checkpoint.choose(tmp_path, 'latest') == 20  # reading moves nothing
  state, loop = restore(tmp_path, noise(0))
  np.testing.assert_array_equal(
    state['params']['w'], noise(10)['params']['w'], strict=True
  )
  assert int(state['step']) == 10 and loop == {}
  assert (tmp_path / 'damaged-20').is_dir()


def test_a_changed_loop_state_is_found(tmp_path):
  saved(tmp_path, [10, 20])
  file = tmp_path / 'checkpoints' / '20' / 'loop' / 'metadata'
  file.write_text(file.read_text().replace('"note": 20', '"note": 21'))
  assert restore(tmp_path, state_of(0))[1] == {'note': 10}


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_metric_that_is_not_finite_is_never_the_best(
  tmp_path, monkeypatch, value
):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda *args: warnings.append(args))
  kept = saved(tmp_path, [1, 2, 3, 4], {1: 0.9, 2: value, 3: 0.1, 4: 0.2})
  assert kept == [1, 3, 4]
  assert checkpoint.choose(tmp_path, 'best') == 1
  assert [w[1:] for w in warnings if 'its metric' in w[0]] == [(2, value)]


def test_of_equal_metrics_the_latest_is_the_best(tmp_path):
  kept = saved(tmp_path, [1, 2, 3, 4], {1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1})
  assert kept == [2, 3, 4]
  assert checkpoint.choose(tmp_path, 'best') == 2


@pytest.mark.parametrize('content', ['{"metr', '{"other": 1}', '[]', ''])
def test_a_damaged_metric_sets_its_checkpoint_aside(tmp_path, content):
  saved(tmp_path, [1, 2, 3], {1: 0.9, 2: 0.5, 3: 0.1})
  (tmp_path / 'checkpoints' / '1' / 'metrics' / 'metrics').write_text(content)
  assert checkpoint.choose(tmp_path, 'best') == 2
  assert (tmp_path / 'checkpoints' / '1').is_dir()  # choosing moves nothing
  assert saved(tmp_path, [4], {4: 0.2}) == [2, 3, 4]
  assert (tmp_path / 'damaged-1' / 'state').is_dir()


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
  saved(tmp_path, [1])
  half = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp-1'
  (half / 'state').mkdir(parents=True)
  (half / 'state' / 'data').write_bytes(b'half')
  # Not by a reader: the run may be writing it at this moment.
  assert checkpoint.choose(tmp_path, 'latest') == 1
  assert half.is_dir()
  lines = []
  monkeypatch.setattr(
    logging, 'info', lambda text, *args: lines.append(text % args)
  )
  assert saved(tmp_path, []) == [1]
  assert not half.exists()
  assert any(str(half) in line for line in lines)


def test_choosing_needs_no_permission_to_write(tmp_path):
  saved(tmp_path, [1, 2], {1: 0.9, 2: 0.5})
  seen = lambda: {
    path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob('*'))
  }
  before = seen()
  folders = [path for path in before if path.is_dir()]
  for path in folders:
    path.chmod(0o555)
  try:
    assert checkpoint.choose(tmp_path, 'best') == 1
  finally:
    for path in folders:
      path.chmod(0o755)
  assert seen() == before  # root may write anywhere; nothing was written


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


def one_of_two(index: int, port: int, workdir: str):
  """What each process of the next test does."""
  jax.distributed.initialize(f'localhost:{port}', 2, index)
  mesh = sharding.make_mesh()
  shapes = jax.eval_shape(lambda: state_of(0))
  split = sharding.state_sharding(shapes, mesh, fsdp=True, fsdp_min_size=8)
  make = jax.jit(state_of, static_argnums=0, out_shardings=split)
  assert not make(0)['params']['w'].is_fully_addressable
  checkpoints = checkpoint.Checkpoints(workdir)
  for step in (10, 20):
    checkpoints.save(step, make(step), {'note': step})
  checkpoints.wait()
  state, _ = checkpoints.restore_latest(shapes, split)
  seen = [int(state['step'])]

  # Process 1 alone cannot read step 20.
  verify = integrity.verify

  def fails_on_one(state, loop):
    loop = verify(state, loop)
    if index == 1 and loop['note'] == 20:
      raise ValueError('unreadable here')
    return loop

  integrity.verify = fails_on_one
  state, _ = checkpoints.restore_latest(shapes, split)
  seen.append(int(state['step']))

  # Process 0, which renames, has no permission to.
  checkpoints.save(20, make(20), {'note': 20})
  checkpoints.wait()

  def rename(source):
    raise PermissionError(f'cannot rename {source}')

  checkpoints._rename_aside = rename
  try:
    checkpoints.restore_latest(shapes, split)
  except OSError as error:
    seen.append(type(error).__name__)
  checkpoints.close()
  path = pathlib.Path(workdir) / f'seen_{index}.json'
  path.write_text(json.dumps(seen))


def test_all_processes_restore_the_same_step_or_fail(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  code = 'from tests import checkpoint_test as t; t.one_of_two'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', f'{code}({index}, {port}, {str(tmp_path)!r})'],
      cwd=tiny_world.ROOT,
      env=tiny_world.environment(),
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    errors = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for index, failure in enumerate(['PermissionError', 'OSError']):
    seen = tmp_path / f'seen_{index}.json'
    assert seen.exists(), errors[index][-3000:]
    assert json.loads(seen.read_text()) == [20, 10, failure]
  assert (tmp_path / 'damaged-20').is_dir()
