"""What a chain writes down: refused commands leave it, moved data is followed."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

import main
from cvgl_jax import commands, settings
from cvgl_jax.chain import ledger, run
from tests import tiny_chain, tiny_world


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('chain') / 'whole'
  run.run(tiny_chain.short_config(), str(workdir))
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  """The finished chain where a test may change it; no stage names another."""
  return pathlib.Path(shutil.copytree(finished, tmp_path / 'copy'))


def contents(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  """Time and bytes of every file."""
  return {
    str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
    for path in folder.rglob('*')
    if path.is_file()
  }


def command(workdir, *overrides):
  """`main.py chain` in this process, without --config."""
  arguments = ['chain', f'--workdir={workdir}', *overrides]
  args, rest = main.parser().parse_known_args(arguments)
  return commands.chain(args, main.load_config(args, rest))


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'stages__aerial__optim__lr': 0.1}, r'optim\.lr: 0\.002 -> 0\.1'),
    ({'stages__first__method__dim': 8}, r'method\.dim: 16 -> 8'),
    ({'seed': 3}, r'first/config\.json is .*seed: 0 -> 3'),
    ({'joint__diffusion__kq': 17}, 'kq'),
  ],
)
def test_a_refused_command_changes_nothing(copy, overrides, message):
  before = contents(copy)
  with pytest.raises(ValueError, match=message):
    run.run(tiny_chain.short_config(**overrides), str(copy))
  assert contents(copy) == before


def test_what_training_refuses_stays_finished_in_the_records(copy):
  for path in (copy / 'aerial' / 'checkpoints').glob('*/state/**/*'):
    if path.is_file():
      path.write_bytes(b'')
  record = (copy / 'chain.json').read_bytes()
  # Looked at again, since its config is another one.
  config = tiny_chain.short_config(stages__aerial__data__threads=1)
  with pytest.raises(
    ValueError, match=r'stages\.aerial: no checkpoint of this'
  ):
    run.run(config, str(copy))
  assert (copy / 'chain.json').read_bytes() == record


def test_moved_data_are_followed_by_all_stages_without_their_recipe(
  copy, tmp_path
):
  before, record = contents(copy), json.loads((copy / 'chain.json').read_text())
  moved = tmp_path / 'moved'
  moved.symlink_to(tiny_world.data_dir())
  assert command(copy, f'--config.data.dir={moved}') == 0
  for folder in ('first', 'aerial'):
    config = settings.load_config(copy / folder)
    assert config['data']['dir'] == str(moved)
  config = settings.load_config(copy)
  assert config['data']['dir'] == str(moved)
  # Nothing else is new: the pictures are the same.
  after = contents(copy)
  for name in before:
    if name.split('/')[0] in ('features', 'diffusion', 'eval', 'paths.npz'):
      assert after[name] == before[name], name
  now = json.loads((copy / 'chain.json').read_text())
  for stage, entry in record['stages'].items():
    assert now['stages'][stage]['weights'] == entry['weights']
  # And it is remembered.
  before = contents(copy / 'first')
  assert command(copy) == 0
  assert contents(copy / 'first') == before


def test_a_stage_keeps_a_value_of_its_own_when_the_shared_one_changes(tmp_path):
  config = tiny_chain.short_config(stages__aerial__data__dir='A', seed=2)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  arguments = ['chain', f'--workdir={tmp_path}', '--config.data.dir=B']
  loaded = main.load_config(
    *main.parser().parse_known_args([*arguments, '--config.seed=4'])
  )
  stages = loaded['stages']
  assert {name: stage['data']['dir'] for name, stage in stages.items()} == {
    'first': 'B',
    'aerial': 'A',
  }
  assert {stage['seed'] for stage in stages.values()} == {4}
  # Nothing is changed where nothing is overridden.
  loaded = main.load_config(*main.parser().parse_known_args(arguments[:2]))
  assert json.loads(json.dumps(loaded)) == json.loads(json.dumps(config))


@pytest.fixture(params=[0, 1])
def process(request, monkeypatch):
  """This process as one of two; what process 0 tells the others."""
  told = []

  def broadcast(code):
    told.append(np.asarray(code).tolist())
    return np.asarray(code if request.param == 0 else [False, True])

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: request.param)
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', broadcast)
  return request.param, told


@pytest.mark.parametrize(
  'problem', [OSError('disk full'), MemoryError(), jax.errors.JaxRuntimeError()]
)
def test_whatever_fails_on_process_0_reaches_the_others(process, problem):
  index, told = process

  def fail():
    assert index == 0, 'only process 0 is asked'
    raise problem

  with pytest.raises(Exception) as error:
    ledger.agreed(fail)
  assert len(told) == 1
  if index == 0:
    assert error.value is problem and told == [[False, True]]
  else:
    assert isinstance(error.value, ValueError)


@pytest.mark.slow
def test_two_processes_end_together_when_a_file_cannot_be_written(tmp_path):
  (tmp_path / 'features').write_text('not a folder')
  processes = tiny_world.several_processes(
    tiny_chain.arguments(tmp_path, option='short')
  )
  try:
    logs = [process.communicate(timeout=200)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [1, 1], logs
  assert 'features' in logs[0] and 'see its log' in logs[1]
