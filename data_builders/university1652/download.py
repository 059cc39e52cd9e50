"""The folders of University-1652: finds them, lists them, says what is wrong.

Only folders are listed and a few headers read, so this takes seconds for the
150,000 files of the release. People have subsets, other data sets in the same
layout, empty place folders: all of that is usable. Unusable is what the
builder could only misread.

Source: layumi/University1652-Baseline, image_folder.py and README.md.
"""

import dataclasses
import os
import pathlib

from data_builders import pictures, report
from data_builders.university1652 import release

LAYOUT = """\
<manual_dir>/                 the folder with train/ and test/ (University-Release)
  train/satellite/<id>/*      one picture a place
  train/drone/<id>/*          54 pictures a place
  train/street/<id>/*         optional
  train/google/<id>/*         optional
  test/query_drone/<id>/*     test/gallery_drone/<id>/*
  test/query_satellite/<id>/* test/gallery_satellite/<id>/*
  test/query_street/<id>/*    test/gallery_street/<id>/*   (optional)
  test/4K_drone/<id>/*        optional
where <id> is a number, the same in every view. Folders that you do not have
may be missing; place folders may be empty.
"""
VIEWS = {
  'train': ('satellite', 'drone', 'street', 'google'),
  'test': (
    'query_satellite',
    'gallery_satellite',
    'query_drone',
    'gallery_drone',
    'query_street',
    'gallery_street',
    '4K_drone',
  ),
}
OPTIONAL = ('train/street', 'train/google', 'test/4K_drone')
# Made by prepare_limit_view.py from train/drone: the same pictures again.
LIMITED_VIEWS = ('drone1', 'drone3', 'drone9', 'drone18', 'drone27')
ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.7z', '.rar', '.001', '.part')
QUERY_TASKS = (
  ('test/query_drone', 'test/gallery_satellite'),
  ('test/query_satellite', 'test/gallery_drone'),
  ('test/query_street', 'test/gallery_satellite'),
)
SAMPLED_HEADERS = 12
# With fewer known place numbers it is another data set in the same layout.
RELEASE_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Place:
  """One place folder of a view.

  Attributes:
    number: the folder's name as a number.
    files: pictures, relative to the root with forward slashes, in order.
  """

  number: int
  files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Download:
  """Root folder and, for each view such as 'train/drone', its places."""

  root: pathlib.Path
  views: dict[str, list[Place]]

  def numbers(self, view: str) -> set[int]:
    """The places of a view that have a picture."""
    return {p.number for p in self.views.get(view, ()) if p.files}


def inspect(
  manual_dir: str | os.PathLike,
) -> tuple[report.Report, Download | None]:
  """Lists a download; the second value is None if there is nothing usable."""
  folder = pathlib.Path(manual_dir).expanduser().absolute()
  found = report.Report(f'University-1652 in {folder}', LAYOUT)
  root = _find_root(folder, found)
  if root is None:
    return found, None
  views = {}
  for part in VIEWS:
    views.update(_list_part(root, part, found))
  download = Download(root, {v: p for v, p in views.items() if _count(p)})
  if not download.views and found.usable:
    found.error('no picture in any of the folders')
  _compare_views(download, found)
  _compare_release(download, found)
  return found, download if found.usable else None


def split_name(view: str) -> str:
  """'test/4K_drone' -> 'test_4k_drone'."""
  return view.replace('/', '_').lower()


def _count(places: list[Place]) -> int:
  return sum(len(place.files) for place in places)


def _folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Visible subfolders by name, sorted."""
  with os.scandir(folder) as entries:
    names = sorted(
      entry.name
      for entry in entries
      if entry.is_dir() and not entry.name.startswith(('.', '__MACOSX', '@'))
    )
  return {name: folder / name for name in names}


def _find_root(
  folder: pathlib.Path, found: report.Report
) -> pathlib.Path | None:
  """The folder with train/ and test/, up to two levels below `folder`."""
  if not folder.is_dir():
    found.error(f'{folder} is not a folder')
    return None
  level = [folder]
  for depth in range(3):
    roots = [f for f in level if not VIEWS.keys().isdisjoint(_folders(f))]
    if len(roots) == 1:
      if depth:
        found.note(f'using {roots[0].relative_to(folder)}/ in this folder')
      return roots[0]
    if roots:
      found.error(
        'several downloads here: '
        f'{report.listing(f.relative_to(folder) for f in roots)};'
        ' give --manual_dir one of them'
      )
      return None
    # Never walks into place folders: below a view there is no root.
    level = [
      child
      for parent in level
      for name, child in _folders(parent).items()
      if not name.isdigit()
    ]
  _explain_missing_root(folder, found)
  return None


def _explain_missing_root(folder: pathlib.Path, found: report.Report) -> None:
  """Says why there is neither train/ nor test/."""
  names = list(_folders(folder))
  views = {view for part in VIEWS.values() for view in part}
  if views.intersection(names):
    found.error(
      f'this is the {folder.name} folder itself; give its parent:'
      f' --manual_dir={folder.parent}'
    )
  elif folder.name in views and names and all(n.isdigit() for n in names):
    found.error(
      f'this is the view folder {folder.name}; give the folder above'
      f' {folder.parent.name}/: --manual_dir={folder.parent.parent}'
    )
  archives = [f.name for f in folder.iterdir() if f.suffix in ARCHIVES]
  if archives:
    found.error(f'not unpacked yet: {report.listing(sorted(archives))}')
  for name in names:
    part = report.nearest(name, tuple(VIEWS))
    if part:
      found.error(f'the folder {name}/ should be named {part}/')
  if found.usable:
    inside = report.listing(f'{name}/' for name in names) or 'no folders'
    found.error(f'neither train/ nor test/ here; there are: {inside}')


def _list_part(
  root: pathlib.Path, part: str, found: report.Report
) -> dict[str, list[Place]]:
  """The views of train/ or test/."""
  folders = _folders(root)
  if part not in folders:
    wrong = [n for n in folders if report.nearest(n, tuple(VIEWS)) == part]
    hint = f' (rename {wrong[0]}/?)' if wrong else ''
    found.warning(f'no {part}/{hint}')
    return {}
  inside = _folders(folders[part])
  views = {}
  for name in VIEWS[part]:
    view = f'{part}/{name}'
    if name in inside:
      views[view] = _list_view(root, view, found)
      continue
    wrong = [
      other
      for other in inside
      if other not in VIEWS[part] + LIMITED_VIEWS
      and report.nearest(other.replace('ground', 'street'), VIEWS[part]) == name
    ]
    if wrong:
      found.warning(f'no {view}/; rename {part}/{wrong[0]}/ if it is that')
    elif view in OPTIONAL or 'street' in name:
      found.note(f'no {view}/ (optional)')
    else:
      found.warning(f'no {view}/')
  for name in inside:
    if name in LIMITED_VIEWS:
      found.note(f'{part}/{name}/ left out: a selection of {part}/drone/')
    elif name not in VIEWS[part]:
      found.note(f'{part}/{name}/ left out: no folder of this layout')
  return views


def _list_view(
  root: pathlib.Path, view: str, found: report.Report
) -> list[Place]:
  """The places of one view, sorted by folder name, files sorted by name."""
  folder = root / view
  places: list[Place] = []
  names: dict[int, str] = {}
  strange, other_files = [], 0
  for name, place_folder in _folders(folder).items():
    files, others = _list_place(root, place_folder)
    other_files += others
    if not (name.isascii() and name.isdigit()):
      if files:
        strange.append(name)
      continue
    if int(name) in names:
      found.error(f'{view}: {names[int(name)]}/ and {name}/ are the same place')
    names[int(name)] = name
    places.append(Place(int(name), files))
  if strange:
    found.error(
      f'{view}: place folders must be numbers: {report.listing(strange)}'
    )
  loose = sum(pictures.is_picture(entry) for entry in os.listdir(folder))
  if loose:
    found.warning(
      f'{view}: {loose} pictures outside a place folder are left out'
    )
  if other_files:
    found.note(f'{view}: {other_files} files that are no pictures left out')
  _describe(root, view, places, found)
  return places


def _list_place(
  root: pathlib.Path, folder: pathlib.Path
) -> tuple[tuple[str, ...], int]:
  """Pictures below a place folder in the published order; other files."""
  files, others = [], 0
  # The order of torchvision's make_dataset: by folder path, then by name.
  for parent, _, names in sorted(os.walk(folder, followlinks=True)):
    for name in sorted(names):
      if pictures.is_picture(name):
        path = pathlib.PurePath(parent, name).relative_to(root)
        files.append(path.as_posix())
      elif not name.startswith('.') and name != 'Thumbs.db':
        others += 1
  return tuple(files), others


def _describe(
  root: pathlib.Path, view: str, places: list[Place], found: report.Report
) -> None:
  """One line with counts and sizes, one with empty folders."""
  count, filled = _count(places), sum(bool(p.files) for p in places)
  empty = [place.number for place in places if not place.files]
  if not count:
    found.warning(f'{view}: no picture')
    return
  files = [file for place in places for file in place.files]
  sizes: dict[str, None] = {}
  for file in files[:: max(1, len(files) // SAMPLED_HEADERS)]:
    try:
      sizes[pictures.header(root / file)] = None
    except OSError:
      found.warning(f'{file}: not a picture that Pillow can open')
  found.ok(
    f'{view}: {count} pictures of {filled} places'
    f' (sample: {report.listing(sizes, limit=3)})'
  )
  if empty:
    official = release.EMPTY.get(view, frozenset())
    same = ', as in the release' if set(empty) <= official else ''
    found.note(
      f'{view}: {len(empty)} empty place folders{same}: {report.listing(empty)}'
    )


def _compare_views(download: Download, found: report.Report) -> None:
  """Places that lack a counterpart, places of both train and test."""
  for query, gallery in QUERY_TASKS:
    if query in download.views and gallery in download.views:
      lost = download.numbers(query) - download.numbers(gallery)
      if lost:
        found.warning(
          f'{len(lost)} places of {query} are not in {gallery}:'
          f' {report.listing(sorted(lost))}'
        )
  train = [view for view in download.views if view.startswith('train/')]
  everywhere = set().union(*map(download.numbers, train))
  for view in train:
    lost = everywhere - download.numbers(view)
    if lost and lost != release.EMPTY.get(view):
      found.note(
        f'{view} lacks {len(lost)} places of the other views:'
        f' {report.listing(sorted(lost))}'
      )
  test = set().union(
    *(download.numbers(v) for v in download.views if v.startswith('test/'))
  )
  if everywhere & test:
    found.warning(
      f'{len(everywhere & test)} places are in train and in test:'
      f' {report.listing(sorted(everywhere & test))}'
    )


def _compare_release(download: Download, found: report.Report) -> None:
  """Numbers and counts against the official release; warnings only."""
  views = [view for view in download.views if view in release.PLACES]
  numbers = [(v, n) for v in views for n in download.numbers(v)]
  known = sum(number in release.PLACES[view] for view, number in numbers)
  if not numbers:
    return
  if known < RELEASE_SHARE * len(numbers):
    found.note(
      'place numbers are not those of the University-1652 release: taken for'
      ' another data set in its layout, counts are not compared'
    )
    return
  complete = True
  for view in views:
    strange = download.numbers(view) - release.PLACES[view]
    if strange:
      found.warning(
        f'{view}: {len(strange)} places that the release does not have there:'
        f' {report.listing(sorted(strange))}'
      )
    if view not in release.COUNTS:
      continue
    wanted, wanted_places = release.COUNTS[view]
    count, places = _count(download.views[view]), len(download.numbers(view))
    if (count, places) != (wanted, wanted_places):
      complete = False
      found.warning(
        f'{view}: {count} pictures of {places} places; the release has'
        f' {wanted} of {wanted_places}'
      )
  ground = ('train/street', 'train/google')
  if all(view in download.views for view in ground):
    count = sum(_count(download.views[view]) for view in ground)
    if count != release.TRAIN_GROUND_PICTURES:
      complete = False
      found.warning(
        f'train/street and train/google: {count} pictures together; the'
        f' release has {release.TRAIN_GROUND_PICTURES}'
      )
  if complete:
    found.ok('counts and place numbers as in the release')
