"""Parts of a drone split by altitude, in evaluation, embedding and checks."""

import numpy as np
import pytest

from cvgl_jax import evaluate, experiment
from tests import tiny_world

LOW = 'test_gallery_drone_low'


def config(gallery=LOW, **overrides):
  """The tiny run with one evaluator: which of the pictures from above it is."""
  made = tiny_world.config(**overrides)
  made['evals'] = {
    'navigation': {
      'type': 'retrieval',
      'query_split': 'test_query_satellite',
      'gallery_split': gallery,
    }
  }
  made['train']['best_metric'] = ''
  return made


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Evaluated and embedded with random weights."""
  folder = tmp_path_factory.mktemp('run')
  evaluate.evaluate(config(), str(folder), 'init')
  splits = [LOW, 'test_gallery_drone']
  evaluate.embed(config(), str(folder), 'init', splits=splits)
  return folder


def test_an_evaluator_ranks_the_part_that_it_names(workdir):
  with np.load(workdir / 'eval' / 'navigation.npz') as found:
    # One of the two drone pictures of each of 8 places is low.
    assert np.unique(found['gallery_place']).size == 8
    assert found['gallery_place'].shape == (8,)
  rows = (workdir / 'eval' / 'navigation.json').read_text()
  assert LOW in rows


def test_the_features_of_a_part_are_those_of_its_pictures(workdir):
  folder = workdir / 'features'
  low, whole = (
    np.load(folder / f'{name}.npy') for name in (LOW, 'test_gallery_drone')
  )
  names = [
    [line.split(',')[2] for line in file.read_text().splitlines()[1:]]
    for file in (folder / f'{LOW}.csv', folder / 'test_gallery_drone.csv')
  ]
  rows = [names[1].index(name) for name in names[0]]
  assert len(low) == len(rows) == 8
  np.testing.assert_allclose(low, whole[rows], rtol=0, atol=1e-6)


def test_options_of_drone_pictures_apply_to_a_part():
  checked = experiment.check(config(data__view_sizes={'drone': (24, 24)}))
  load = experiment.make_loader(checked, train=False)
  split = experiment.open_split(checked, (), LOW)
  assert split.view == 'drone' and load.size(split.view) == (24, 24)


@pytest.mark.parametrize(
  ('gallery', 'message'),
  [
    ('test_gallery_drone_lwo', 'by altitude are test_gallery_drone_high'),
    ('test_gallery_drone_middle', 'no picture is middle'),
    ('test_gallery_satellite_low', 'only drone splits have parts'),
  ],
)
def test_a_part_that_does_not_exist_is_found_before_training(gallery, message):
  checked = experiment.check(config(gallery))
  with pytest.raises(ValueError, match=f'config.evals.navigation: .*{message}'):
    experiment.check_splits(checked, experiment.make_evaluators(checked))
