"""VIGOR: panoramas anywhere on overlapping satellite tiles of four cities.

Pictures are stored once, in the splits `panorama` and `satellite` (cities in
the order of `labels.CITIES`, files in the order of their lists). The published
protocols are row numbers into them, and are opened as data sets of their own:

  vigor/same              train and test panoramas of all four cities
  vigor/cross             trained on New York and Seattle, tested on the others
  vigor/same_corrected    the same with the labels of SliceMatch
  vigor/cross_corrected

each with train_panorama, train_satellite, test_query_panorama and
test_gallery_satellite. A gallery has every tile of its cities in the official
order, distractors included. Panoramas know their `positive` and
`semi_positives` (rows of that gallery) and `offset_px`.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_builders import base, listed, records
from data_builders.vigor import download
from data_builders.vigor import labels as vigor_labels

# Half of a protocol -> splits of panoramas and of tiles.
SPLITS = {
  'train': ('train_panorama', 'train_satellite'),
  'test': ('test_query_panorama', 'test_gallery_satellite'),
}


class Builder(base.Builder):
  """All pictures once, all protocols as row numbers."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: Mapping[str, str] = {'1.0.0': 'First version.'}
  NEEDS_MANUAL_DIR = True
  HOMEPAGE = 'https://github.com/Jeff-Zilence/VIGOR'
  DESCRIPTION = (
    'VIGOR: north-aligned street panoramas (north in the centre) and satellite'
    ' tiles that overlap by half, of New York, Seattle, San Francisco and'
    ' Chicago. Place = number of the (positive) tile in the lists of all'
    ' cities.'
  )
  CITATION = """\
@inproceedings{zhu2021vigor,
  title = {VIGOR: Cross-View Image Geo-localization beyond One-to-one Retrieval},
  author = {Zhu, Sijie and Yang, Taojiannan and Chen, Chen},
  booktitle = {CVPR},
  year = {2021}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
VIGOR is given by its authors on request: see {HOMEPAGE}.
Unpack it and give the folder that has splits/ and the cities:
{download.LAYOUT}"""
  PROTOCOLS: ClassVar[Mapping[str, str]] = {
    'same': 'Train and test in all four cities.',
    'cross': 'Train in New York and Seattle, test in the other two.',
    'same_corrected': 'As same, with corrected labels, if they are there.',
    'cross_corrected': 'As cross, with corrected labels, if they are there.',
  }

  def jobs(
    self, manual_dir: pathlib.Path | None
  ) -> Mapping[str, Sequence[base.Job]]:
    """Reads the lists; raises ValueError with the report if unusable."""
    found, there = download.inspect(manual_dir)
    if there is None:
      raise ValueError(found.text())
    for level, text in found.findings:
      log = logging.warning if level == 'warning' else logging.info
      log('%s', text)
    self._download = there
    place_of = _place_of_panoramas(there)
    panoramas = [
      listed.Picture(
        path=download.official_path('panorama', city, name),
        file=f'{there.folders["panorama", city]}/{name}',
        aspect=download.ASPECTS['panorama'],
        fields={
          'place': place_of[city, name],
          'latlon_deg': vigor_labels.panorama_deg(name),
          'heading_deg': 0.0,  # of the centre column
        },
      )
      for city, name in there.panoramas
    ]
    satellites = [
      listed.Picture(
        path=download.official_path('satellite', city, name),
        file=f'{there.folders["satellite", city]}/{name}',
        aspect=download.ASPECTS['satellite'],
        fields={
          'place': there.places[city, name],
          'latlon_deg': vigor_labels.satellite_deg(name),
        },
      )
      for city, name in there.satellites
    ]
    jobs = {
      'panorama': listed.jobs(there.root, panoramas),
      'satellite': listed.jobs(there.root, satellites),
    }
    if there.missing:
      jobs['panorama'].append(listed.missing_job(there.missing))
    return jobs

  def protocols(
    self, stored: Mapping[str, Mapping[str, np.ndarray]]
  ) -> Iterator[records.Selection | records.Remark]:
    """The splits of every protocol; queries without a positive left out."""
    row_of = {
      view: {path.decode(): row for row, path in enumerate(columns['path'])}
      for view, columns in stored.items()
    }
    for protocol, sides in self._download.protocols.items():
      for part, side in sides.items():
        yield from _selections(
          protocol, part, side, row_of, self._download.places
        )


def _place_of_panoramas(
  there: download.Download,
) -> dict[tuple[str, str], int]:
  """(city, name) -> number of the positive tile; official labels first."""
  places: dict[tuple[str, str], int] = {}
  for sides in there.protocols.values():
    for side in sides.values():
      for entry, row in zip(side.panoramas, side.rows[:, 0], strict=True):
        places.setdefault(entry, there.places[side.satellites[row]])
  # Listed in files of no protocol (same_area_balanced_train without _test).
  return {entry: places.get(entry, -1) for entry in there.panoramas}


def _selections(
  protocol: str,
  part: str,
  side: vigor_labels.Side,
  row_of: Mapping[str, Mapping[str, int]],
  places: Mapping[tuple[str, str], int],
) -> Iterator[records.Selection | records.Remark]:
  """Gallery and queries of one half of a protocol."""
  query_split, gallery_split = SPLITS[part]
  stored = _stored_rows('satellite', side.satellites, row_of)
  gallery_place = np.array([places[entry] for entry in side.satellites])
  kept = stored >= 0
  yield records.Selection(
    protocol=protocol,
    split=gallery_split,
    stored='satellite',
    rows=stored[kept],
    columns={'place': gallery_place[kept]},
  )
  # Row in the list -> row in the gallery, -1 where the tile was left out.
  gallery_row = np.where(kept, np.cumsum(kept) - 1, -1)
  rows = gallery_row[side.rows]  # [N, 4]
  stored = _stored_rows('panorama', side.panoramas, row_of)
  has_positive = rows[:, 0] >= 0
  for i in np.flatnonzero((stored >= 0) & ~has_positive):
    yield records.Remark(
      'missing',
      download.official_path('panorama', *side.panoramas[i]),
      f'left out of {protocol} {part}: its positive tile is missing',
    )
  kept = (stored >= 0) & has_positive
  yield records.Selection(
    protocol=protocol,
    split=query_split,
    stored='panorama',
    rows=stored[kept],
    columns={
      'place': gallery_place[side.rows[kept, 0]],
      'positive': rows[kept, 0],
      'semi_positives': rows[kept, 1:],
      'offset_px': side.offset_px[kept],
    },
    gallery=gallery_split,
  )


def _stored_rows(
  view: str,
  entries: Sequence[tuple[str, str]],
  row_of: Mapping[str, Mapping[str, int]],
) -> np.ndarray:
  """Rows of the stored split, int64 [n]; -1 where the picture is not there."""
  return np.array(
    [
      row_of[view].get(download.official_path(view, city, name), -1)
      for city, name in entries
    ],
    np.int64,
  )
