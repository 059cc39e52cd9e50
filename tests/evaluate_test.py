"""Features of whole splits on disk, for us and for the published evaluators."""

import json

import h5py
import numpy as np
import pytest
import scipy.io

import main
from cvgl_jax import evaluate
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


def features_of(split):
  """Near one another for the same place, of unit norm."""
  centre = np.random.default_rng(1).normal(size=(100, 6))
  noise = np.random.default_rng(len(split)).normal(size=(len(split), 6))
  values = centre[split.place] + 0.3 * noise
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype('f4')


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  opened = lambda checked, names, name: FakeSplit(
    name, SPLITS[name], pictures.colours(SPLITS[name])
  )
  monkeypatch.setattr(evaluate, 'restored', lambda *_: (None, features_of, 0))
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
