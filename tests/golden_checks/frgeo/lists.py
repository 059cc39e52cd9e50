"""Pairs, labels and offsets of the official split files, as the builders read them."""

import pathlib

import numpy as np

from cvgl_jax.data import relations
from data_builders.cvact import download as cvact_download
from data_builders.cvact import lists as cvact_lists
from data_builders.cvusa import lists as cvusa_lists
from data_builders.vigor import download as vigor_download
from data_builders.vigor import labels as vigor_labels
from tests import golden_case

CVUSA_FILES = {'train': 'train-19zl.csv', 'test': 'val-19zl.csv'}


def fixtures(case: golden_case.Case, name: str) -> pathlib.Path:
  """The split files that a golden file is of: beside it, or the delivered."""
  folders = [
    root / 'fixtures' / name
    for root in (case.path.parent, golden_case.DEFAULT / 'frgeo')
  ]
  return next(folder for folder in folders if folder.is_dir())


def check_cvusa(case):
  root = fixtures(case, 'CVUSA')
  for split, name in CVUSA_FILES.items():
    pairs = cvusa_lists.read_pairs(root / 'splits' / name)
    case.equal(
      f'out/{split}',
      [
        (p.satellite, p.panorama, pathlib.PurePosixPath(p.satellite).stem)
        for p in pairs
      ],
    )


def check_cvact(case):
  root = fixtures(case, 'CVACT')
  content = cvact_lists.read(root / 'ACT_data.mat')
  missing = set(case['in/missing_ids'].tolist())
  for split in ('train', 'val', 'test'):
    case.equal(f'out/{split}_ids_in_mat_order', content.ids(split))
  for split in ('train', 'val'):
    kept = [
      [
        str(pathlib.PurePosixPath(file).relative_to('ANU_data_small'))
        for file in cvact_download.files_of(split, panorama)
      ]
      for panorama in content.ids(split)
      if panorama not in missing
    ]
    case.equal(f'out/{split}', kept)


def check_vigor(case):
  root = fixtures(case, 'VIGOR') / 'splits'
  satellites = {
    city: vigor_labels.read_satellites(root / city / 'satellite_list.txt')
    for city in vigor_labels.CITIES
  }
  for protocol, parts in vigor_labels.PROTOCOLS.items():
    for name, part in parts.items():
      side = vigor_labels.side(
        part,
        satellites,
        {
          city: vigor_labels.read_labels(
            root / city / f'{part.labels}.txt', satellites[city]
          )
          for city in part.cities
        },
      )
      prefix = f'out/{protocol}/{name}'
      for key, view, entries in (
        ('sat_list', 'satellite', side.satellites),
        ('list', 'panorama', side.panoramas),
      ):
        paths = [
          vigor_download.official_path(view, *entry) for entry in entries
        ]
        case.equal(f'{prefix}_{key}', paths)
      case.equal(f'{prefix}_label', side.rows)
      case.equal(f'{prefix}_delta', side.offset_px.astype(np.float32))
      if name == 'train':
        rows, queries = relations.covers(side.rows[:, 0])
        case.equal(f'{prefix}_sat_cover_list', rows)
        case.equal(f'{prefix}_sat_cover_dict', queries)
        case.equal(f'out/{protocol}/len_train', np.int64(2 * len(rows)))


CHECKS = {
  'cvusa_lists': check_cvusa,
  'cvact_lists': check_cvact,
  'vigor_lists': check_vigor,
}
