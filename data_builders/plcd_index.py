"""`python -m data_builders.plcd_index --data_dir=D --out=DIR`

Writes the six index files of PLCD (`drone_id.txt`, ...), which its published
code reads from the folder train/, from a built data set. No picture is read.
Those of University-1652 are the published ones, byte for byte.
"""

import argparse
import pathlib
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from data_builders import records

VIEWS = ('drone', 'satellite', 'street')
VIEWS_PER_PLACE = 54  # that the published sampler takes for granted
_VERSION = re.compile(r'\d+\.\d+\.\d+')
# What np.load raises on a cut or foreign file.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_VIEW_ID = re.compile(r'.*(\d\d)\.[A-Za-z]+')

EXAMPLE = """\
example:
  python -m data_builders.plcd_index --data_dir=data --out=University-Release/train
"""


def index_files(paths: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """The six files: name -> text, one value a line.

  The class of a place is the rank of its folder. Rows are sorted by folder,
  then by file name, both as text (1, 10, 11, 2).

  Args:
    paths: 'drone', 'satellite' and 'street' -> paths of the training pictures
      in any order, such as 'train/drone/0839/image-01.jpeg'.

  Raises:
    ValueError: a path of another form, a drone picture without a number, or
      views of different places.

  Source: ZelongZeng/PLCD `index/*.txt`.
  """
  rows = {
    view: sorted(_parts(path, view) for path in paths[view]) for view in VIEWS
  }
  folders = {
    view: sorted({folder for folder, _ in rows[view]}) for view in VIEWS
  }
  for view in VIEWS[1:]:
    different = sorted(set(folders[view]) ^ set(folders['drone']))
    if different:
      raise ValueError(
        f'{len(different)} places have drone or {view} pictures but not both, '
        f'such as {different[:5]}; a class is the rank of its folder, which must '
        'be the same in all views'
      )
  classes = {folder: rank for rank, folder in enumerate(folders['drone'])}
  files = {}
  for view in VIEWS:
    lines = [f'/{view}/{folder}/{name}' for folder, name in rows[view]]
    files[f'{view}_path.txt'] = _text(lines)
    if view != 'street':
      ids = [str(classes[folder]) for folder, _ in rows[view]]
      files[f'{view}_id.txt'] = _text(ids)
  files['drone_view_id.txt'] = _text(
    [_view_id(folder, name) for folder, name in rows['drone']]
  )
  return dict(sorted(files.items()))


def paths_of(data_dir: pathlib.Path, name: str) -> dict[str, list[str]]:
  """View -> paths of the training pictures of a built data set.

  Args:
    data_dir: root of the built data sets.
    name: of the data set below it, such as 'university1652' (its latest
      version) or 'rendered_city/full'.

  Raises:
    ValueError: no such data set, it lacks one of `VIEWS`, or an index is
      damaged.
  """
  folder = _version_folder(data_dir / name)
  paths = {}
  for view in VIEWS:
    file = folder / records.index_file(f'train_{view}')
    if not file.is_file():
      raise ValueError(
        f'{file} is missing: {name} has no pictures train_{view}, or its build '
        'is damaged; PLCD needs drone, satellite and street pictures'
      )
    try:
      with np.load(file) as columns:
        paths[view] = np.char.decode(columns['path'], 'utf-8').tolist()
    except _UNREADABLE as error:
      raise ValueError(
        f'{file} cannot be read ({error}); build the data set anew with '
        '--overwrite'
      ) from error
  return paths


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the files; returns 0, or 1 after a message on standard error."""
  parser = argparse.ArgumentParser(
    prog='python -m data_builders.plcd_index',
    description=__doc__.split('\n', 2)[2],
    epilog=EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    *('--data_dir', '--data-dir'),
    type=pathlib.Path,
    required=True,
    help='root of the built data sets',
  )
  parser.add_argument(
    '--name',
    default='university1652',
    help='data set below it (default: university1652)',
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='folder to write to'
  )
  args = parser.parse_args(argv)
  try:
    paths = paths_of(args.data_dir, args.name)
    files = index_files(paths)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
      (args.out / name).write_bytes(text.encode())
      lines = text.count('\n')
      sys.stdout.write(f'{args.out / name}: {lines} lines\n')
  except (ValueError, OSError) as error:
    sys.stderr.write(f'{error}\n')
    return 1
  sys.stderr.write(_warning(paths['drone']))
  return 0


def _parts(path: str, view: str) -> tuple[str, str]:
  """'train/drone/0839/image-01.jpeg' -> ('0839', 'image-01.jpeg')."""
  parts = path.split('/')
  if len(parts) != 4 or parts[:2] != ['train', view]:
    raise ValueError(
      f'{path!r}: expected train/{view}/<place>/<file>, the folders of '
      'University-1652'
    )
  return parts[2], parts[3]


def _view_id(folder: str, name: str) -> str:
  match = _VIEW_ID.fullmatch(name)
  if match is None:
    raise ValueError(
      f'train/drone/{folder}/{name}: the name does not end in the two digits of '
      'its view, as image-07.jpeg does'
    )
  return match[1]


def _text(lines: Sequence[str]) -> str:
  return ''.join(f'{line}\n' for line in lines)


def _warning(drone: Sequence[str]) -> str:
  """What the published sampler would choke on, '' if nothing."""
  folders = [_parts(path, 'drone')[0] for path in drone]
  names, counts = np.unique(folders, return_counts=True)
  other = np.flatnonzero(counts != VIEWS_PER_PLACE)
  if not other.size:
    return ''
  return (
    f'warning: {other.size} of {names.size} places, such as {names[other[0]]}, '
    f'do not have {VIEWS_PER_PLACE} drone pictures; the published sampler works '
    'with no other number\n'
  )


def _version_folder(folder: pathlib.Path) -> pathlib.Path:
  """`folder` if it is a version of a data set, or its latest version."""
  if (folder / 'dataset_info.json').is_file():
    return folder
  versions = [
    path.parent
    for path in folder.glob('*/dataset_info.json')
    if _VERSION.fullmatch(path.parent.name)
  ]
  if not versions:
    raise ValueError(
      f'no data set in {folder}; build it with `python -m data_builders`, or '
      'name one with --data_dir and --name'
    )
  return max(versions, key=lambda path: [int(n) for n in path.name.split('.')])


if __name__ == '__main__':
  sys.exit(main())
