"""Rendered city: a data set that needs no download.

A procedural city, rendered by JAX from satellite, drone and street: the same
splits and features as the real data sets, for the demo, for tests, and for
trying a method before asking for access to real pictures.

  python -m data_builders data_builders/rendered_city --config demo --data_dir=D

Places are distinct worlds with a building in the middle. Satellite, drone and
ground pictures of a place are taken at different hours and seasons by
different cameras, with other cars on the streets. Districts of 12 places share
their colours and their kind of building, so that layout must be learnt.
"""

import dataclasses
import functools
import os
import pathlib
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_builders import base


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """plan: keyword arguments of shots.Plan."""

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
  ]

  def jobs(self, manual_dir):
    from data_builders.rendered_city import shots

    del manual_dir
    plan = shots.Plan(**self.builder_config.plan)
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
    yield base.record(
      shot.jpeg,
      place=place,
      path=f'{folder}/{place:04d}/{shot.name}.jpg',
      latlon_deg=shot.latlon_deg,
      heading_deg=shot.heading_deg,
      altitude_m=shot.altitude_m,
      frame=shot.frame,
    )
