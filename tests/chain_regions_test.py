"""Cross-diffusion whose seeds are regions of drone pictures (`hiera`)."""

import json

import numpy as np
import pytest

from cvgl_jax import checkpoint, experiment, settings
from cvgl_jax.chain import joint, run
from cvgl_jax.retrieval.diffusion import cross
from tests import tiny_chain

REGIONS = 4


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(workdir, metrics with whole pictures, metrics with regions)."""
  workdir = tmp_path_factory.mktemp('chain') / 'whole'
  whole = run.run(tiny_chain.regions_config(), str(workdir))
  config = tiny_chain.regions_config(joint__diffusion__hiera=REGIONS)
  return workdir, whole, run.run(config, str(workdir))


def features(workdir, name):
  with np.load(workdir / 'features' / f'{name}.npz') as file:
    return file['features']


def rankings(workdir, name):
  with np.load(workdir / 'eval' / f'{name}.npz') as file:
    return dict(file)


def test_every_picture_has_its_regions_after_it(finished):
  workdir, _, _ = finished
  name = 'first.test_gallery_drone'
  found = features(workdir, f'{name}.regions{REGIONS}')
  whole = features(workdir, name)
  assert found.shape == (len(whole) * (1 + REGIONS), whole.shape[1])
  np.testing.assert_allclose(found[:: 1 + REGIONS], whole, atol=1e-5)
  # As the method describes the pictures, one after the other.
  checked = experiment.check(tiny_chain.regions_config()['stages']['first'])
  classes = settings.load_config(workdir / 'first')['method']['num_classes']
  method = experiment.make_method(checked, num_classes=classes)
  step = checkpoint.choose(str(workdir / 'first'), 'latest')
  variables = checkpoint.restore_variables(
    str(workdir / 'first'), step, experiment.init_shapes(method, checked)
  )
  split = experiment.open_split(checked, (), 'test_gallery_drone')
  load = experiment.make_loader(checked, train=False)
  for row in (0, len(split) - 1):
    image = load(split.image_bytes(row), None, 'drone', 'here')
    described = method.embed_regions(
      variables, image[None], 'drone', regions=REGIONS
    )
    own = found[row * (1 + REGIONS) :][: 1 + REGIONS]
    np.testing.assert_allclose(own, described[0], atol=1e-5)


def test_the_diffusion_starts_from_the_most_similar_regions(finished):
  workdir, _, _ = finished
  query, again, gallery = (
    features(workdir, name)
    for name in (
      'first.test_query_street',
      'aerial.test_gallery_drone',
      'aerial.test_gallery_satellite',
    )
  )
  bridge = features(workdir, f'first.test_gallery_drone.regions{REGIONS}')
  options = cross.Options(**tiny_chain.DIFFUSION, hiera=REGIONS)
  scores = cross.cross_diffusion(query, bridge, again, gallery, options=options)
  arrays = rankings(workdir, 'street_to_satellite_cross_diffusion')
  np.testing.assert_allclose(
    arrays['top_scores'], -np.sort(-scores, axis=1), rtol=1e-4, atol=1e-6
  )
  # s of a drone picture: the best cosine of its vectors.
  cosines = (query @ bridge.T).reshape(len(query), -1, 1 + REGIONS).max(axis=2)
  seeds = np.argsort(-cosines, axis=1, kind='stable')[:, : options.kq]
  best = np.take_along_axis(cosines, seeds, axis=1)
  with np.load(workdir / joint.PATHS) as file:
    np.testing.assert_array_equal(file['hop_rows'], seeds)
    np.testing.assert_allclose(file['hop_scores'], best, atol=1e-5)
  one_hop = (again @ gallery.T)[seeds[:, 0]]
  arrays = rankings(workdir, 'street_to_satellite_one_hop')
  np.testing.assert_allclose(
    arrays['top_scores'], -np.sort(-one_hop, axis=1), atol=1e-5
  )


def test_regions_change_the_seeds_but_not_the_first_ranking(finished):
  workdir, whole, with_regions = finished
  name = 'street_to_drone'
  assert whole.keys() == with_regions.keys()
  for key in whole:
    if key.startswith((name, 'drone_to_satellite')):
      assert with_regions[key] == whole[key], key
  bridge = features(workdir, f'first.test_gallery_drone.regions{REGIONS}')
  query = features(workdir, 'first.test_query_street')
  of_whole = query @ bridge[:: 1 + REGIONS].T
  of_all = (query @ bridge.T).reshape(*of_whole.shape, -1).max(axis=2)
  assert (of_all > of_whole + 1e-4).any()


def test_both_kinds_of_features_stay_for_the_next_time(finished):
  workdir, whole, with_regions = finished
  folder = workdir / 'features'
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  for hiera, metrics in ((0, whole), (REGIONS, with_regions)):
    config = tiny_chain.regions_config(joint__diffusion__hiera=hiera)
    assert run.run(config, str(workdir)) == metrics
    summary = json.loads(
      (
        workdir / 'eval' / 'street_to_satellite_cross_diffusion.json'
      ).read_text()
    )
    assert summary['settings']['diffusion']['hiera'] == hiera
  assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
