"""Features of whole splits on disk, for us and for the published evaluators."""

import json
import types

import h5py
import numpy as np
import pytest
import scipy.io

import main
from cvgl_jax import evaluate, sharding
from cvgl_jax.data import transforms
from cvgl_jax.evaluators import embedder
from cvgl_jax.retrieval import ranking
from tests import conftest
from tests.evaluators import pictures

SPLITS = {
  'test_query_drone': np.repeat(np.arange(5), 2),
  'test_gallery_satellite': np.arange(8),
  'test_gallery_drone': np.repeat(np.arange(8), 2),
}


class FakeSplit(pictures.ColourSplit):
  @property
  def latlon_deg(self):
    return np.full((len(self), 2), np.nan)


def features_of(split, **_):
  """Near one another for the same place, of unit norm."""
  centre = np.random.default_rng(1).normal(size=(100, 6))
  noise = np.random.default_rng(len(split)).normal(size=(len(split), 6))
  values = centre[split.place] + 0.3 * noise
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype('f4')


def settings(**evals):
  """What `embed` reads of the settings of a run."""
  return types.SimpleNamespace(
    evals=evals, data=types.SimpleNamespace(names=('mine',))
  )


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  opened = lambda checked, names, name: FakeSplit(
    name, SPLITS[name], pictures.colours(SPLITS[name])
  )
  restored = (settings(), features_of, 0)
  monkeypatch.setattr(evaluate, 'restored', lambda *_: restored)
  monkeypatch.setattr(evaluate.experiment, 'open_split', opened)
  monkeypatch.setattr(main.commands, 'set_up_logging', lambda *, debug: None)


def embed(workdir, *splits, file_format='npy'):
  return evaluate.embed(
    {}, str(workdir), 'best', splits=list(splits), file_format=file_format
  )


PAIR = ('test_query_drone', 'test_gallery_satellite')


@pytest.mark.parametrize('file_format', ['npy', 'mat', 'hdf5'])
def test_what_embed_writes_is_evaluated_directly(tmp_path, file_format):
  written = embed(tmp_path, *PAIR, file_format=file_format)
  assert all(path.parent == tmp_path / 'features' for path in written)
  if file_format == 'npy':
    flags = [
      f'--query_features={written[0]}',
      f'--gallery_features={written[1]}',
    ]
  else:
    flags = [f'--features={written[0]}']
  output = tmp_path / 'metrics.json'
  cache = f'--compile_cache={conftest.CACHE}'
  assert main.main(['evaluate', *flags, f'--output={output}', cache]) == 0
  found = json.loads(output.read_text())
  query, gallery = (evaluate.experiment.open_split(None, (), s) for s in PAIR)
  wanted = ranking.evaluate_ranking(
    features_of(query), features_of(gallery), query.place, gallery.place
  )
  assert found['metrics'] == wanted.report()
  assert found['rankings'][0]['num_queries'] == 10
  assert found['rankings'][0]['gallery_size'] == 8


def test_the_original_evaluators_find_their_keys(tmp_path):
  (mat,) = embed(tmp_path, *PAIR, file_format='mat')
  result = scipy.io.loadmat(mat)
  assert result['query_label'][0].tolist() == SPLITS[PAIR[0]].tolist()
  assert result['gallery_f'].shape == (8, 6)
  assert result['gallery_path'][3].strip() == f'set/{PAIR[1]}/3/3.png'


def test_two_galleries_make_the_files_of_plcds_diffusion(tmp_path):
  written = embed(
    tmp_path,
    'test_gallery_drone',
    'test_gallery_satellite',
    file_format='hdf5',
  )
  assert [path.name for path in written] == [
    'pytorch_for_diffusion.hdf5',
    'pytorch_result_for_diffusion.mat',
  ]
  with h5py.File(written[0]) as file:
    assert file['query_feature'].shape == (16, 6)
    assert file['gallery_feature'].shape == (8, 6)


@pytest.mark.parametrize('splits', [PAIR[:1], PAIR[::-1], PAIR * 2])
def test_a_query_and_a_gallery_split_are_asked_for(tmp_path, splits):
  with pytest.raises(ValueError, match=r'--format=mat writes queries and gall'):
    embed(tmp_path, *splits, file_format='mat')
  assert not list(tmp_path.iterdir())


def task(query='test_query_drone', gallery='test_gallery_satellite', **options):
  return {
    'type': 'retrieval',
    'query_split': query,
    'gallery_split': gallery,
    **options,
  }


@pytest.fixture(scope='module')
def colours_of():
  """An embedder to which branch, mirror image and scales all matter."""
  rng = np.random.default_rng(0)
  variables = {
    'params': {
      view: rng.normal(size=(6, 6)).astype(np.float32)
      for view in ('drone', 'satellite')
    }
  }
  return embedder.Embedder(
    pictures.ColourMethod(),
    variables,
    load=transforms.Loader(image_size=(5, 6)),
    batch_size=8,
    mesh=sharding.make_mesh(),
    threads=1,
  )


@pytest.fixture
def run_with(monkeypatch, colours_of):
  """Sets the entries of `config.evals` of the run that embeds."""

  def use(**evals):
    checked = settings(**evals)
    monkeypatch.setattr(
      evaluate, 'restored', lambda *_: (checked, colours_of, 0)
    )
    return checked

  return use


@pytest.mark.parametrize(
  'options',
  [
    {'flip': False},
    {'flip': True},
    {'scales': (1.0, 1.5), 'flip': False},
    {'scales': (1.0, 1.5, 0.8), 'cumulative': False},
    {'query_view': 'satellite'},
    {'gallery_view': 'drone', 'flip': False},
  ],
)
def test_embed_writes_the_features_that_the_evaluator_ranks(
  tmp_path, run_with, options
):
  checked = run_with(task=task(**options))
  written = [np.load(path) for path in embed(tmp_path, *PAIR)]
  (evaluator,) = evaluate.experiment.make_evaluators(checked).values()
  found = evaluator.run(
    evaluate.restored()[1],
    lambda names, name: evaluate.experiment.open_split(None, names, name),
  )
  np.testing.assert_array_equal(written[0], found.query.features)
  np.testing.assert_array_equal(written[1], found.gallery.features)


def embedded_as(tmp_path, colours_of, *, splits=PAIR[:1], **options):
  """Whether the first split was embedded so."""
  split = evaluate.experiment.open_split(None, (), splits[0])
  written = np.load(embed(tmp_path, *splits)[0])
  return np.array_equal(written, colours_of(split, **options))


def test_mirror_images_scales_and_branches_can_be_told_apart(colours_of):
  split = evaluate.experiment.open_split(None, (), PAIR[0])
  plain = colours_of(split, flip=False)
  for other in (
    {'flip': True},
    {'flip': False, 'scales': (1.0, 1.5)},
    {'flip': False, 'view': 'satellite'},
  ):
    assert not np.allclose(plain, colours_of(split, **other), atol=1e-4)


def test_entries_that_disagree_are_an_error_with_the_way_out(
  tmp_path, run_with, colours_of
):
  run_with(a=task(flip=False), b=task(flip=True))
  message = (
    r'test_query_drone: config\.evals\.a and config\.evals\.b embed it '
    r'differently, with flip False and True; .*--config\.evals\.b\.flip=False'
  )
  with pytest.raises(ValueError, match=message):
    embed(tmp_path, *PAIR)
  assert not list(tmp_path.iterdir())
  run_with(a=task(), b=task(query_view='satellite'))
  with pytest.raises(ValueError, match=r'--config\.evals\.b\.query_view=drone'):
    embed(tmp_path, PAIR[0])
  run_with(a=task(flip=False), b=task(flip=False, query_view='drone'))
  assert embedded_as(tmp_path, colours_of, flip=False)


def test_an_entry_that_reads_both_splits_goes_first(
  tmp_path, run_with, colours_of
):
  run_with(a=task(gallery='test_gallery_drone', flip=True), b=task(flip=False))
  assert embedded_as(tmp_path, colours_of, splits=PAIR, flip=False)
  with pytest.raises(ValueError, match='embed it differently'):
    embed(tmp_path, PAIR[0])


def test_an_entry_on_the_data_of_the_run_goes_first(
  tmp_path, run_with, colours_of
):
  elsewhere = task(data_names=('other',), flip=True)
  run_with(a=elsewhere, b=task(data_names=('mine',), flip=False))
  assert embedded_as(tmp_path, colours_of, flip=False)
  run_with(a=elsewhere | {'scales': (1.0, 1.5)})
  assert embedded_as(tmp_path, colours_of, flip=True, scales=(1.0, 1.5))


def test_a_split_that_no_entry_reads_is_embedded_as_the_others(
  tmp_path, run_with, colours_of
):
  options = {'query_view': 'satellite', 'flip': False}
  run_with(a=task('test_query_satellite', 'test_gallery_satellite', **options))
  assert embedded_as(tmp_path, colours_of, flip=False)
  splits = ('test_gallery_drone',)
  assert embedded_as(tmp_path, colours_of, splits=splits, flip=False)
  run_with()
  assert embedded_as(tmp_path, colours_of, flip=True)
