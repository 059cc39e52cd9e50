"""Figures of the report that only some data and some methods have."""

import io
import json

import jax
import matplotlib
import numpy as np
import PIL.Image
import pytest

from cvgl_jax import sharding
from cvgl_jax.data import transforms
from cvgl_jax.evaluators import embedder, retrieval
from cvgl_jax.report import build, figures, model, panels, rankings
from tests import report_test
from tests.evaluators import pictures

QUERY, GALLERY = 'test_query_panorama', 'test_gallery_satellite'
# Parts of a descriptor: four columns of panoramas, four quadrants.
LAYOUTS = {
  'panorama': np.repeat([[1, 1, 2, 2, 3, 3, 4, 4]], 3, axis=0),
  'satellite': np.array([[2, 2, 3], [2, 2, 3], [1, 1, 4]]),
}


def described(**changes):
  return {
    'parameters': 55.6e6,
    'macs': {'panorama': 6e9, 'satellite': 5e9},
    'flops': {'panorama': 13e9, 'satellite': 11e9},
    'layouts': LAYOUTS,
  } | changes


def world(*, tiles):
  """Panoramas; with `tiles` they list answers and semi-positives, and the
  answer of the first is not what looks like it."""
  place = np.arange(12)
  splits = {
    name: pictures.ColourSplit(
      name=name, place=place, colour=pictures.colours(place)
    )
    for name in (QUERY, GALLERY)
  }
  for split in splits.values():
    split.latlon_deg = np.stack([place * 1e-4, place * 0.0], axis=1)
  if tiles:
    query = splits[QUERY]
    query.gallery = GALLERY
    query.positive = np.where(place == 0, 11, place)
    query.semi_positives = np.stack([(place + 6) % 12, place * 0 - 1], 1)
    query.semi_positives[0, 0] = 0
  return lambda names, name: splits[name]


def evaluate(workdir, open_split, **changes):
  method = pictures.ColourMethod()
  embed = embedder.Embedder(
    method,
    method.variables('panorama', 'satellite'),
    load=transforms.Loader(image_size=(4, 4)),
    batch_size=16,
    mesh=sharding.make_mesh(jax.devices()[:1]),
    threads=1,
  )
  task = retrieval.Evaluator(
    query_split=QUERY, gallery_split=GALLERY, metre_errors=True, **changes
  )
  task.run(embed, open_split).write(str(workdir), 'task', step=20)


def make(workdir, *, tiles, data='a/toy', config=None, **changes):
  """Evaluates and builds; returns the folder of the page and the page."""
  opened = world(tiles=tiles)
  evaluate(workdir, opened)
  values = {'data': {'names': [data]} | (config or {})}
  (workdir / 'config.json').write_text(json.dumps(values))
  path, _ = build.build(
    str(workdir), open_split=opened, describe=lambda: described(**changes)
  )
  return path.parent, report_test.Page(path)


@pytest.fixture(scope='module')
def tiles(tmp_path_factory):
  return make(tmp_path_factory.mktemp('tiles'), tiles=True, data='x/vigor/same')


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return make(tmp_path_factory.mktemp('pairs'), tiles=False)


def pixels(picture):
  image = PIL.Image.open(io.BytesIO(picture)).convert('RGB')
  return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def rgb(colour):
  return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_frames_are_red_for_the_truth_and_green_for_semi_positives(tiles):
  folder, page = tiles
  worst = pixels((folder / 'ranking_task_worst.png').read_bytes())
  assert {rgb(figures.TRUTH), rgb(figures.SEMI)} <= worst
  assert page.has('Red frame: the right answer. Green frame: shows the place')
  assert page.has('Hit rate: nothing but pictures')


def test_without_semi_positives_nothing_is_green(pairs):
  folder, page = pairs
  best = pixels((folder / 'ranking_task_best.png').read_bytes())
  assert rgb(figures.TRUTH) in best and rgb(figures.SEMI) not in best
  assert page.has('Red frame') and not page.has('Green frame')
  assert not page.has('Hit rate: nothing but pictures')


def test_listed_answers_decide_what_is_right(tiles):
  folder, _ = tiles
  lines = (folder / 'failures_task.csv').read_text().splitlines()
  assert len(lines) == 2 and f'{QUERY}/0/0.png' in lines[1]


def test_cost_is_compared_where_systems_are_published(tiles, pairs):
  assert (tiles[0] / 'cost_task.png').exists()
  assert not (pairs[0] / 'cost_task.png').exists()
  assert tiles[1].has('FRGeo') and not pairs[1].has('FRGeo')
  for _, page in (tiles, pairs):
    assert page.has('55.6 million') and page.has('panorama 6, satellite 5 GMAC')


def test_a_limited_view_has_no_comparison_and_no_layout(tmp_path):
  folder, _ = make(
    tmp_path, tiles=False, data='cvusa', config={'fov_deg': 90.0}
  )
  assert not (folder / 'cost_task.png').exists()
  assert not (folder / 'layout_task.png').exists()
  assert {row['system'] for row in model.peers('my/cvusa', GALLERY)} >= {
    'FRGeo', 'FRGeo variant', 'TransGeo', 'Sample4Geo',
  }  # fmt: skip
  assert not model.peers('cvact', GALLERY)
  assert model.peers('cvact', 'val_gallery_satellite')
  assert not model.peers('mycvusa', GALLERY)


def test_published_rows_are_numbers():
  for data in ('cvusa', 'vigor/same', 'vigor/cross'):
    for row in model.peers(data, GALLERY):
      assert 0 < float(row['recall_at_1']) < 100
      assert float(row['gmac']) > 1
      if row['system'] == 'FRGeo variant':
        assert row['parameters_m'] == ''  # nobody said
      else:
        assert float(row['parameters_m']) > 1


@pytest.mark.parametrize('recall', [2.0, 60.0, 96.9])
def test_labels_of_bubbles_do_not_meet(recall, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, 'png', drawn.append)
  bubbles = [
    figures.Bubble(
      name=row['system'],
      gmac=float(row['gmac']),
      recall=float(row['recall_at_1']),
      parameters_m=float(row['parameters_m'] or 'nan'),
      own=False,
    )
    for row in model.peers('cvusa', GALLERY)
  ]
  own = figures.Bubble('this run', 11.7, recall, 55.6, own=True)
  figures.cost_bubbles([*bubbles, own])
  page = drawn[0]
  page.draw_without_rendering()
  labels = page.axes[0].texts
  texts = [label.get_text() for label in labels]
  assert 'FRGeo variant\n95.5 %, size not stated' in texts
  # A moved label's box spans its line; that of the words alone is meant.
  boxes = [matplotlib.text.Text.get_window_extent(label) for label in labels]
  assert len(boxes) == 5
  for i, box in enumerate(boxes):
    assert page.bbox.fully_contains(*box.min), texts[i]
    assert page.bbox.fully_contains(*box.max), texts[i]
    assert not box.count_overlaps(boxes[:i]), texts[i]


def test_the_layout_is_drawn_where_a_method_has_one(tiles, tmp_path):
  folder, page = tiles
  shown = [i for i in page.images if i['src'] == 'layout_task.png']
  assert '4 of the panorama (query) and 4 of the satellite' in shown[0]['alt']
  assert (folder / 'layout_task.png').stat().st_size > 5000
  folder, page = make(tmp_path, tiles=True, layouts={})
  assert not (folder / 'layout_task.png').exists()
  assert not page.has('What the descriptor is made of')


@pytest.mark.parametrize('key', ['fov_deg', 'polar_size'])
def test_no_layout_is_drawn_over_what_the_network_does_not_see(key, tiles):
  evaluation = rankings.Evaluation(tiles[0].parent / 'eval' / 'task.json')
  value = {'fov_deg': 90.0, 'polar_size': [128, 512]}[key]
  found = model.layout_figure(
    evaluation,
    tiles[0],
    layouts=LAYOUTS,
    pictures={},
    values={f'data.{key}': value},
  )
  assert found is None


def test_the_layout_is_drawn_on_the_rows_that_the_run_uses(
  tiles, tmp_path, monkeypatch
):
  noise = np.random.default_rng(0).integers(0, 256, (22, 30, 3), np.uint8)
  drawn = []
  monkeypatch.setattr(
    panels, 'layout_pair', lambda pair: drawn.extend(pair) or b''
  )
  model.layout_figure(
    rankings.Evaluation(tiles[0].parent / 'eval' / 'task.json'),
    tmp_path,
    layouts=LAYOUTS,
    pictures={'query': [noise] * 12, 'gallery': [noise] * 12},
    values={'data.middle_half': ['panorama'], 'data.cut_rows.panorama': 2},
  )
  file = io.BytesIO()
  PIL.Image.fromarray(noise).save(file, 'png')
  load = transforms.Loader(
    image_size=(6, 30), middle_half=('panorama',), cut_rows={'panorama': 2}
  )
  seen = load(file.getvalue(), None, 'panorama', 'noise')
  np.testing.assert_array_equal(drawn[0][1], seen)
  np.testing.assert_array_equal(drawn[1][1], noise)


@pytest.mark.parametrize(
  ('config', 'text'),
  [
    ({}, '256 x 256'),
    (
      {'view_sizes': {'panorama': [128, 512]}},
      'panorama 128 x 512; satellite 256 x 256',
    ),
    (
      {'view_sizes': {'panorama': [128, 512], 'satellite': [128, 512]}},
      '128 x 512',
    ),
    (
      {'view_sizes': {'panorama': [128, 512]}, 'fov_deg': 90.0},
      'panorama 128 x 128; satellite 256 x 256',
    ),
    (
      {'view_sizes': {'panorama': [128, 512]}, 'polar_size': [128, 512]},
      '128 x 512',
    ),
  ],
)
def test_the_page_states_the_sizes_that_the_network_sees(
  config, text, tmp_path
):
  values = {'data': {'image_size': [256, 256]} | config}
  (tmp_path / 'config.json').write_text(json.dumps(values))
  path, _ = build.build(
    str(tmp_path), open_split=world(tiles=False), describe=described
  )
  sizes = '<dt>picture size, height x width</dt><dd>'
  assert f'{sizes}{text}</dd>' in path.read_text()


def test_parts_of_equal_number_have_equal_colours():
  white = np.full((60, 120, 3), 255, np.uint8)
  found = {}
  for name, parts in (LAYOUTS | {'whole': np.ones((2, 4), int)}).items():
    drawn = pixels(panels.layout_pair([(name, white, parts)]))
    # A quarter of the part's colour over the white picture.
    found[name] = [
      part
      for part, colour in enumerate(matplotlib.colormaps['tab10'].colors[:4], 1)
      if any(
        np.abs(255 * (0.76 + 0.24 * np.array(colour)) - pixel).max() < 2
        for pixel in drawn
      )
    ]
  assert found['whole'] == [1]
  assert found['panorama'] == found['satellite'] == [1, 2, 3, 4]


def test_errors_in_metres_have_their_own_curve_and_direction(tiles, tmp_path):
  folder, page = tiles
  assert (folder / 'metres.png').exists()
  assert page.has('errors in metres')
  opened = world(tiles=False)
  evaluate(tmp_path, opened, published={'median error m': 3.0})
  path, table = build.build(str(tmp_path), open_split=opened)
  assert 'class="above">-3.00' in path.read_text()
  rows = [line.split() for line in table.splitlines() if ' error m' in line]
  assert [row[-1] for row in rows] == ['0.00', '3.00']


def test_metres_are_not_drawn_among_percentages(tmp_path):
  evaluate(tmp_path, world(tiles=False))
  row = {'step': 1, 'eval/task/R@1': 4.0, 'eval/task/mean error m': 900.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  path, _ = build.build(str(tmp_path), open_split=world(tiles=False))
  images = {i['src']: i['alt'] for i in report_test.Page(path).images}
  assert images['metrics_task.png'] == 'R@1 of task over the steps.'


def test_fifty_places_have_fifty_colours_in_the_feature_map():
  colours = figures._palette(50)
  assert len(np.unique(colours.round(3), axis=0)) == 50
  rng = np.random.default_rng(0)
  features = rng.normal(size=(50, 8))
  place = np.arange(50)
  drawn = [
    figures.embedding_map(
      features, features + 0.1, place, place, names=('panorama', 'satellite')
    )
    for _ in range(2)
  ]
  assert drawn[0] == drawn[1]
