import html.parser
import io
import json

import jax
import numpy as np
import PIL.Image
import pytest

from cvgl_jax import sharding
from cvgl_jax.data import transforms
from cvgl_jax.evaluators import embedder, retrieval
from cvgl_jax.report import build, figures, panels
from tests.evaluators import pictures

LOG = [
  {'step': 0, 'eval/task/R@1': 3.0, 'eval/task/AP': 5.0},
  {'step': 10, 'epoch': 1.0, 'train/loss': 2.0, 'train/lr': 0.1},
  {'step': 20, 'epoch': 2.0, 'train/loss': float('nan'), 'train/lr': 0.05},
  {'step': 20, 'eval/task/R@1': 70.0, 'eval/task/AP': 80.0},
]


class Page(html.parser.HTMLParser):
  """Pictures, links and text of a page."""

  def __init__(self, path):
    super().__init__()
    self.images, self.links, self.text, self.tags = [], [], [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'img':
      self.images.append(dict(attrs))
    if tag == 'a':
      self.links.append(dict(attrs)['href'])

  def handle_data(self, data):
    self.text.append(data)

  def has(self, text):
    return text in ' '.join(' '.join(self.text).split())


def world(prefix='set'):
  """The first places look like one another: their queries fail."""
  place = np.repeat(np.arange(14), 2)
  shown = place.copy()
  shown[:6] = [1, 1, 2, 2, 0, 0]
  splits = {
    name: pictures.ColourSplit(
      name=name, place=p, colour=pictures.colours(s), prefix=prefix
    )
    for name, p, s in (
      ('test_query_drone', place, shown),
      ('test_gallery_satellite', np.arange(20), np.arange(20)),
    )
  }
  return lambda names, name: splits[name]


def evaluate(workdir, open_split, **changes):
  method = pictures.ColourMethod()
  embed = embedder.Embedder(
    method,
    method.variables('drone', 'satellite'),
    load=transforms.Loader(image_size=(4, 4)),
    batch_size=16,
    mesh=sharding.make_mesh(jax.devices()[:1]),
    threads=1,
  )
  evaluator = retrieval.Evaluator(
    query_split='test_query_drone',
    gallery_split='test_gallery_satellite',
    **changes,
  )
  evaluator.run(embed, open_split).write(str(workdir), 'task', step=20)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run, its page and the printed table."""
  workdir = tmp_path_factory.mktemp('run')
  (workdir / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in LOG)
  )
  config = {'seed': 3, 'data': {'names': ['a/b'], 'image_size': [4, 4]}}
  (workdir / 'config.json').write_text(json.dumps(config))
  evaluate(workdir, world(), published={'R@1': 58.23, 'AP': 62.91})
  path, table = build.build(str(workdir), open_split=world())
  return workdir, path, Page(path), table


def test_the_page_needs_no_network_and_all_its_pictures_exist(run):
  _, path, page, _ = run
  assert path.name == 'index.html'
  assert len(page.images) >= 10
  for image in page.images:
    assert (path.parent / image['src']).stat().st_size > 1000
    assert len(image['alt']) > 10
  source = path.read_text()
  assert 'http://' not in source
  assert 'https://' not in source
  assert 'script' not in page.tags
  assert not list(path.parent.glob('*.part'))


def test_the_table_compares_before_now_and_published(run):
  _, _, page, table = run
  recall = 100 * 22 / 28
  for text in ('3.00', f'{recall:.2f}', '58.23', f'{recall - 58.23:+.2f}'):
    assert page.has(text)
  assert f'{recall:.2f}' in table
  assert '58.23' in table
  assert '3.00' in table


def test_failures_are_listed_worst_first(run):
  _, path, page, _ = run
  lines = (path.parent / 'failures_task.csv').read_text().splitlines()
  assert lines[0] == 'rank,ap,place,path,best_place,best_path'
  ranks = [int(line.split(',')[0]) for line in lines[1:]]
  assert len(ranks) == 6
  assert min(ranks) > 1
  assert ranks == sorted(ranks, reverse=True)
  assert page.has('6 of 28 queries')
  assert 'failures_task.csv' in page.links


def test_the_configuration_is_on_the_page(run):
  _, _, page, _ = run
  assert page.has('data.image_size')
  assert page.has('4, 4')


def test_a_run_that_has_nothing_yet_says_so(tmp_path):
  path, table = build.build(str(tmp_path), open_split=world())
  page = Page(path)
  assert page.has('No evaluation yet')
  assert page.has('No training log yet')
  assert page.has('no config.json')
  assert table == 'no evaluation yet'


def test_numbers_are_shown_when_the_pictures_are_gone(run):
  workdir = run[0]

  def nothing(names, name):
    raise ValueError('no data set a/b')

  page = Page(build.build(str(workdir), open_split=nothing)[0])
  assert page.has('The pictures cannot be shown: no data set a/b')
  assert page.has('58.23')


def test_pictures_of_another_data_set_are_not_shown(run):
  workdir = run[0]
  path, _ = build.build(str(workdir), open_split=world(prefix='other'))
  assert Page(path).has('is not the one that was evaluated')


def test_paths_cannot_inject_markup(tmp_path):
  hostile = world(prefix='<img src=x>')
  evaluate(tmp_path, hostile)
  path, _ = build.build(str(tmp_path), open_split=hostile)
  page = Page(path)
  assert all(image['src'] != 'x' for image in page.images)
  assert page.has('<img src=x>')


def test_damaged_files_are_named(tmp_path):
  evaluate(tmp_path, world())
  arrays = tmp_path / 'eval' / 'task.npz'
  arrays.write_bytes(arrays.read_bytes()[:100])
  with pytest.raises(ValueError, match=r'task\.npz: cannot be read'):
    build.build(str(tmp_path), open_split=world())
  (tmp_path / 'eval' / 'task.json').write_text('{')
  with pytest.raises(ValueError, match=r'task\.json: not JSON'):
    build.build(str(tmp_path), open_split=world())


def test_a_missing_workdir_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='no such workdir'):
    build.build(str(tmp_path / 'nowhere'), open_split=world())


def test_panels_have_the_colours_of_right_and_wrong():
  grey = np.full((300, 200, 3), 200, np.uint8)
  tiles = [
    panels.Tile(grey, 'query', 'place 1', figures.NEUTRAL),
    panels.Tile(grey, '1', 'place 2', figures.WRONG),
    panels.Tile(grey, '2', 'place 1', figures.RIGHT),
  ]
  image = PIL.Image.open(io.BytesIO(panels.ranking_panel(tiles)))
  pixels = np.asarray(image.convert('RGB')).reshape(-1, 3).tolist()
  for colour in (figures.WRONG, figures.RIGHT, figures.NEUTRAL):
    assert [int(colour[i : i + 2], 16) for i in (1, 3, 5)] in pixels
