"""CVUSA: a panorama and a satellite picture of each of 44,416 places.

Rows are in the order of the official lists; row i of train_panorama and of
train_satellite are a pair, and so are rows i of the test splits. The bytes of
the files are stored as they are.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_builders import base, listed
from data_builders.cvusa import download

VIEWS = {
  'train': {'panorama': 'train_panorama', 'satellite': 'train_satellite'},
  'test': {
    'panorama': 'test_query_panorama',
    'satellite': 'test_gallery_satellite',
  },
}


class Builder(base.Builder):
  """Splits train_*, test_query_panorama and test_gallery_satellite."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: Mapping[str, str] = {'1.0.0': 'First version.'}
  NEEDS_MANUAL_DIR = True
  HOMEPAGE = 'https://github.com/viibridges/crossnet'
  DESCRIPTION = (
    'CVUSA: north-aligned street panoramas (north in the centre) and satellite'
    ' pictures. Place = image number of the release.'
  )
  CITATION = """\
@inproceedings{zhai2017predicting,
  title = {Predicting Ground-Level Scene Layout from Aerial Imagery},
  author = {Zhai, Menghua and Bessinger, Zachary and Workman, Scott and Jacobs, Nathan},
  booktitle = {CVPR},
  year = {2017}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
CVUSA is given by its authors on request: see {HOMEPAGE}.
Unpack it and give the folder that has splits/, bingmap/ and streetview/:
{download.LAYOUT}"""

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
    jobs = {}
    for part, pairs in there.pairs.items():
      sides = _sides(pairs, there)
      for view, split in VIEWS[part].items():
        jobs[split] = listed.jobs(
          there.root, sides[view], check_partners=self._skip_damaged
        )
    if there.missing:
      next(iter(jobs.values())).append(listed.missing_job(there.missing))
    return jobs


def _sides(
  pairs: Sequence[download.Found], there: download.Download
) -> dict[str, list[listed.Picture]]:
  """View -> the pictures of the pairs, in order."""
  satellite_deg = panorama_deg = np.full((len(pairs), 2), np.nan)
  if there.locations is not None:
    satellite_deg, panorama_deg = there.locations.of(
      [pair.pair.number for pair in pairs]
    )
  satellites = [
    listed.Picture(
      path=pair.pair.satellite,
      file=pair.satellite_file,
      aspect=download.SATELLITE_ASPECT,
      fields={'place': pair.pair.number, 'latlon_deg': latlon_deg},
    )
    for pair, latlon_deg in zip(pairs, satellite_deg, strict=True)
  ]
  panoramas = [
    listed.Picture(
      path=pair.pair.panorama,
      file=pair.panorama_file,
      aspect=download.PANORAMA_ASPECT,
      fields={
        'place': pair.pair.number,
        'latlon_deg': latlon_deg,
        'heading_deg': 0.0,  # of the centre column
      },
      partner=satellite,
    )
    for pair, latlon_deg, satellite in zip(
      pairs, panorama_deg, satellites, strict=True
    )
  ]
  return {
    'panorama': panoramas,
    'satellite': [
      dataclasses.replace(
        satellite, partner=dataclasses.replace(panorama, partner=None)
      )
      for satellite, panorama in zip(satellites, panoramas, strict=True)
    ],
  }
