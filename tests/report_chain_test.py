import io
import json
import re
import types

import jax
import numpy as np
import PIL.Image
import pytest

from cvgl_jax.chain import features, joint, ledger, recipe
from cvgl_jax.report import build, chain, figures, panels, paths, rankings
from cvgl_jax.retrieval.diffusion import cross
from tests.evaluators import pictures
from tests.report_test import Page

PLACES, DRONES = 12, 3


def split(name, place):
  return pictures.ColourSplit(
    name=name, place=place, colour=pictures.colours(place)
  )


SPLITS = {
  'test_query_street': split(
    'test_query_street', np.repeat(np.arange(PLACES), 2)
  ),
  'test_gallery_drone': split(
    'test_gallery_drone', np.repeat(np.arange(PLACES), DRONES)
  ),
  'test_gallery_satellite': split('test_gallery_satellite', np.arange(PLACES)),
}


def open_split(names, name):
  return SPLITS[name]


def embedded(name, space, noise):
  """Features that show their place, more or less; 8 numbers a picture."""
  places = np.random.default_rng(space).standard_normal((PLACES, 8))
  rng = np.random.default_rng([space, len(SPLITS[name])])
  values = places[SPLITS[name].place]
  values = values + noise * rng.standard_normal(values.shape)
  values /= np.linalg.norm(values, axis=1, keepdims=True)
  return features.Embedded(SPLITS[name], values.astype(np.float32), name, 40)


def joined(workdir, **options):
  """A chain's joint evaluation of made-up features."""
  stages = tuple(
    types.SimpleNamespace(
      name=name,
      checked=types.SimpleNamespace(data=types.SimpleNamespace(names=())),
    )
    for name in ('g2d', 'd2s')
  )
  options = recipe.Joint(
    query_stage='g2d',
    gallery_stage='d2s',
    diffusion=cross.Options(kq=5, kd=4, n_trunc=20),
    published={'cross_diffusion': {'R@1': 6.63, 'AP': 8.8}},
    published_source='a README',
    **options,
  )
  plan = recipe.Plan(workdir=str(workdir), stages=stages, joint=options)
  joint.rank(
    plan,
    ledger.Ledger(str(workdir)),
    {
      'query': embedded('test_query_street', 0, 1.0),
      'bridge': embedded('test_gallery_drone', 0, 0.8),
      'bridge_again': embedded('test_gallery_drone', 1, 0.8),
      'gallery': embedded('test_gallery_satellite', 1, 0.8),
      'direct_query': embedded('test_query_street', 2, 1.5),
      'direct_gallery': embedded('test_gallery_satellite', 2, 1.5),
    },
    key='x',
  )


def stages(workdir):
  return {
    name: chain.Stage(
      workdir=str(workdir / name), open_split=open_split, describe=dict
    )
    for name in ('g2d', 'd2s', 'later')
  }


def write_run(folder, evaluation=None):
  """What a stage leaves behind, as far as the table reads it."""
  folder.mkdir()
  (folder / 'config.json').write_text('{"seed": 0}')
  if evaluation:
    (folder / 'eval').mkdir()
    for suffix in ('json', 'npz'):
      source = folder.parent / 'eval' / f'{evaluation}.{suffix}'
      (folder / 'eval' / source.name).write_bytes(source.read_bytes())


@pytest.fixture(scope='module')
def reported(tmp_path_factory):
  """(workdir, page, table) of a chain of which a stage is not trained yet."""
  workdir = tmp_path_factory.mktemp('chain')
  joined(workdir, direct_stage='d2s')
  write_run(workdir / 'g2d', 'street_to_drone')
  write_run(workdir / 'd2s')
  (workdir / 'config.json').write_text('{"order": ["g2d", "d2s", "later"]}')
  path, table = chain.build(str(workdir), stages=stages(workdir), joint='d2s')
  return workdir, Page(path), table


def test_the_page_needs_no_network_and_all_its_pictures_exist(reported):
  workdir, page, _ = reported
  for image in page.images:
    assert (workdir / 'report' / image['src']).stat().st_size > 1000
    assert len(image['alt']) > 10
  names = [image['src'] for image in page.images]
  assert sum(name.startswith('path_') for name in names) >= 4
  source = (workdir / 'report' / 'index.html').read_text()
  assert 'http://' not in source and 'https://' not in source


def test_the_table_has_every_stage_and_every_ranking(reported):
  workdir, page, table = reported
  lines = [re.split(r'  +', line.strip()) for line in table.splitlines()]
  assert [line[:2] for line in lines[1:-1]] == [
    ['g2d', 'street_to_drone'],
    ['d2s', 'no evaluation yet'],
    ['later', 'not started'],
    ['joint', 'drone_to_satellite'],
    ['joint', 'street_to_drone'],
    ['joint', 'street_to_satellite_cross_diffusion'],
    ['joint', 'street_to_satellite_direct'],
    ['joint', 'street_to_satellite_no_diffusion'],
    ['joint', 'street_to_satellite_one_hop'],
  ]
  name = 'street_to_satellite_cross_diffusion'
  summary = json.loads((workdir / 'eval' / f'{name}.json').read_text())
  number = f'{summary["metrics"]["R@1"]:.2f}'
  assert f'{number} (6.63)' in table
  assert page.has('6.63') and page.has(number) and page.has('not started')


def test_the_page_leads_to_the_reports_of_the_stages(reported):
  workdir, page, _ = reported
  links = {link for link in page.links if link.endswith('index.html')}
  assert links == {'../g2d/report/index.html', '../d2s/report/index.html'}
  for link in links:
    assert (workdir / 'report' / link).exists()


def test_diffusion_helps_where_the_right_place_moves_up(reported):
  workdir, _, _ = reported
  found = {}
  rule = r'rank (\d+) without, (\d+) with diffusion, (\d+) directly'
  for name in ('helps', 'hurts'):
    captions = re.findall(
      rf'src="path_{name}_\d.png".*?<figcaption>(.*?)</figcaption>',
      (workdir / 'report' / 'index.html').read_text(),
      re.DOTALL,
    )
    found[name] = [
      tuple(map(int, re.search(rule, c).groups()[:2])) for c in captions
    ]
  assert found['helps'] and found['hurts']
  assert all(before > after for before, after in found['helps'])
  assert all(before < after for before, after in found['hurts'])
  gains = [before - after for before, after in found['helps']]
  assert gains == sorted(gains, reverse=True)


def test_queries_that_reach_nothing_are_neither_helped_nor_hurt(
  reported, tmp_path
):
  workdir, _, _ = reported
  shown = paths.Paths(workdir, chain.joint_evaluations(workdir))
  shown.of['cross_diffusion'].arrays['top_scores'] = np.zeros_like(
    shown.of['cross_diffusion'].arrays['top_scores']
  )
  [group] = paths.groups(shown, tmp_path, open_split)
  assert group['title'] == 'Random'
  for panel in group['panels']:
    assert panel['caption'].endswith('Diffusion reaches nothing from here.')


def test_a_panel_shows_the_way_with_right_and_wrong_frames(reported):
  workdir, _, _ = reported
  shown = paths.Paths(workdir, chain.joint_evaluations(workdir))
  rows = paths.rows(shown, 0, paths.pictures(shown, open_split))
  image = PIL.Image.open(io.BytesIO(panels.grid(rows)))
  pixels = {tuple(p) for p in np.asarray(image.convert('RGB')).reshape(-1, 3)}
  for colour in (figures.RIGHT, figures.WRONG, figures.NEUTRAL):
    assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in pixels
  labels = [label.split('\n')[0] for label, _ in rows]
  assert labels[0] == 'best drone'
  assert labels[-4:] == [
    *('direct:', 'one hop:', 'no diffusion:', 'cross-diffusion:')
  ]
  first = rows[0][1]
  assert first[0].title == 'query' and len(first) == 1 + 5
  for _, tiles in rows[1:]:
    for tile in filter(None, tiles):
      right = tile.caption.startswith('place 0')
      if tile.title != 'truth':
        assert (tile.colour == figures.RIGHT) == right == ('✓' in tile.title)
  # The ranking's tiles are its first gallery pictures.
  arrays = shown.of['cross_diffusion'].arrays
  places = arrays['gallery_place'][arrays['top_rows'][0]]
  shown_places = [tile.caption for tile in rows[-1][1]]
  assert shown_places == [f'place {place}' for place in places[:7]]
  assert rows[-1][0].endswith(f'rank\n{arrays["first_rank"][0] + 1}')


def test_without_a_direct_stage_nothing_is_ranked_directly(tmp_path):
  joined(tmp_path)
  evaluations = chain.joint_evaluations(tmp_path)
  assert set(evaluations) == set(recipe.RANKINGS) - {'direct'}
  shown = paths.Paths(tmp_path, evaluations)
  made = paths.rows(shown, 0, paths.pictures(shown, open_split))
  assert not any(label.startswith('direct') for label, _ in made)


def test_all_devices_of_the_process_share_the_work(tmp_path, monkeypatch):
  whole, meshes = cross.cross_diffusion, []

  def watched(*features, mesh, **options):
    meshes.append(mesh)
    scores = whole(*features, mesh=mesh, **options)
    options['cache_dir'] = None
    np.testing.assert_allclose(
      scores, whole(*features, **options), rtol=1e-5, atol=1e-7
    )
    return scores

  monkeypatch.setattr(cross, 'cross_diffusion', watched)
  joined(tmp_path)
  assert [mesh.size for mesh in meshes] == [jax.local_device_count()]


def test_paths_of_another_evaluation_are_refused(reported, tmp_path):
  workdir, _, _ = reported
  with np.load(workdir / paths.FILE) as file:
    arrays = dict(file)
  np.savez(tmp_path / paths.FILE, **{k: x[1:] for k, x in arrays.items()})
  with pytest.raises(ValueError, match='23 queries, eval/ of 24'):
    paths.Paths(tmp_path, chain.joint_evaluations(workdir))
  (tmp_path / paths.FILE).write_bytes(b'PK')
  with pytest.raises(ValueError, match=r'paths\.npz: .*main\.py chain'):
    paths.Paths(tmp_path, chain.joint_evaluations(workdir))


def test_numbers_are_shown_when_the_pictures_are_gone(reported):
  workdir, _, table = reported

  def nothing(names, name):
    raise ValueError('no data set a/b')

  gone = {
    name: chain.Stage(
      workdir=str(workdir / name), open_split=nothing, describe=dict
    )
    for name in ('g2d', 'd2s', 'later')
  }
  path, again = chain.build(str(workdir), stages=gone, joint='d2s')
  assert again == table
  assert Page(path).has('The pictures cannot be shown: no data set a/b')


def test_a_chain_that_has_nothing_yet_says_so(tmp_path):
  (tmp_path / 'config.json').write_text('{"order": ["g2d", "d2s", "later"]}')
  path, table = chain.build(str(tmp_path), stages=stages(tmp_path), joint='d2s')
  assert table.count('not started') == 3
  page = Page(path)
  assert page.has('when all stages are trained')
  assert not page.has('No training log yet')


def test_a_missing_workdir_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='no such workdir'):
    chain.build(str(tmp_path / 'nowhere'), stages={})


def test_a_run_has_no_table_of_stages(tmp_path):
  page = Page(build.build(str(tmp_path), open_split=open_split)[0])
  assert not page.has('The last evaluation of every stage')
  assert page.has('No training log yet')


def test_drone_pictures_of_one_altitude_are_drone_pictures(tmp_path):
  summary = {
    'settings': {
      'query_split': 'test_query_street',
      'gallery_split': 'test_gallery_drone_low',
    }
  }
  (tmp_path / 'x.json').write_text(json.dumps(summary))
  np.savez(tmp_path / 'x.npz', top_rows=np.zeros(1))
  assert rankings.Evaluation(tmp_path / 'x.json').views == ('street', 'drone')
