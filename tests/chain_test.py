"""A chain from end to end: its numbers, and stopping and resuming it."""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest
from absl import logging as absl_logging

from cvgl_jax import (
  commands,
  evaluate,
  evaluate_features,
  evaluate_flags,
  stop,
)
from cvgl_jax.chain import joint, run
from cvgl_jax.retrieval.diffusion import cross
from tests import tiny_chain, tiny_world

WAYS = ('one_hop', 'no_diffusion', 'cross_diffusion')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(workdir, metrics) of a chain that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('chain') / 'whole'
  return workdir, run.run(tiny_chain.config(), str(workdir))


@pytest.fixture
def copy(finished, tmp_path):
  """The finished chain where a test may change it; under the same path, since
  the stages name one another by theirs."""
  workdir, saved = finished[0], tmp_path / 'saved'
  shutil.copytree(workdir, saved)
  yield workdir
  shutil.rmtree(workdir)
  shutil.copytree(saved, workdir)


@contextlib.contextmanager
def when_logged(*texts, do):
  """Does something when the log says all of these one after the other."""
  left = list(texts)

  class Watch(logging.Handler):
    def emit(self, record):
      if left and left[0] in record.getMessage():
        left.pop(0)
        if not left:
          do()

  logger, watch = absl_logging.get_absl_logger(), Watch()
  level = logger.level
  logger.addHandler(watch)
  absl_logging.set_verbosity(absl_logging.INFO)
  try:
    yield
  finally:
    logger.removeHandler(watch)
    logger.setLevel(level)
  assert not left, f'the log never said {left[0]!r}'


def signal_at(*texts):
  """SIGTERM at these words of the log."""
  return when_logged(*texts, do=lambda: os.kill(os.getpid(), signal.SIGTERM))


def versions(folder: pathlib.Path) -> dict[str, int]:
  """When every file was written, but for the config's."""
  return {
    str(path.relative_to(folder)): path.stat().st_mtime_ns
    for path in folder.rglob('*')
    if path.is_file() and path.name != 'config.json'
  }


def evaluation(workdir, name):
  with np.load(workdir / 'eval' / f'{name}.npz') as file:
    arrays = dict(file)
  return json.loads((workdir / 'eval' / f'{name}.json').read_text()), arrays


def features(workdir, name):
  with np.load(workdir / 'features' / f'{name}.npz') as file:
    return file['features'].astype(np.float64), file['place']


def rank_of_place(scores, query_place, gallery_place):
  """0-based rank of the first right entry; equal scores: the lower row first."""
  order = np.argsort(-scores, axis=1, kind='stable')
  return (gallery_place[order] == query_place[:, None]).argmax(axis=1)


def test_all_stages_and_all_rankings_are_measured(finished):
  _, metrics = finished
  names = {key.rpartition('/')[0] for key in metrics}
  assert names == {
    'first/street_to_drone',
    'second/street_to_drone',
    'aerial/satellite_to_drone',
    'street_to_drone',
    'drone_to_satellite',
    *(f'street_to_satellite_{way}' for way in WAYS),
  }
  assert all(np.isfinite(value) for value in metrics.values())
  # The joint evaluation embeds as the stage's own one does.
  for key in ('R@1', 'R@5', 'AP'):
    assert metrics[f'street_to_drone/{key}'] == pytest.approx(
      metrics[f'second/street_to_drone/{key}']
    )


def test_rankings_are_those_of_their_formulas(finished):
  workdir, _ = finished
  query, query_place = features(workdir, 'second.test_query_street')
  bridge, _ = features(workdir, 'second.test_gallery_drone')
  again, _ = features(workdir, 'aerial.test_gallery_drone')
  gallery, gallery_place = features(workdir, 'aerial.test_gallery_satellite')
  scores = {'one_hop': [], 'no_diffusion': []}
  for q in query:
    cosines = bridge @ q
    best = np.argsort(-cosines, kind='stable')[:3]  # kq
    scores['one_hop'].append(gallery @ again[best[0]])
    scores['no_diffusion'].append(
      sum(cosines[j] ** 3 * (gallery @ again[j]) for j in best)
    )
  scores['cross_diffusion'] = cross.cross_diffusion(
    *(query, bridge, again, gallery),
    options=cross.Options(**tiny_chain.DIFFUSION),
  )
  for way in WAYS:
    summary, arrays = evaluation(workdir, f'street_to_satellite_{way}')
    expected = rank_of_place(
      np.asarray(scores[way]), query_place, gallery_place
    )
    np.testing.assert_array_equal(arrays['first_rank'], expected)
    best = -np.sort(-np.asarray(scores[way]), axis=1)  # all 8
    np.testing.assert_allclose(arrays['top_scores'], best, rtol=1e-4, atol=1e-6)
    recall = 100 * np.mean(expected == 0)
    assert summary['metrics']['R@1'] == pytest.approx(recall)
    assert summary['settings']['ranking'] == way
    # 8 satellites: the index of R@1% is round(0.08) = 0.
    assert summary['metrics']['R@1%'] == pytest.approx(recall)


def test_paths_lead_from_the_best_drones_to_what_diffusion_reaches(finished):
  workdir, _ = finished
  query, _ = features(workdir, 'second.test_query_street')
  bridge, _ = features(workdir, 'second.test_gallery_drone')
  with np.load(workdir / joint.PATHS) as file:
    paths = dict(file)
  cosines = query @ bridge.T
  order = np.argsort(-cosines, axis=1, kind='stable')[:, :3]
  np.testing.assert_array_equal(paths['hop_rows'], order)
  best = np.take_along_axis(cosines, order, axis=1)
  np.testing.assert_allclose(paths['hop_scores'], best, atol=1e-5)
  share = best**3 / np.abs(best**3).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(paths['hop_weights'], share, atol=1e-5)
  assert paths['near_rows'].shape == paths['near_share'].shape == (6, 3, 3)
  assert paths['near_share'].min() >= 0
  assert paths['near_share'].sum(axis=2).max() <= 1 + 1e-5


def test_feature_files_of_the_stages_give_the_same_numbers(finished, tmp_path):
  """As the published code does it: files of both networks, joined by a tool."""
  workdir, metrics = finished
  files = []
  for stage, splits in (
    ('second', ['test_query_street', 'test_gallery_drone']),
    ('aerial', ['test_gallery_drone', 'test_gallery_satellite']),
  ):
    folder = tmp_path / stage
    shutil.copytree(workdir / stage, folder)
    config = tiny_chain.config()['stages'][stage]
    config['init'] = {}
    evaluate.embed(
      config, str(folder), 'latest', splits=splits, file_format='hdf5'
    )
    files.append(folder / 'features')
  arguments = argparse.Namespace(
    **evaluate_flags.defaults()
    | {
      'features': [str(files[0] / 'pytorch.hdf5')],
      'diffusion': [str(files[1] / 'pytorch_for_diffusion.hdf5')],
      'diffusion_options': [
        f'{k}={v}' for k, v in tiny_chain.DIFFUSION.items()
      ],
      'output': str(tmp_path / 'out.json'),
    }
  )
  evaluate_features.run(arguments)
  found = json.loads((tmp_path / 'out.json').read_text())['metrics']
  for key, value in found.items():
    name = f'street_to_satellite_cross_diffusion/{key}'
    assert value == pytest.approx(metrics[name]), key


@pytest.mark.slow
def test_the_generations_of_plcd_run_from_end_to_end(tmp_path):
  config = tiny_chain.plcd_config('direct').to_dict()
  with (
    pytest.raises(stop.Stopped, match='stage g2d1'),
    signal_at('g2d1', 'step 1'),
  ):
    run.run(config, str(tmp_path))
  first = versions(tmp_path / 'g2d0')
  metrics = run.run(config, str(tmp_path))
  assert versions(tmp_path / 'g2d0') == first
  assert 'street_to_satellite_cross_diffusion/AP' in metrics
  # By the network of three views, in its own evaluation and in the joint one.
  assert metrics['street_to_satellite_direct/AP'] == pytest.approx(
    metrics['g2s/street_to_satellite/AP']
  )
  assert run.run(config, str(tmp_path)) == metrics
  assert versions(tmp_path / 'g2d0') == first


def test_a_finished_chain_is_left_as_it_is(finished):
  workdir, metrics = finished
  before = versions(workdir)
  assert run.run(tiny_chain.config(), str(workdir)) == metrics
  assert versions(workdir) == before


def test_a_chain_that_is_stopped_ends_with_the_same_numbers(finished, tmp_path):
  whole, metrics = finished
  workdir, config = tmp_path / 'stopped', tiny_chain.config()
  arguments = argparse.Namespace(workdir=str(workdir))
  # In the last evaluation of a stage, which has no step left to stop at.
  with signal_at('first', 'step 12  street_to_drone'):
    assert commands.chain(arguments, config) == commands.STOPPED
  assert (workdir / 'first' / 'eval').exists()
  assert not (workdir / 'second').exists()
  # Within a stage.
  with signal_at('stage 2 of 3', 'step 8/12'):
    assert commands.chain(arguments, config) == commands.STOPPED
  assert not (workdir / 'aerial').exists()
  first = versions(workdir / 'first')
  # Within the joint evaluation: as if killed, after one file of features.
  with (
    pytest.raises(SystemExit),
    when_logged('aerial.test_gallery_drone.npz', do=sys.exit),
  ):
    run.run(config, str(workdir))
  assert not (workdir / 'eval').exists()
  assert run.run(config, str(workdir)) == metrics
  assert versions(workdir / 'first') == first
  for stage in tiny_chain.STAGES:
    expected = tiny_world.saved_arrays(whole / stage)
    got = tiny_world.saved_arrays(workdir / stage)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
      np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_other_options_of_the_diffusion_redo_only_the_rankings(copy):
  before = versions(copy)
  config = tiny_chain.config(joint__diffusion__kq=1)
  metrics = run.run(config, str(copy))
  after = versions(copy)
  changed = {
    pathlib.Path(name).parts[0]
    for name in after
    if after[name] != before.get(name)
  }
  assert changed == {'chain.json', 'eval', 'paths.npz'}
  # One drone picture, without diffusion: that is one hop.
  for key in ('R@1', 'R@5', 'AP'):
    assert (
      metrics[f'street_to_satellite_no_diffusion/{key}']
      == metrics[f'street_to_satellite_one_hop/{key}']
    )


@pytest.mark.parametrize('damage', ['other weights', 'cut short'])
def test_features_that_are_not_of_these_weights_are_made_again(
  copy, finished, damage
):
  path = copy / 'features' / 'aerial.test_gallery_satellite.npz'
  with np.load(path) as file:
    before = dict(file)
  if damage == 'cut short':
    path.write_bytes(path.read_bytes()[:200])
  else:
    other = np.flip(before['features'], axis=0)
    np.savez(path, **(before | {'features': other, 'key': np.array('f00')}))
  (copy / 'paths.npz').unlink()  # so that the rankings are made again
  assert run.run(tiny_chain.config(), str(copy)) == finished[1]
  with np.load(path) as file:
    np.testing.assert_array_equal(file['features'], before['features'])
    assert file['key'] == before['key']


def test_another_way_of_embedding_trains_nothing_again(copy):
  before, key = versions(copy), json.loads((copy / 'chain.json').read_text())
  run.run(tiny_chain.config(joint__flip=False), str(copy))
  after = versions(copy)
  for name, version in before.items():
    assert after[name] == version or name.split('/')[0] not in tiny_chain.STAGES
  assert (
    after['features/second.test_query_street.npz']
    != (before['features/second.test_query_street.npz'])
  )
  now = json.loads((copy / 'chain.json').read_text())
  assert now['stages'] == key['stages'] and now['joint'] != key['joint']


def test_a_stage_whose_checkpoint_is_gone_is_named(copy):
  shutil.rmtree(copy / 'aerial' / 'checkpoints')
  with pytest.raises(
    ValueError, match=r'config\.stages\.aerial: it was trained'
  ):
    run.run(tiny_chain.config(), str(copy))


def test_a_missing_teacher_of_a_finished_stage_is_named(copy):
  shutil.rmtree(copy / 'first' / 'checkpoints')
  with pytest.raises(ValueError, match=r'config\.stages\.first: .* is gone'):
    run.run(tiny_chain.config(), str(copy))


def test_a_stage_with_other_weights_is_noticed_by_those_that_learnt_from_it(
  copy,
):
  shutil.rmtree(copy / 'first' / 'checkpoints')
  shutil.copytree(copy / 'second' / 'checkpoints', copy / 'first/checkpoints')
  with pytest.raises(
    ValueError, match=r"config\.stages\.second: .* other weights of 'first'"
  ):
    run.run(tiny_chain.config(), str(copy))


def test_a_stage_with_another_config_is_refused(copy):
  with pytest.raises(ValueError, match=r'optim\.lr: 0\.002 -> 0\.1'):
    run.run(tiny_chain.config(stages__second__optim__lr=0.1), str(copy))


def test_one_network_of_three_views_ranks_directly_too(tmp_path):
  config = tiny_chain.get_config()
  views = ('satellite', 'street', 'drone')
  del config.stages['first'], config.stages['second']
  config.order = ('aerial',)
  stage = config.stages.aerial
  stage.method.views, stage.plan.views = views, views
  stage.train.epochs = 1
  stage.evals = {}
  config.joint.update(
    {
      'query_stage': 'aerial',
      'gallery_stage': 'aerial',
      'direct_stage': 'aerial',
    }
  )
  metrics = run.run(config.to_dict(), str(tmp_path))
  _, arrays = evaluation(tmp_path, 'street_to_satellite_direct')
  query, query_place = features(tmp_path, 'aerial.test_query_street')
  gallery, gallery_place = features(tmp_path, 'aerial.test_gallery_satellite')
  expected = rank_of_place(query @ gallery.T, query_place, gallery_place)
  np.testing.assert_array_equal(arrays['first_rank'], expected)
  assert 'street_to_satellite_direct/AP' in metrics
  # Without it, the ranking of before does not stay in eval/.
  config.joint.direct_stage = ''
  metrics = run.run(config.to_dict(), str(tmp_path))
  assert 'street_to_satellite_direct/AP' not in metrics


def test_stopped_names_the_stage(tmp_path):
  config = tiny_chain.config()
  with signal_at('step 2/12'), pytest.raises(stop.Stopped, match='stage first'):
    run.run(config, str(tmp_path))


@pytest.mark.slow
def test_two_processes_run_and_resume_a_chain(tmp_path):
  for _ in range(2):
    processes = tiny_world.several_processes(tiny_chain.arguments(tmp_path))
    try:
      logs = [process.communicate(timeout=300)[1] for process in processes]
    finally:
      for process in processes:
        process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs[0]
  assert logs[0].count('is finished: nothing to do') == 3 + 1
  assert evaluation(tmp_path, 'street_to_satellite_cross_diffusion')
