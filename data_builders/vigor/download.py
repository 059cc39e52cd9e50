"""The folders of VIGOR: finds them, reads the lists, says what is wrong.

Sources: Jeff-Zilence/VIGOR (layout), Skyy93/Sample4Geo (view folders above the
cities), tudelft-iv/SliceMatch (corrected labels beside the official ones).
"""

import dataclasses
import os
import pathlib

import numpy as np

from data_builders import folders, report
from data_builders.vigor import labels as vigor_labels

LAYOUT = """\
<manual_dir>/
  <City>/panorama/<id>,<lat>,<lon>,.jpg        2048x1024
  <City>/satellite/satellite_<lat>_<lon>.png   640x640
  splits/<City>/satellite_list.txt
  splits/<City>/same_area_balanced_train.txt   same_area_balanced_test.txt
  splits/<City>/pano_label_balanced.txt
where <City> is NewYork, Seattle, SanFrancisco, Chicago. Also understood:
  ground/<City>/ and satellite/<City>/ instead of <City>/...
  splits__corrected/<City>/ (any name with 'splits' and 'corrected'), files with
  or without '__corrected' before '.txt'; makes the protocols same_corrected and
  cross_corrected
"""
FOLDERS = {
  'panorama': ('{city}/panorama', 'ground/{city}', '{city}/ground', 'panorama/{city}'),
  'satellite': ('{city}/satellite', 'satellite/{city}'),
}  # fmt: skip
ASPECTS = {'panorama': 2048 / 1024, 'satellite': 1.0}
OFFICIAL = 'splits'
# As usually reported: panoramas, tiles (gallery).
COUNTS = {
  ('same', 'train'): (52_609, 90_618),
  ('same', 'test'): (52_605, 90_618),
  ('cross', 'train'): (51_520, 44_055),
  ('cross', 'test'): (53_694, 46_563),
}
MAX_PANORAMAS_A_TILE = 2


@dataclasses.dataclass(frozen=True)
class Download:
  """What can be built.

  Attributes:
    root: the folder.
    panoramas: (city, name) of all that are there: by city, in the order of
      its lists.
    satellites: the same.
    protocols: such as 'same' -> 'train', 'test' -> lists, of all pictures
      whether they are there or not.
    places: (city, name) of a tile -> its number, from 0, over all lists.
    folders: (view, city) -> folder below the root.
    missing: (path, text) of pictures that the lists name in vain.
  """

  root: pathlib.Path
  panoramas: list[tuple[str, str]]
  satellites: list[tuple[str, str]]
  protocols: dict[str, dict[str, vigor_labels.Side]]
  places: dict[tuple[str, str], int]
  folders: dict[tuple[str, str], str]
  missing: list[tuple[str, str]]


def official_path(view: str, city: str, name: str) -> str:
  """Where the release has a picture."""
  return f'{city}/{view}/{name}'


def inspect(
  manual_dir: str | os.PathLike,
) -> tuple[report.Report, Download | None]:
  """Looks at a download; the second value is None if it is not usable."""
  folder = pathlib.Path(manual_dir).expanduser().absolute()
  found = report.Report(f'VIGOR in {folder}', LAYOUT)
  root = folders.find_root(
    folder,
    lambda candidate: bool(_label_folders(candidate)),
    found,
    wanted='splits/<City>/',
  )
  if root is None:
    return found, None
  places_of = {
    (view, city): _picture_folder(root, view, city, found)
    for view in FOLDERS
    for city in vigor_labels.CITIES
  }
  tiles: dict[str, list[str]] = {city: [] for city in vigor_labels.CITIES}
  panoramas: dict[str, dict[str, None]] = {city: {} for city in tiles}
  protocols = {}
  for suffix, name in _label_folders(root).items():
    protocols |= _read_protocols(
      root / name, suffix, tiles=tiles, panoramas=panoramas, found=found
    )
  if found.usable and not protocols:
    found.error('no complete set of label files')
  if not found.usable:
    return found, None
  listed_tiles = [(city, name) for city in tiles for name in tiles[city]]
  listed = {
    'panorama': [(c, name) for c in panoramas for name in panoramas[c]],
    'satellite': listed_tiles,
  }
  there, missing = {}, []
  for view, entries in listed.items():
    there[view] = _find_pictures(
      root, view, entries, places_of=places_of, missing=missing, found=found
    )
  download = Download(
    root=root,
    panoramas=there['panorama'],
    satellites=there['satellite'],
    protocols=protocols,
    places={entry: number for number, entry in enumerate(listed_tiles)},
    folders=places_of,
    missing=missing,
  )
  _compare(download, found)
  return found, download if found.usable else None


def _label_folders(root: pathlib.Path) -> dict[str, str]:
  """Suffix of the protocols ('' or '_corrected') -> folder of the labels."""
  found = {}
  for name in folders.subfolders(root):
    cities = set(folders.subfolders(root / name))
    if not cities.intersection(vigor_labels.CITIES):
      continue
    if name == OFFICIAL:
      found[''] = name
    elif 'splits' in name.lower() and 'corrected' in name.lower():
      found.setdefault('_corrected', name)
  return dict(sorted(found.items()))


def _picture_folder(
  root: pathlib.Path, view: str, city: str, found: report.Report
) -> str:
  """The folder of a city's pictures, below the root."""
  choices = [pattern.format(city=city) for pattern in FOLDERS[view]]
  there = [choice for choice in choices if (root / choice).is_dir()]
  if len(there) > 1:
    found.warning(f'{" and ".join(there)}: using {there[0]}/')
  if there:
    return there[0]
  near = [
    other
    for parent in ('', 'ground', 'panorama', 'satellite')
    for other in folders.subfolders(root / parent)
    if other not in vigor_labels.CITIES
    and report.nearest(other.replace(' ', ''), vigor_labels.CITIES) == city
  ]
  hint = f' (rename {near[0]}/ to {city}/?)' if near else ''
  found.error(f'no folder {choices[0]}/ or {choices[1]}/{hint}')
  return choices[0]


def _read_protocols(
  folder: pathlib.Path,
  suffix: str,
  *,
  tiles: dict[str, list[str]],
  panoramas: dict[str, dict[str, None]],
  found: report.Report,
) -> dict[str, dict[str, vigor_labels.Side]]:
  """Reads one folder of labels; adds its pictures to `tiles`, `panoramas`.

  Every city of `tiles` has its official list in front, if there is one.
  """
  satellites, read = {}, {}
  try:
    for city in vigor_labels.CITIES:
      satellites[city] = _read_tiles(folder, city)
      known = set(tiles[city])
      tiles[city] += [name for name in satellites[city] if name not in known]
      for name in vigor_labels.LABEL_FILES:
        path = _label_file(folder / city, name)
        if path is not None:
          read[city, name] = vigor_labels.read_labels(path, satellites[city])
          panoramas[city].update(dict.fromkeys(read[city, name].panoramas))
  except ValueError as error:
    found.error(str(error))
    return {}
  protocols = {}
  for protocol, parts in vigor_labels.PROTOCOLS.items():
    absent = [
      f'{folder.name}/{city}/{part.labels}.txt'
      for part in parts.values()
      for city in part.cities
      if (city, part.labels) not in read
    ]
    if absent:
      found.warning(
        f'no {report.listing(absent)}: there will be no protocol'
        f' {protocol}{suffix}'
      )
      continue
    protocols[f'{protocol}{suffix}'] = {
      name: vigor_labels.side(
        part,
        satellites,
        {city: read[city, part.labels] for city in part.cities},
      )
      for name, part in parts.items()
    }
  return protocols


def _read_tiles(folder: pathlib.Path, city: str) -> list[str]:
  """The list of tiles; corrected labels may come without it."""
  choices = (folder / city, folder.parent / OFFICIAL / city)
  for choice in choices:
    path = _label_file(choice, vigor_labels.SATELLITE_LIST.removesuffix('.txt'))
    if path is not None:
      return vigor_labels.read_satellites(path)
  raise ValueError(
    f'no {choices[0] / vigor_labels.SATELLITE_LIST}: it makes the gallery'
  )


def _label_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  for suffix in ('', vigor_labels.CORRECTED):
    path = folder / f'{name}{suffix}.txt'
    if path.is_file():
      return path
  return None


def _find_pictures(
  root: pathlib.Path,
  view: str,
  entries: list[tuple[str, str]],
  *,
  places_of: dict[tuple[str, str], str],
  missing: list[tuple[str, str]],
  found: report.Report,
) -> list[tuple[str, str]]:
  """The entries (city, name) that are there; the rest goes into `missing`."""
  files = folders.Files(root)
  kept = []
  for city in vigor_labels.CITIES:
    names = [name for entry_city, name in entries if entry_city == city]
    inside = files.names(places_of[view, city])
    there = [name for name in names if name in inside]
    if names and not there:
      found.error(_explain_city(view, city, names, places_of, files))
      continue
    kept += [(city, name) for name in there]
    lost = [name for name in names if name not in inside]
    if lost:
      found.warning(
        f'{places_of[view, city]}/: {len(lost)} of {len(names)} listed pictures'
        f' are missing and left out: {report.listing(lost)}'
      )
      missing.extend(
        (official_path(view, city, name), 'listed, not in the download')
        for name in lost
      )
    if there:
      folders.sample(
        root,
        [f'{places_of[view, city]}/{name}' for name in there],
        what=f'{city}: {len(there)} pictures of {view}',
        aspect=ASPECTS[view],
        hint='Are panoramas and satellite tiles swapped, or resized?',
        found=found,
      )
  return kept


def _explain_city(
  view: str,
  city: str,
  names: list[str],
  places_of: dict[tuple[str, str], str],
  files: folders.Files,
) -> str:
  """Why none of a city's pictures is there."""
  folder = places_of[view, city]
  for other in vigor_labels.CITIES:
    if other != city and names[0] in files.names(places_of[view, other]):
      return (
        f'{folder}/ has none of the {len(names)} pictures of {city}; they are in'
        f' {places_of[view, other]}/: the folders of the cities are mixed up'
      )
  return (
    f'{folder}/ has none of the {len(names)} pictures of {city};'
    f' {files.example(f"{folder}/{names[0]}")}'
  )


def _compare(download: Download, found: report.Report) -> None:
  """Counts against those usually reported; panoramas a tile."""
  for protocol, sides in download.protocols.items():
    for part, side in sides.items():
      where = f'{protocol} {part}'
      queries, gallery = COUNTS[protocol.removesuffix('_corrected'), part]
      folders.compare_count(
        f'{where} panoramas', len(side.panoramas), queries, found
      )
      folders.compare_count(
        f'{where} satellite tiles', len(side.satellites), gallery, found
      )
      for what, entries in (
        ('panoramas', side.panoramas),
        ('satellite tiles', side.satellites),
      ):
        repeated = folders.repeated(name for _, name in entries)
        if repeated:
          found.warning(
            f'{where}: {what} listed more than once:'
            f' {report.listing(repeated, limit=3)}'
          )
      most = int(np.bincount(side.rows[:, 0]).max())
      if most > MAX_PANORAMAS_A_TILE:
        found.warning(
          f'{where}: a tile is the positive of {most} panoramas, of at most'
          f' {MAX_PANORAMAS_A_TILE} in the release'
        )
    both = set(sides['train'].panoramas) & set(sides['test'].panoramas)
    if both:
      names = sorted(name for _, name in both)
      found.warning(
        f'{protocol}: {len(both)} panoramas are in train and in test:'
        f' {report.listing(names, limit=3)}'
      )
    found.ok(
      f'{protocol}: '
      + ', '.join(
        f'{len(side.panoramas)} {part} panoramas with {len(side.satellites)}'
        ' tiles'
        for part, side in sides.items()
      )
    )
