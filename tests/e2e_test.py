"""The command line from end to end on the tiny world, and its messages."""

import json
import subprocess
import sys

import numpy as np
import pytest

from cvgl_jax import writer
from tests import tiny_world


def run(*arguments, succeed=True) -> subprocess.CompletedProcess:
  done = subprocess.run(
    [str(argument) for argument in arguments],
    cwd=tiny_world.ROOT,
    env=tiny_world.environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  if succeed:
    assert done.returncode == 0, done.stderr[-3000:]
  else:
    assert done.returncode == 1, (done.returncode, done.stderr[-3000:])
    assert 'Traceback' not in done.stderr
  return done


def main(command, workdir, *arguments, **options):
  return run(
    *(sys.executable, 'main.py', command, f'--workdir={workdir}'),
    f'--compile_cache={tiny_world.ROOT / ".cache" / "jax_tests"}',
    *arguments,
    **options,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir after 60 epochs of the quickstart recipe in toy size."""
  workdir = tmp_path_factory.mktemp('e2e') / 'run'
  run(
    *tiny_world.train_arguments(
      workdir,
      method__backbone_width=8,
      data__image_size='(64, 64)',
      augment__rotate_satellite_deg=0.0,
      augment__rotate_drone_deg=0.0,
      augment__zoom='(1.0, 1.0)',
      train__epochs=60,
      train__eval_every_epochs=60,
      train__eval_at_start=True,
      train__save_every_steps=0,
      train__log_every_steps=20,
    )
  )
  return workdir


def test_training_learns_to_match_unseen_places(trained):
  rows = writer.read(trained)
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert losses[-1] < 0.6 * losses[0]
  scores = [
    row['eval/drone_to_satellite/AP']
    for row in rows
    if 'eval/drone_to_satellite/AP' in row
  ]
  assert len(scores) == 2  # before and after
  assert np.isfinite(scores).all()
  assert (trained / 'config.json').exists()
  assert list((trained / 'events').iterdir())


def test_evaluate_repeats_the_number_of_training(trained):
  done = main('evaluate', trained, '--checkpoint=latest')
  summary = json.loads(
    (trained / 'eval' / 'drone_to_satellite.json').read_text()
  )
  logged = [
    row for row in writer.read(trained) if 'eval/drone_to_satellite/AP' in row
  ][-1]
  assert summary['metrics']['AP'] == logged['eval/drone_to_satellite/AP']
  assert 'drone_to_satellite/R@1' in done.stdout


def test_an_option_can_be_changed_for_an_evaluation(trained):
  main(
    *('evaluate', trained, '--checkpoint=latest'),
    '--config.evals.drone_to_satellite.multi_query=True',
  )
  summary = json.loads(
    (trained / 'eval' / 'drone_to_satellite.json').read_text()
  )
  assert summary['settings']['multi_query'] is True
  assert summary['num_queries'] == 6  # one a place


def test_embed_writes_features_and_a_listing(trained):
  main('embed', trained, '--split=test_gallery_satellite')
  features = np.load(trained / 'features' / 'test_gallery_satellite.npy')
  assert features.shape == (8, 16) and features.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  lines = (
    (trained / 'features' / 'test_gallery_satellite.csv')
    .read_text()
    .splitlines()
  )
  assert lines[0] == 'row,place,path,latitude_deg,longitude_deg'
  assert len(lines) == 9


def test_report_writes_one_page_with_panels(trained):
  done = main('report', trained)
  page = (trained / 'report' / 'index.html').read_text()
  assert 'drone_to_satellite' in page and 'R@1' in done.stdout
  assert 'http' not in page.replace('http-equiv', '').replace(
    'http://www.w3.org', ''
  )
  pictures = list((trained / 'report').rglob('*.png'))
  assert pictures
  for picture in pictures:
    name = picture.relative_to(trained / 'report').as_posix()
    assert name in page, name


def test_a_checkpoint_that_does_not_exist_lists_those_that_do(trained):
  done = main('evaluate', trained, '--checkpoint=7', succeed=False)
  assert 'use latest, best or one of' in done.stderr


def test_an_unknown_split_lists_the_valid_ones(trained):
  done = main('embed', trained, '--split=test_query_dron', succeed=False)
  assert 'test_query_drone' in done.stderr


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
  done = run(
    *tiny_world.train_arguments(
      tmp_path, optim__lr=1e30, optim__clip_norm=0.0, optim__warmup_epochs=0.0
    ),
    succeed=False,
  )
  assert 'step ' in done.stderr and 'train/' in done.stderr
  assert 'config.optim.lr' in done.stderr
  rows = writer.read(tmp_path)
  assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_a_misspelt_key_names_the_nearest_one(tmp_path):
  done = run(
    *tiny_world.train_arguments(tmp_path, train__epoch=3), succeed=False
  )
  assert 'Did you mean "epochs"' in done.stderr


def test_a_missing_data_set_names_the_command_that_builds_it(tmp_path):
  done = run(
    *tiny_world.train_arguments(tmp_path, data__dir=tmp_path), succeed=False
  )
  assert 'python -m data_builders' in done.stderr


def test_an_indivisible_batch_is_refused_before_compiling(tmp_path):
  done = run(
    *tiny_world.train_arguments(
      tmp_path, train__batch_size=10, train__micro_batches=4
    ),
    succeed=False,
  )
  assert 'use 8 or 12' in done.stderr


@pytest.mark.parametrize(
  'arguments',
  [
    ('main.py', '--help'),
    ('main.py', 'train', '--help'),
    ('main.py', 'chain', '--help'),
    ('main.py', 'evaluate', '--help'),
    ('main.py', 'embed', '--help'),
    ('main.py', 'report', '--help'),
    ('-m', 'data_builders', '--help'),
    ('-m', 'data_builders.check', '--help'),
  ],
)
def test_help_is_there(arguments):
  assert 'usage' in run(sys.executable, *arguments).stdout
