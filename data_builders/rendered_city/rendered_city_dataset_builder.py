"""Rendered city: a data set that needs no download.

A procedural city, rendered by JAX from satellite, drone and street: the same
splits and features as the real data sets, for the demo, for tests, and for
trying a method before asking for access to real pictures.

  python -m data_builders data_builders/rendered_city --config demo --data_dir=D

Places are distinct worlds with a building in the middle. Satellite, drone and
ground pictures of a place are taken at different hours and seasons by
different cameras, with other cars on the streets. Districts of 12 places share
their colours and their kind of building, so that layout must be learnt.

The same city in the formats of the panorama data sets, with their split names:

  pairs_*  as CVUSA: a north-aligned panorama and the satellite picture around
           it (pairs.py); open 'rendered_city/pairs_demo'
  tiles_*  as VIGOR: overlapping tiles, of which a panorama has a positive and
           up to three semi-positives (tiles.py); protocols: open
           'rendered_city/tiles_demo/cross' or '.../same'
"""

import dataclasses
import functools
import importlib
import os
import pathlib
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow_datasets as tfds

from data_builders import base, records


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """form: the module that says which pictures are taken; plan: keyword
  arguments of its Plan."""

  form: Literal['shots', 'pairs', 'tiles'] = 'shots'
  plan: dict[str, Any] = dataclasses.field(default_factory=dict)


_DEMO = {
  'train_places': 420,
  'query_places': 90,
  'distractor_places': 40,
  'train_drone': 5,
  'test_drone': 4,
  'street': 1,
  'panorama': 1,
  'video_frames': 0,
  'size_px': 128,
  'panorama_hw': (128, 512),
}
_VIDEO = {'street': 0, 'panorama': 0, 'video_frames': 6}
_FULL = {
  'train_places': 701,
  'query_places': 701,
  'distractor_places': 250,
  'train_drone': 54,
  'test_drone': 54,
  'street': 4,
  'panorama': 1,
  'video_frames': 54,
  'size_px': 256,
  'panorama_hw': (224, 1232),
}
_TINY = {
  'train_places': 16,
  'query_places': 6,
  'distractor_places': 2,
  'train_drone': 3,
  'test_drone': 2,
  'street': 1,
  'panorama': 1,
  'video_frames': 2,
  'size_px': 64,
  'panorama_hw': (64, 256),
  'oversample': 1,
}
# Whole flights of 54 in training, several street photos: for PLCD.
_FLIGHTS_DEMO = _DEMO | {
  'train_places': 240,
  'query_places': 80,
  'distractor_places': 40,
  'train_drone': 54,
  'test_drone': 18,
  'street': 4,
  'panorama': 0,
}
_PAIRS_TINY = {
  'train_places': 16,
  'test_places': 8,
  'size_px': 64,
  'panorama_hw': (64, 352),
  'oversample': 1,
}
_PAIRS_DEMO = {
  'train_places': 1200,
  'test_places': 300,
  'size_px': 128,
  'panorama_hw': (128, 704),
}
_TILES_TINY = {
  'train_areas': 4,
  'test_areas': 2,
  'distractor_areas': 1,
  'grid': 3,
  'size_px': 64,
  'panorama_hw': (64, 128),
  'oversample': 1,
}
_TILES_DEMO = {
  'train_areas': 60,
  'test_areas': 18,
  'distractor_areas': 6,
  'grid': 5,
  'size_px': 128,
  'panorama_hw': (128, 256),
}


class Builder(base.Builder):
  """Renders; see the module."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}
  DESCRIPTION = (
    'Procedural city seen from satellite, drone (a spiral of 54 views, and '
    'videos at 30 and 45 degrees) and street (photos and panoramas).'
  )
  BUILDER_CONFIGS: ClassVar[list[Config]] = [
    Config(
      name='demo', plan=_DEMO, description='550 places, 128 px: for the demo.'
    ),
    Config(
      name='demo_video',
      plan=_DEMO | _VIDEO,
      description='The places of demo: satellite, drone and videos.',
    ),
    Config(
      name='full',
      plan=_FULL,
      description='The sizes of University-1652 and UniV, 256 px.',
    ),
    Config(name='tiny', plan=_TINY, description='24 places, 64 px: for tests.'),
    Config(
      name='flights_demo',
      plan=_FLIGHTS_DEMO,
      description='360 places, 128 px: flights of 54 in training, street photos.',
    ),
    Config(
      name='pairs_demo',
      form='pairs',
      plan=_PAIRS_DEMO,
      description='As CVUSA: 1,200 pairs of panorama and satellite, 300 of the '
      'test.',
    ),
    Config(
      name='pairs_large',
      form='pairs',
      plan=_PAIRS_DEMO | {'train_places': 5000, 'test_places': 1500},
      description='As pairs_demo, 5,000 pairs and 1,500 of the test.',
    ),
    Config(
      name='pairs_tiny',
      form='pairs',
      plan=_PAIRS_TINY,
      description='As CVUSA: 16 pairs and 8 of the test, 64 px: for tests.',
    ),
    Config(
      name='tiles_demo',
      form='tiles',
      plan=_TILES_DEMO,
      description='As VIGOR: 2,100 overlapping tiles; protocols tiles_demo/cross '
      '(other areas in the test) and tiles_demo/same.',
    ),
    Config(
      name='tiles_tiny',
      form='tiles',
      plan=_TILES_TINY,
      description='As tiles_demo, 63 tiles of 64 px: for tests.',
    ),
  ]

  def jobs(
    self, manual_dir: pathlib.Path | None
  ) -> Mapping[str, Sequence[base.Job]]:
    """Renders; there is no download."""
    del manual_dir
    return {
      'shots': self._shots,
      'pairs': _pairs,
      'tiles': _tiles,
    }[self.builder_config.form](self.plan)

  @property
  def plan(self) -> Any:
    """The Plan of the module that the configuration names."""
    form = f'data_builders.rendered_city.{self.builder_config.form}'
    # Not imported above: listing the data sets must not start JAX.
    module = importlib.import_module(form)
    return module.Plan(**self.builder_config.plan)

  def protocols(
    self, stored: Mapping[str, Mapping[str, np.ndarray]]
  ) -> Iterable[records.Selection | records.Remark]:
    """Those of tiles."""
    del stored
    if self.builder_config.form != 'tiles':
      return ()
    from data_builders.rendered_city import tiles

    return tiles.selections(self.plan)

  def _shots(self, plan: Any) -> dict[str, list[base.Job]]:
    from data_builders.rendered_city import shots

    # Queries are in the gallery too: the query job leaves its pictures there.
    self._kept = tempfile.TemporaryDirectory(prefix='rendered_city_')
    jobs = {}
    for view in shots.VIEWS:
      for split in ('train', 'test_query', 'test_gallery'):
        count = plan.count(split, view)
        if count:
          jobs[f'{split}_{view}'] = [
            base.Job(
              size=count,
              make=functools.partial(
                make_records, plan, place, split, view, keep=self._kept.name
              ),
            )
            for place in plan.places(split)
          ]
    return jobs


def make_records(
  plan: Any, place: int, split: str, view: str, *, keep: str
) -> Iterator[dict[str, Any]]:
  """Records of one place in one split, in order.

  Args:
    plan: shots.Plan.
    place: of the split.
    split: 'train', 'test_query' or 'test_gallery'.
    view: of shots.VIEWS.
    keep: folder in which a query's pictures wait for the gallery.
  """
  from data_builders.rendered_city import shots

  kept = pathlib.Path(keep) / f'{place:04d}_{view}'
  if split == 'test_gallery' and kept.exists():
    taken = pickle.loads(kept.read_bytes())
    kept.unlink()
  else:
    taken = list(shots.take(plan, place, view, plan.count(split, view)))
  if split == 'test_query':
    partial = kept.with_suffix('.partial')
    partial.write_bytes(pickle.dumps(taken))
    os.replace(partial, kept)
  folder = f'train/{view}' if split == 'train' else f'test/{split[5:]}_{view}'
  for shot in taken:
    yield _record(shot, place, f'{folder}/{place:04d}/{shot.name}.jpg')


def _pairs(plan: Any) -> dict[str, list[base.Job]]:
  from data_builders.rendered_city import pairs

  return {
    split: [
      base.Job(size=1, make=functools.partial(make_pair, plan, place, view))
      for place in plan.places(part)
    ]
    for part, splits in pairs.SPLITS.items()
    for view, split in splits.items()
  }


def _tiles(plan: Any) -> dict[str, list[base.Job]]:
  from data_builders.rendered_city import tiles

  return {
    view: [
      base.Job(
        size=tiles.count(plan, area, view),
        make=functools.partial(make_tiles, plan, area, view),
      )
      for area in plan.areas('all')
      if tiles.count(plan, area, view)
    ]
    for view in tiles.VIEWS
  }


def make_pair(plan: Any, place: int, view: str) -> Iterator[dict[str, Any]]:
  """The record of one view of a pair.

  Args:
    plan: pairs.Plan.
    place: of the plan.
    view: of pairs.VIEWS.
  """
  from data_builders.rendered_city import pairs

  shot = pairs.take(plan, place, view)
  yield _record(shot, place, f'{view}/{shot.name}.jpg')


def make_tiles(plan: Any, area: int, view: str) -> Iterator[dict[str, Any]]:
  """The records of one view of an area.

  Args:
    plan: tiles.Plan.
    area: of the plan.
    view: of tiles.VIEWS.
  """
  from data_builders.rendered_city import tiles

  for place, path, shot in tiles.take(plan, area, view):
    yield _record(shot, place, path)


def _record(shot: Any, place: int, path: str) -> dict[str, Any]:
  return base.record(
    shot.jpeg,
    place=place,
    path=path,
    latlon_deg=shot.latlon_deg,
    heading_deg=shot.heading_deg,
    altitude_m=shot.altitude_m,
    frame=shot.frame,
  )
