"""Tasks of panorama data: hit rate, metres, CVACT_test, what must be known."""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest

from cvgl_jax import experiment, sharding, strict
from cvgl_jax.data import sources, transforms
from cvgl_jax.evaluators import embedder, retrieval
from cvgl_jax.retrieval import metres
from data_builders import prepare
from tests.evaluators import pictures

SECTION = {
  'query_split': 'test_query_panorama',
  'gallery_split': 'test_gallery_satellite',
  'flip': False,
  'percent_index': 'floor',
  'ties': 'optimistic',
}


def evaluator(**changes):
  return strict.make(retrieval.Evaluator, SECTION | changes, 'config.evals.x')


@pytest.fixture(scope='module')
def embed():
  method = pictures.ColourMethod()
  return embedder.Embedder(
    method,
    method.variables('panorama', 'satellite'),
    load=transforms.Loader(image_size=(8, 8)),
    batch_size=16,
    mesh=sharding.make_mesh(jax.devices()[:1]),
    threads=1,
  )


@pytest.fixture(scope='module')
def city(tmp_path_factory):
  """Opens splits of rendered tiles in the format of VIGOR."""
  folder = tmp_path_factory.mktemp('data')
  prepare.prepare('rendered_city', folder, config='tiles_tiny')
  return lambda names, split: sources.open_split(
    folder, names or 'rendered_city/tiles_tiny/cross', split
  )


def test_tiles_are_measured_as_vigor_is(embed, city):
  task = evaluator(metre_errors=True)
  found = task.run(embed, city)
  assert set(task.metric_names) < set(found.metrics)
  assert found.metrics['hit rate'] >= found.metrics['R@1']
  assert found.metrics['R@1%'] == 0  # of a gallery of 27, rounded down
  query, gallery = (
    city((), SECTION[f'{s}_split']) for s in ('query', 'gallery')
  )
  top = gallery.latlon_deg[found.top_rows[:, 0]]
  error_m = metres.great_circle_m(top, query.latlon_deg)
  np.testing.assert_allclose(found.error_m, error_m)
  assert found.metrics['median error m'] == pytest.approx(np.median(error_m))
  np.testing.assert_array_equal(found.positives, query.positive)


def test_listed_answers_and_errors_are_written(embed, city, tmp_path):
  found = evaluator(metre_errors=True).run(embed, city)
  found.write(str(tmp_path), 'tiles', step=1)
  with np.load(tmp_path / 'eval' / 'tiles.npz') as arrays:
    assert arrays['positives'].shape == (len(found.top_rows), 1)
    assert arrays['semi_positives'].shape == (len(found.top_rows), 3)
    np.testing.assert_array_equal(arrays['error_m'], found.error_m)


def pairs(**changes):
  """Queries and gallery entry i at one spot, 4 m apart from the next."""
  place = np.arange(30)
  metres_m = np.stack([690_000 + 4.0 * place, np.full(30, 6_090_000.0)], 1)
  splits = {}
  for name in (SECTION['query_split'], SECTION['gallery_split']):
    splits[name] = pictures.ColourSplit(
      name=name, place=place, colour=pictures.colours(place)
    )
    splits[name].utm_m = metres_m
  for name, value in changes.items():
    setattr(splits[SECTION['query_split']], name, value)
  return lambda names, name: splits[name]


def test_cvact_test_is_judged_by_id_or_by_metres(embed):
  by_id = evaluator().run(embed, pairs())
  near = evaluator(within_metres=5.0).run(embed, pairs())
  assert by_id.metrics['R@1'] == near.metrics['R@1'] == 100
  # Neighbours are right answers too where metres decide.
  assert near.positives.shape == (30, 3)
  assert near.positives[7].tolist() == [6, 7, 8]
  assert near.metrics['AP'] < by_id.metrics['AP'] == 100


def test_hit_rate_can_choose_the_best_checkpoint_where_it_is_known(city):
  assert evaluator().metric_names[0] == 'R@1'
  evaluator().check(city, metric='hit rate')
  with pytest.raises(ValueError, match='test_query_panorama lists none'):
    evaluator().check(pairs(), metric='hit rate')
  for changes in ({'within_metres': 5.0}, {'refine': 'gallery'}):
    assert 'hit rate' not in evaluator(**changes).metric_names
  with pytest.raises(ValueError, match=r"no metric 'hits'; there are \['R@1'"):
    evaluator().check(city, metric='hits')


def test_missing_coordinates_are_found_before_training():
  task = evaluator(metre_errors=True)
  task.check(pairs())
  with pytest.raises(ValueError, match='pictures without coordinates'):
    task.check(pairs(utm_m=np.full((30, 2), np.nan)))


def test_a_missing_split_is_found_before_training(tmp_path, city):
  opened = functools.partial(city, ('rendered_city/tiles_tiny/cross',))
  with pytest.raises(ValueError, match='has no split'):
    evaluator(gallery_split='test_gallery_drone').check(
      lambda names, split: opened(split)
    )


FOLDER = pathlib.Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize(
  'name',
  sorted(
    path.stem
    for system in ('frgeo', 'transgeo', 'sample4geo')
    for path in FOLDER.glob(f'{system}_*.py')
    if 'university' not in path.stem
  ),
)
def test_recipes_measure_as_the_published_code_of_panoramas(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  checked = experiment.check(config.to_dict())
  for task in experiment.make_evaluators(checked).values():
    assert not task.flip and task.ties == 'optimistic'
    assert task.percent_index == 'floor'
    assert set(task.published) <= set(task.metric_names)
    assert task.metre_errors == ('vigor' in name)
  assert experiment.best_metric(checked).endswith('/R@1')
