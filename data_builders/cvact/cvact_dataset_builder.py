"""CVACT: a panorama and a satellite picture of each of 128,334 places.

Rows are in the order of ACT_data.mat; row i of the two splits of train (of val,
of test) are a pair. Pairs of which a file is missing are left out, as by the
published loaders. The bytes of the files are stored as they are: panoramas show
the full sphere, and what a recipe does with that (FRGeo and TransGeo cut out
the middle half, Sample4Geo squeezes all of it) is done when they are read.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_builders import base, listed
from data_builders.cvact import download

# Split of ACT_data.mat -> names of ours: panoramas, satellite pictures.
SPLITS = {
  'train': ('train_panorama', 'train_satellite'),
  'val': ('val_query_panorama', 'val_gallery_satellite'),
  'test': ('test_query_panorama', 'test_gallery_satellite'),
}


class Builder(base.Builder):
  """Splits of train, val (CVACT_val) and test (CVACT_test)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: Mapping[str, str] = {'1.0.0': 'First version.'}
  NEEDS_MANUAL_DIR = True
  HOMEPAGE = 'https://github.com/Liumouliu/OriCNN'
  DESCRIPTION = (
    'CVACT: north-aligned street panoramas (north in the centre, 180 degrees of'
    ' elevation) and satellite pictures of Canberra. Place = row in'
    ' ACT_data.mat, counted from 0; utm_m = easting and northing.'
  )
  CITATION = """\
@inproceedings{liu2019lending,
  title = {Lending Orientation to Neural Networks for Cross-View Geo-Localization},
  author = {Liu, Liu and Li, Hongdong},
  booktitle = {CVPR},
  year = {2019}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
CVACT is given by its authors on request: see {HOMEPAGE}.
Unpack it and give the folder that has ANU_data_small/ or ANU_data_test/:
{download.LAYOUT}"""

  def extra_features(self) -> dict[str, Any]:
    return {
      'utm_m': tfds.features.Tensor(
        shape=(2,), dtype=np.float64, encoding='bytes'
      )
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
    jobs = {}
    for part in there.rows:
      for split, side in zip(SPLITS[part], _sides(part, there), strict=True):
        jobs[split] = listed.jobs(
          there.root, side, check_partners=self._skip_damaged
        )
    if there.missing:
      next(iter(jobs.values())).append(listed.missing_job(there.missing))
    return jobs


def _sides(
  part: str, there: download.Download
) -> tuple[list[listed.Picture], list[listed.Picture]]:
  """Panoramas and satellite pictures of the pairs, in order."""
  panoramas, satellites = [], []
  for row in there.rows[part]:
    fields = {'place': row, 'utm_m': there.lists.utm_m[row]}
    satellite_file, panorama_file = download.files_of(
      part, there.lists.panoramas[row]
    )
    satellite = listed.Picture(
      path=satellite_file,
      file=satellite_file,
      aspect=download.SATELLITE_ASPECT,
      fields=fields,
    )
    panorama = listed.Picture(
      path=panorama_file,
      file=panorama_file,
      aspect=download.PANORAMA_ASPECT,
      fields=fields | {'heading_deg': 0.0},  # of the centre column
    )
    panoramas.append(dataclasses.replace(panorama, partner=satellite))
    satellites.append(dataclasses.replace(satellite, partner=panorama))
  return panoramas, satellites
