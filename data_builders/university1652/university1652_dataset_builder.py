"""University-1652: drone, satellite and ground pictures of 1652 buildings.

Any data set in the same folders is built by this too (download.py). Records
are in the published order: place folders sorted by name, files sorted by name.
The bytes of the files are stored as they are, except where two decoders would
disagree about the pixels (pictures.py).
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from data_builders import base, pictures, records
from data_builders.university1652 import download

PICTURES_PER_JOB = 48
# 'image-07.jpeg' is view 7 of the 54 of the flight (prepare_limit_view.py
# reads the two digits after the hyphen).
FRAME = re.compile(r'image-(\d\d)\.[A-Za-z]+')


class Builder(base.Builder):
  """One split per view folder: train_drone, test_query_satellite, ..."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: Mapping[str, str] = {'1.0.0': 'First version.'}
  NEEDS_MANUAL_DIR = True
  HOMEPAGE = 'https://github.com/layumi/University1652-Baseline'
  DESCRIPTION = (
    'University-1652: every building of 72 universities from satellite, drone'
    ' and ground. Place = folder name as a number. Splits are named after the'
    ' folders; frame is the number of a drone view (1 to 54).'
  )
  CITATION = """\
@inproceedings{zheng2020university,
  title = {University-1652: A Multi-view Multi-source Benchmark for Drone-based Geo-localization},
  author = {Zheng, Zhedong and Wei, Yunchao and Yang, Yi},
  booktitle = {ACM Multimedia},
  year = {2020}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
University-1652 is given by its authors on request, for research only: see
{HOMEPAGE} (Request.md).
Unpack it and give the folder that has train/ and test/:
{download.LAYOUT}"""

  def jobs(
    self, manual_dir: pathlib.Path | None
  ) -> Mapping[str, Sequence[base.Job]]:
    """Lists the folders; raises ValueError with the report if unusable."""
    found, folders = download.inspect(manual_dir)
    if folders is None:
      raise ValueError(found.text())
    for level, text in found.findings:
      log = logging.warning if level == 'warning' else logging.info
      log('%s', text)
    return {
      download.split_name(view): _jobs(folders.root, places)
      for view, places in folders.views.items()
    }


def _jobs(
  root: pathlib.Path, places: Sequence[download.Place]
) -> list[base.Job]:
  """Cuts the pictures of a view into runs."""
  files = [(place.number, file) for place in places for file in place.files]
  runs = [
    tuple(files[start : start + PICTURES_PER_JOB])
    for start in range(0, len(files), PICTURES_PER_JOB)
  ]
  return [
    base.Job(len(run), functools.partial(read, str(root), run)) for run in runs
  ]


def read(
  root: str, files: Sequence[tuple[int, str]]
) -> Iterator[dict[str, Any] | records.Remark]:
  """The records of (place, path below root) pairs."""
  checked = pictures.verified(
    (pathlib.Path(root, file), file) for _, file in files
  )
  for (place, _), (path, image, remarks) in zip(files, checked, strict=True):
    yield from remarks
    if image is not None:
      match = FRAME.fullmatch(pathlib.PurePosixPath(path).name)
      is_drone = 'drone' in path.split('/')[1]
      yield base.record(
        image,
        place=place,
        path=path,
        frame=int(match[1]) if match and is_drone else -1,
      )
