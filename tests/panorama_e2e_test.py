"""Rendered panoramas from the builder to the report, by the command line."""

import json

import pytest

import main
from data_builders import prepare
from tests import report_test, tiny_world

# The demo's network on pictures of a few pixels.
TINY = [
  "--config.data.view_sizes={'panorama': (32, 128), 'satellite': (32, 32)}",
  '--config.method.backbone_width=8',
  '--config.plan.hardest=4',
  '--config.train.batch_size=8',
  '--config.train.epochs=2',
  '--config.train.eval_every_epochs=1',
  '--config.data.threads=1',
]


def run(tmp_path, *, built, data, overrides=()):
  """Builds, trains, evaluates, reports; returns the workdir and the page."""
  prepare.prepare('rendered_city', tmp_path / 'data', config=built)
  workdir = tmp_path / 'run'
  everywhere = [
    f'--workdir={workdir}',
    f'--compile_cache={tiny_world.ROOT / ".cache" / "jax_tests"}',
  ]
  arguments = [
    f'--config={tiny_world.ROOT / "configs" / "quickstart_panorama.py"}',
    f'--config.data.dir={tmp_path / "data"}',
    f"--config.data.names=('rendered_city/{data}',)",
    '--config.data.view_aspects={}',
    *TINY,
    *overrides,
  ]
  assert main.main(['train', *everywhere, *arguments]) == 0
  assert main.main(['evaluate', *everywhere]) == 0
  assert main.main(['report', *everywhere]) == 0
  return workdir, report_test.Page(workdir / 'report' / 'index.html')


@pytest.mark.slow
def test_pairs_are_trained_evaluated_and_shown(tmp_path):
  workdir, page = run(tmp_path, built='pairs_tiny', data='pairs_tiny')
  found = json.loads((workdir / 'eval/panorama_to_satellite.json').read_text())
  assert found['num_queries'] == found['gallery_size'] == 8
  assert 'hit rate' not in found['metrics']
  assert {i['src'] for i in page.images} >= {
    'layout_panorama_to_satellite.png',
    'features_panorama_to_satellite.png',
    'ranking_panorama_to_satellite_random.png',
    'metres.png',
  }
  assert page.has('Red frame: the right answer.')


@pytest.mark.slow
@pytest.mark.parametrize('protocol', ['cross', 'same'])
def test_tiles_are_measured_with_a_hit_rate_that_picks_the_best(
  tmp_path, protocol
):
  workdir, page = run(
    tmp_path,
    built='tiles_tiny',
    data=f'tiles_tiny/{protocol}',
    overrides=['--config.train.best_metric=panorama_to_satellite/hit rate'],
  )
  metrics = json.loads(
    (workdir / 'eval/panorama_to_satellite.json').read_text()
  )['metrics']
  assert metrics['hit rate'] >= metrics['R@1']
  assert metrics['median error m'] > 0
  assert page.has('Green frame: shows the place too')
