"""The folders of CVACT: finds them, reads the lists, says what is wrong.

Sources: zqwlearning/FRGeo-Code `dataset/CVACT.py`, Skyy93/Sample4Geo (layouts);
layumi/University1652-Baseline and LPN `prepare_cvact.py` (class folders).
"""

import dataclasses
import os
import pathlib

from data_builders import folders, report
from data_builders.cvact import lists

LAYOUT = """\
<manual_dir>/
  ACT_data.mat                     here or in ANU_data_small/
  ANU_data_small/streetview/<id>_grdView.jpg             1664x832: train, val
  ANU_data_small/satview_polish/<id>_satView_polish.jpg  1200x1200
  ANU_data_test/streetview/<id>_grdView.jpg              test (92,802 pairs)
  ANU_data_test/satview_polish/<id>_satView_polish.jpg
One of ANU_data_small/ and ANU_data_test/ may be missing.
"""
LISTS = ('ACT_data.mat', 'ANU_data_small/ACT_data.mat')
FOLDERS = {
  'train': 'ANU_data_small',
  'val': 'ANU_data_small',
  'test': 'ANU_data_test',
}
# Pairs of the lists; of train one lacks a file in the release itself.
PAIRS = {'train': 35_531, 'val': 8_884, 'test': 92_802}
PANORAMA_ASPECT = 1664 / 832
SATELLITE_ASPECT = 1.0
CROPPED = (
  'The builder wants the panoramas of the release, of the full sphere: the'
  ' middle half is cut out when they are read. Were these cut or resized by a'
  ' preparation script?'
)


@dataclasses.dataclass(frozen=True)
class Download:
  """What can be built.

  Attributes:
    root: the folder.
    lists: of ACT_data.mat.
    rows: 'train', 'val', 'test' -> rows of `lists` of which both pictures are
      there, in the published order.
    missing: (path, text) of pictures that the lists name in vain.
  """

  root: pathlib.Path
  lists: lists.Lists
  rows: dict[str, list[int]]
  missing: list[tuple[str, str]]


def files_of(split: str, panorama: str) -> tuple[str, str]:
  """Satellite picture and panorama of an id, below the root."""
  folder = FOLDERS[split]
  return (
    f'{folder}/satview_polish/{panorama}_satView_polish.jpg',
    f'{folder}/streetview/{panorama}_grdView.jpg',
  )


def inspect(
  manual_dir: str | os.PathLike,
) -> tuple[report.Report, Download | None]:
  """Looks at a download; the second value is None if it is not usable."""
  folder = pathlib.Path(manual_dir).expanduser().absolute()
  found = report.Report(f'CVACT in {folder}', LAYOUT)
  root = folders.find_root(
    folder, _is_root, found, wanted='ANU_data_small/ or ANU_data_test/'
  )
  if root is None:
    _explain(folder, found)
    return found, None
  files = [root / name for name in LISTS if (root / name).is_file()]
  if not files:
    found.error(f'no ACT_data.mat in {root} nor in ANU_data_small/')
    return found, None
  try:
    content = lists.read(files[0])
  except ValueError as error:
    found.error(str(error))
    return found, None
  found.ok(
    f'{files[0].relative_to(root)}: {len(content.panoramas)} panoramas, '
    + ', '.join(f'{name} {len(rows)}' for name, rows in content.splits.items())
  )
  download = Download(root, content, {}, [])
  there = folders.Files(root)
  for split, part in FOLDERS.items():
    if (root / part).is_dir():
      _find_pictures(split, there, download=download, found=found)
    else:
      found.warning(f'no {part}/: there will be no {split} splits')
  if found.usable and not download.rows:
    found.error('no pair of pictures')
  _compare(download, found)
  return found, download if found.usable else None


def _is_root(folder: pathlib.Path) -> bool:
  return any((folder / part).is_dir() for part in FOLDERS.values())


def _explain(folder: pathlib.Path, found: report.Report) -> None:
  """Layouts that are known, and not usable."""
  for part in ('train', 'val'):
    if (folder / part / 'satview_polish').is_dir():
      found.error(
        f'{part}/satview_polish/ is of a copy made by prepare_cvact.py: its'
        ' pictures are resized, panoramas cut, and red and blue of the'
        ' satellite pictures may be swapped. Use the download it was made from'
      )
      return
  if {'streetview', 'satview_polish'} <= set(folders.subfolders(folder)):
    found.error(
      'streetview/ and satview_polish/ must be in a folder ANU_data_small/'
      ' (train and val) or ANU_data_test/ (test)'
    )


def _find_pictures(
  split: str,
  files: folders.Files,
  *,
  download: Download,
  found: report.Report,
) -> None:
  """Keeps the pairs of which both pictures are there; fills `download`."""
  content = download.lists
  kept, lost, kept_files = [], [], []
  for row in content.splits[split].tolist():
    pair = files_of(split, content.panoramas[row])
    absent = [file for file in pair if file not in files]
    lost += absent
    if not absent:
      kept.append(row)
      kept_files.append(pair)
  if not kept:
    found.error(
      f'{split}: none of the {len(content.splits[split])} pairs is there: no'
      f' {lost[0]}; {files.example(lost[0])}'
    )
    return
  if lost:
    count = len(content.splits[split]) - len(kept)
    found.warning(
      f'{split}: {count} pairs are left out, these pictures are missing:'
      f' {report.listing(lost)}'
      + (' (in the release one pair of train is)' if split == 'train' else '')
    )
    download.missing.extend(
      (file, f'in the list of {split}, not in the download') for file in lost
    )
  download.rows[split] = kept
  for column, what, aspect, hint in (
    (1, 'panoramas', PANORAMA_ASPECT, CROPPED),
    (0, 'satellite pictures', SATELLITE_ASPECT, 'Are they of the release?'),
  ):
    folders.sample(
      download.root,
      [pair[column] for pair in kept_files],
      what=f'{split}: {len(kept)} {what}',
      aspect=aspect,
      hint=hint,
      found=found,
    )


def _compare(download: Download, found: report.Report) -> None:
  """Counts against the release; splits against each other."""
  for split, rows in download.rows.items():
    folders.compare_count(f'{split} pairs', len(rows), PAIRS[split], found)
  content = download.lists
  for name in content.splits:
    repeated = folders.repeated(content.ids(name))
    if repeated:
      found.warning(
        f'ACT_data.mat: {name} has these panoramas more than once:'
        f' {report.listing(repeated)}'
      )
  splits = {
    name: set(rows.tolist()) for name, rows in download.lists.splits.items()
  }
  for split in ('val', 'test'):
    both = splits['train'] & splits[split]
    if both:
      found.warning(
        f'ACT_data.mat: {len(both)} pairs are in train and in {split}'
      )
  if splits['val'] - splits['test']:
    found.warning(
      f'ACT_data.mat: {len(splits["val"] - splits["test"])} pairs of val are'
      ' not in test; in the release all are'
    )
