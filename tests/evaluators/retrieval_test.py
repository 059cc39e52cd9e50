import json

import numpy as np
import pytest

from cvgl_jax import sharding, strict
from cvgl_jax.data import transforms
from cvgl_jax.evaluators import embedder, retrieval
from tests.evaluators import pictures

PLACES = np.arange(30)


@pytest.fixture(scope='module')
def embed():
  method = pictures.ColourMethod()
  return embedder.Embedder(
    method,
    method.variables('drone', 'satellite', 'street'),
    load=transforms.Loader(image_size=(4, 4)),
    batch_size=16,
    mesh=sharding.make_mesh(),
    threads=2,
  )


def split(name, place, *, shown=None):
  """Pictures of `place`; `shown` has the places whose colours they get."""
  shown = place if shown is None else shown
  return pictures.ColourSplit(
    name=name, place=place, colour=pictures.colours(shown, seed=len(name))
  )


def world(**changes):
  """Two drone queries a place, one satellite, and distractors."""
  twice = np.repeat(PLACES, 2)
  splits = {
    'test_query_drone': split('test_query_drone', twice),
    'test_gallery_satellite': split('test_gallery_satellite', np.arange(40)),
    'test_query_satellite': split('test_query_satellite', PLACES),
    'test_gallery_drone': split('test_gallery_drone', twice),
  } | changes
  return lambda names, name: splits[name]


def evaluator(**changes):
  section = {
    'query_split': 'test_query_drone',
    'gallery_split': 'test_gallery_satellite',
  }
  return strict.make(
    retrieval.Evaluator, section | changes, 'config.evaluators.test'
  )


def test_a_method_that_sees_the_place_finds_it(embed):
  found = evaluator().run(embed, world())
  assert found.metrics['R@1'] == 100
  assert found.metrics['AP'] == 100
  np.testing.assert_array_equal(
    found.gallery.place[found.top_rows[:, 0]], found.query.place
  )
  assert found.top_rows.shape == (60, 10)


def test_wrong_pictures_are_found_wrong(embed):
  shown = np.repeat(PLACES, 2)
  shown[:6] = [1, 1, 2, 2, 0, 0]  # the first three places show one another
  query = split('test_query_drone', np.repeat(PLACES, 2), shown=shown)
  found = evaluator().run(embed, world(test_query_drone=query))
  assert found.metrics['R@1'] == pytest.approx(90)
  assert (found.result.first_rank[:6] > 0).all()


def test_the_other_direction_has_several_positives(embed):
  found = evaluator(
    query_split='test_query_satellite', gallery_split='test_gallery_drone'
  ).run(embed, world())
  assert found.metrics['AP'] == 100
  places = found.gallery.place[found.top_rows[:, :2]]
  np.testing.assert_array_equal(places, found.query.place[:, None] * [[1, 1]])


def test_data_names_reach_the_data(embed):
  asked = []

  def open_split(names, name):
    asked.append((names, name))
    return world()(names, name)

  evaluator(data_names=('a/b',)).run(embed, open_split)
  assert asked == [
    (('a/b',), 'test_query_drone'),
    (('a/b',), 'test_gallery_satellite'),
  ]


def test_multi_query_asks_once_a_place(embed):
  found = evaluator(multi_query=True).run(embed, world())
  assert found.result.num_queries == 30
  assert found.query.row.tolist() == list(range(0, 60, 2))
  assert found.query.path[1] == 'set/test_query_drone/1/2.png'
  assert found.metrics['R@1'] == 100


def test_street_galleries_can_be_averaged(embed):
  street = split('test_gallery_street', np.repeat(PLACES, 2))
  found = evaluator(
    gallery_split='test_gallery_street', average_street=True
  ).run(embed, world(test_gallery_street=street))
  assert found.result.gallery_size == 30
  assert found.metrics['R@1'] == 100


@pytest.mark.parametrize('method', ['gnn', 'k_reciprocal'])
def test_reranking_keeps_a_right_ranking(embed, method):
  found = evaluator(rerank=method, rerank_k1=3, rerank_k2=2).run(embed, world())
  assert found.metrics['R@1'] == 100
  np.testing.assert_array_equal(
    found.gallery.place[found.top_rows[:, 0]], found.query.place
  )


def test_views_choose_the_branch(embed):
  with pytest.raises(KeyError, match='nowhere'):
    evaluator(query_view='nowhere').run(embed, world())
  found = evaluator(query_view='satellite').run(embed, world())
  assert found.metrics['R@1'] == 100


def test_splits_without_a_common_place_are_an_error(embed):
  gallery = split('test_gallery_satellite', np.arange(500, 540))
  with pytest.raises(ValueError, match='no place in common'):
    evaluator().run(embed, world(test_gallery_satellite=gallery))


def test_results_are_written_whole(embed, tmp_path):
  found = evaluator(published={'R@1': 58.23, 'AP': 62.91}).run(embed, world())
  found.write(str(tmp_path), 'drone_to_satellite', step=12)
  files = sorted(path.name for path in (tmp_path / 'eval').iterdir())
  assert files == ['drone_to_satellite.json', 'drone_to_satellite.npz']
  summary = json.loads((tmp_path / 'eval/drone_to_satellite.json').read_text())
  assert summary['step'] == 12
  assert summary['metrics']['R@1'] == 100
  assert summary['published'] == {'R@1': 58.23, 'AP': 62.91}
  assert summary['gallery_size'] == 40
  assert summary['settings']['query_split'] == 'test_query_drone'
  with np.load(tmp_path / 'eval/drone_to_satellite.npz') as arrays:
    assert arrays['top_rows'].shape == (60, 10)
    assert arrays['first_rank'].tolist() == [0] * 60
    sample = arrays['query_sample']
    assert len(np.unique(arrays['query_place'][sample])) == 20
    np.testing.assert_array_equal(
      arrays['query_sample_features'], found.query.features[sample]
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'galery_split': 'x'}, "unknown key 'galery_split'.*gallery_split"),
    ({'percent_index': 'one'}, 'percent_index.*university'),
    ({'top': 0}, 'config.evaluators.test: top 0'),
    ({'scales': ()}, 'scales'),
    ({'ranks': (0, 5)}, 'ranks'),
  ],
)
def test_faults_of_the_config_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    evaluator(**change)


def test_listed_positives_and_semi_positives_are_the_answers(embed):
  query = split('test_query_street', [3, 1, 2, 0])
  opened = world(test_query_street=query)
  task = evaluator(query_split='test_query_street')
  plain = task.run(embed, opened)
  assert plain.metrics['R@1'] == 100 and 'hit rate' not in plain.metrics
  # The third query's answer is what comes second, after a semi-positive.
  query.positive = np.array([3, 1, plain.top_rows[2, 1], 0])
  query.semi_positives = np.array([[5, -1], [6, -1], [2, 7], [-1, -1]])
  query.gallery = 'test_gallery_satellite'
  found = task.run(embed, opened)
  assert found.metrics['R@1'] == 75
  assert found.metrics['hit rate'] == 100
  assert found.result.first_rank.tolist() == [0, 0, 1, 0]
  # Rows of another gallery mean nothing in this one.
  query.gallery = 'another_gallery'
  assert task.run(embed, opened).metrics == plain.metrics


def test_averaged_streets_may_ask_too(embed):
  street = split('test_query_street', np.repeat(PLACES[::-1], 2))
  opened = world(test_query_street=street)
  found = evaluator(query_split='test_query_street', average_street=True).run(
    embed, opened
  )
  assert found.result.num_queries == 30
  assert found.metrics['R@1'] == 100
  assert found.query.row.tolist() == list(range(58, -1, -2))


def test_distractors_can_be_taken_out(embed):
  shown = np.arange(40)
  shown[[0, 35]] = [35, 0]  # a distractor looks like place 0
  gallery = split('test_gallery_satellite', np.arange(40), shown=shown)
  opened = world(test_gallery_satellite=gallery)
  kept = evaluator().run(embed, opened)
  junk = evaluator(junk_distractors=True).run(embed, opened)
  assert kept.result.first_rank[0] == junk.result.first_rank[0] + 1
  assert kept.metrics['R@1'] < 100


@pytest.mark.parametrize('side', ['query', 'gallery'])
def test_refinement_is_measured_beside_the_plain_ranking(embed, side):
  splits = (
    {}
    if side == 'query'
    else {
      'query_split': 'test_query_satellite',
      'gallery_split': 'test_gallery_drone',
    }
  )
  plain = evaluator(**splits).run(embed, world())
  task = evaluator(refine=side, **splits)
  found = task.run(embed, world())
  assert found.metrics.keys() == set(task.metric_names)
  assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics
  assert found.metrics['R@1 mean'] == 100
  assert found.metrics['AP w/ MRM'] == 100
  assert found.result.num_queries == plain.result.num_queries


def located(name, place, degrees):
  found = split(name, place)
  found.latlon_deg = np.asarray(degrees, float)
  return found


def test_answers_and_errors_in_metres(embed):
  degree = 111_194.9  # metres of a degree of latitude
  north = np.arange(40) * 3 / degree  # 3 m apart
  coordinates = np.stack([48 + north, np.full(40, 11.0)], axis=1)
  opened = world(
    test_query_satellite=located(
      'test_query_satellite',
      PLACES,
      coordinates[:30] + np.array([[1 / degree, 0]]),
    ),
    test_gallery_satellite=located(
      'test_gallery_satellite', np.arange(40), coordinates
    ),
  )
  task = evaluator(
    query_split='test_query_satellite', within_metres=2.5, metre_errors=True
  )
  found = task.run(embed, opened)
  assert found.metrics['R@1'] == 100
  assert found.metrics['median error m'] == pytest.approx(1, rel=1e-3)
  assert found.metrics['within 5 m %'] == 100
  assert 'within 5 m %' in task.metric_names
  assert 'within 5 m %' not in evaluator().metric_names
  # Two pictures lie within 2.5 m of each query, the second place is right too.
  assert (found.result.query_average_precision < 1).any()
  with pytest.raises(ValueError, match='pictures without coordinates'):
    evaluator(metre_errors=True).run(embed, opened)
  street = split('test_query_street', np.repeat(PLACES, 2))
  with pytest.raises(ValueError, match='judges pictures'):
    evaluator(
      query_split='test_query_street', average_street=True, within_metres=5.0
    ).run(embed, world(test_query_street=street))


def test_reranked_candidates_keep_a_right_ranking(embed):
  found = evaluator(rerank='gnn', rerank_k1=3, rerank_k2=2, rerank_candidates=5)
  found = found.run(embed, world())
  assert found.metrics['R@1'] == 100
  assert found.top_rows.shape == (60, 10)


def test_an_answer_file_is_written_for_the_challenge(embed, tmp_path):
  names = tmp_path / 'query_drone_name.txt'
  names.write_text(''.join(f'{i}.png\n' for i in range(59, -1, -1)))
  found = evaluator(answer_file='160k', query_names=str(names)).run(
    embed, world()
  )
  found.write(str(tmp_path), 'drone', step=0)
  lines = (tmp_path / 'eval' / 'drone_answer.txt').read_text().splitlines()
  assert len(lines) == 60
  # Gallery picture i shows place i, the last queries place 29.
  assert [line.split('\t')[0] for line in lines[:3]] == ['29', '29', '28']
  assert len(lines[0].split('\t')) == 10


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'rerank_candidates': 5}, 'need a rerank method'),
    ({'multi_query': True, 'refine': 'query'}, 'nothing to fuse'),
    ({'within_metres': 5.0, 'multi_query': True}, 'within_metres judges'),
    ({'answer_file': '160k', 'top': 5}, 'top >= 10'),
    ({'query_names': 'x.txt'}, 'belongs to answer_file'),
  ],
)
def test_options_that_do_not_go_together_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    evaluator(**change)
