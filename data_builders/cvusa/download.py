"""The folders of CVUSA: finds them, reads the lists, says what is wrong.

Sources: zqwlearning/FRGeo-Code and Skyy93/Sample4Geo (layout of the
distribution), layumi/University1652-Baseline `prepare_cvusa.py` (class
folders).
"""

import dataclasses
import os
import pathlib

from data_builders import folders, pictures, report
from data_builders.cvusa import lists

LAYOUT = """\
<manual_dir>/
  splits/train-19zl.csv            35,532 lines
  splits/val-19zl.csv               8,884 lines, the test split
  bingmap/19/0000001.jpg           satellite
  streetview/panos/0000001.jpg     panorama, 1232x224
  split_locations/all.csv          optional: latitude and longitude
or, as prepare_cvusa.py of the University-1652 baseline copies it,
  {train,val}/satellite/0000001/0000001.jpg
  {train,val}/street/0000001/0000001.jpg
"""
# Part of the split names -> the official file; the folder of the copy.
PARTS = {
  'train': ('splits/train-19zl.csv', 'train'),
  'test': ('splits/val-19zl.csv', 'val'),
}
LOCATIONS = 'split_locations/all.csv'
PAIRS = {'train': 35_532, 'test': 8_884}
PANORAMA_ASPECT = 1232 / 224
SATELLITE_ASPECT = 1.0


@dataclasses.dataclass(frozen=True)
class Found:
  """A pair of which both pictures are there.

  Attributes:
    pair: its line, paths as in the official distribution.
    satellite_file: where it is, below the root.
    panorama_file: the same.
  """

  pair: lists.Pair
  satellite_file: str
  panorama_file: str


@dataclasses.dataclass(frozen=True)
class Download:
  """What can be built.

  Attributes:
    root: the folder.
    pairs: 'train', 'test' -> pairs in the order of the list.
    locations: None if the file is not there.
    missing: (path, text) of pictures that the lists name in vain.
  """

  root: pathlib.Path
  pairs: dict[str, list[Found]]
  locations: lists.Locations | None
  missing: list[tuple[str, str]]


def inspect(
  manual_dir: str | os.PathLike,
) -> tuple[report.Report, Download | None]:
  """Looks at a download; the second value is None if it is not usable."""
  folder = pathlib.Path(manual_dir).expanduser().absolute()
  found = report.Report(f'CVUSA in {folder}', LAYOUT)
  root = folders.find_root(
    folder,
    lambda candidate: _is_official(candidate) or _is_copy(candidate),
    found,
    wanted='splits/train-19zl.csv or splits/val-19zl.csv',
  )
  if root is None:
    return found, None
  download = Download(root, {}, _locations(root, found), [])
  files = folders.Files(root)
  for part, (official, copy) in PARTS.items():
    if not _is_official(root):
      pairs = _copied(root, copy, found)
    elif (root / official).is_file():
      pairs = _listed(root / official, found)
    else:
      pairs = None
    if pairs is None:
      missing = official if _is_official(root) else f'{copy}/'
      found.warning(f'no {missing}: there will be no {part} splits')
      continue
    _find_pictures(part, pairs, files, download=download, found=found)
  if found.usable and not download.pairs:
    found.error('no pair of pictures')
  _compare(download, found)
  return found, download if found.usable else None


def _is_official(root: pathlib.Path) -> bool:
  return any((root / official).is_file() for official, _ in PARTS.values())


def _is_copy(root: pathlib.Path) -> bool:
  return (
    any(
      (root / copy / view).is_dir()
      for _, copy in PARTS.values()
      for view in ('satellite', 'street')
    )
    and not (root / 'train/drone').is_dir()
  )  # University-1652 has one


def _locations(
  root: pathlib.Path, found: report.Report
) -> lists.Locations | None:
  if not (root / LOCATIONS).is_file():
    found.note(
      f'no {LOCATIONS} (optional): coordinates are unknown, and batches of'
      ' geographic neighbours are impossible'
    )
    return None
  try:
    locations = lists.read_locations(root / LOCATIONS)
  except ValueError as error:
    found.error(str(error))
    return None
  found.ok(f'{LOCATIONS}: {len(locations.satellite_deg)} locations')
  return locations


def _listed(path: pathlib.Path, found: report.Report) -> list[Found]:
  try:
    pairs = lists.read_pairs(path)
  except ValueError as error:
    found.error(str(error))
    return []
  return [Found(pair, pair.satellite, pair.panorama) for pair in pairs]


def _copied(
  root: pathlib.Path, part: str, found: report.Report
) -> list[Found] | None:
  """Pairs in class folders, by number; the order of the lists is lost."""
  if not (root / part).is_dir():
    return None
  files = folders.Files(root)
  views: dict[str, dict[int, str]] = {}
  for view in ('satellite', 'street'):
    views[view] = {}
    for name in folders.subfolders(root / part / view):
      inside = f'{part}/{view}/{name}'
      there = sorted(filter(pictures.is_picture, files.names(inside)))
      if not (name.isascii() and name.isdigit()):
        found.error(f'{inside}/: class folders must be image numbers')
      elif len(there) != 1:
        found.error(f'{inside}/ has {len(there)} pictures, expected one')
      else:
        views[view][int(name)] = f'{inside}/{there[0]}'
  lone = sorted(views['satellite'].keys() ^ views['street'].keys())
  if lone:
    found.warning(
      f'{part}: {len(lone)} images are not in both satellite/ and street/,'
      f' left out: {report.listing(lone)}'
    )
  found.note(f'{part}/: class folders, pairs are sorted by image number')
  return [
    Found(
      lists.Pair(
        number,
        f'bingmap/19/{pathlib.PurePosixPath(satellite).name}',
        f'streetview/panos/{pathlib.PurePosixPath(street).name}',
      ),
      satellite,
      street,
    )
    for number, satellite in sorted(views['satellite'].items())
    if (street := views['street'].get(number))
  ]


def _find_pictures(
  part: str,
  pairs: list[Found],
  files: folders.Files,
  *,
  download: Download,
  found: report.Report,
) -> None:
  """Keeps the pairs of which both pictures are there; fills `download`."""
  kept, lost = [], []
  for pair in pairs:
    absent = [
      file
      for file in (pair.satellite_file, pair.panorama_file)
      if file not in files
    ]
    lost += absent
    if not absent:
      kept.append(pair)
  if lost and not kept:
    found.error(
      f'{part}: none of the {len(pairs)} pairs is there: no {lost[0]};'
      f' {files.example(lost[0])}'
    )
    return
  if lost:
    found.warning(
      f'{part}: {len(pairs) - len(kept)} pairs are left out, these pictures'
      f' are missing: {report.listing(lost)}'
    )
    download.missing.extend(
      (file, f'in the list of {part}, not in the download') for file in lost
    )
  if kept:
    download.pairs[part] = kept
    for view, aspect in (
      ('panorama', PANORAMA_ASPECT),
      ('satellite', SATELLITE_ASPECT),
    ):
      folders.sample(
        download.root,
        [getattr(pair, f'{view}_file') for pair in kept],
        what=f'{part}: {len(kept)} pictures of {view}',
        aspect=aspect,
        hint='Are satellite and panorama swapped, or the pictures resized?',
        found=found,
      )


def _compare(download: Download, found: report.Report) -> None:
  """Counts and numbers against the release; train against test."""
  for part, pairs in download.pairs.items():
    folders.compare_count(f'{part} pairs', len(pairs), PAIRS[part], found)
  numbers = {
    part: {pair.pair.number for pair in pairs}
    for part, pairs in download.pairs.items()
  }
  both = numbers.get('train', set()) & numbers.get('test', set())
  if both:
    found.warning(
      f'{len(both)} images are in train and in test:'
      f' {report.listing(sorted(both))}'
    )
  last = max((max(part) for part in numbers.values() if part), default=0)
  if download.locations and last > len(download.locations.satellite_deg):
    found.warning(
      f'{LOCATIONS} ends at image {len(download.locations.satellite_deg)};'
      f' images up to {last} are in the lists: their coordinates are unknown'
    )
