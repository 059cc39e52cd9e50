"""Small downloads of CVUSA, CVACT and VIGOR: the golden lists, tiny pictures.

The lists are the split files of tests/golden/frgeo/fixtures, in the official
formats; every picture that they name is written with colours of its own.
"""

import pathlib
import shutil
import zlib
from collections.abc import Iterable

import cv2
import numpy as np

from cvgl_jax.data import sources
from data_builders.cvact import lists as cvact_lists
from data_builders.cvusa import lists as cvusa_lists

FIXTURES = pathlib.Path(__file__).parent / 'golden/frgeo/fixtures'
# How what was built is read; builders and their tests import no cvgl_jax.
open_split = sources.open_split
split_names = sources.split_names
CITIES = ('NewYork', 'Seattle', 'SanFrancisco', 'Chicago')
SATELLITE_WH = (8, 8)
CVUSA_PANORAMA_WH = (44, 8)
PANORAMA_WH = (16, 8)  # CVACT, VIGOR


def picture(name: str, width_height: tuple[int, int]) -> bytes:
  """A file whose pixels follow from its name."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  pixels = rng.integers(0, 256, (*width_height[::-1], 3), np.uint8)
  return cv2.imencode(pathlib.PurePath(name).suffix, pixels)[1].tobytes()


def write(
  root: pathlib.Path, files: Iterable[str], width_height: tuple[int, int]
) -> None:
  """Writes pictures below `root`, each of its own name."""
  for file in files:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(path.name, width_height))


def cvusa(root: pathlib.Path) -> pathlib.Path:
  """24 training pairs, 9 test pairs, locations."""
  shutil.copytree(FIXTURES / 'CVUSA', root)
  for name in ('train-19zl.csv', 'val-19zl.csv'):
    pairs = cvusa_lists.read_pairs(root / 'splits' / name)
    write(root, (pair.satellite for pair in pairs), SATELLITE_WH)
    write(root, (pair.panorama for pair in pairs), CVUSA_PANORAMA_WH)
  return root


def cvact(root: pathlib.Path, *, missing: Iterable[str] = ()) -> pathlib.Path:
  """20 training pairs, 7 of val, 15 of test, without those of `missing` ids."""
  shutil.copytree(FIXTURES / 'CVACT', root)
  content = cvact_lists.read(root / 'ACT_data.mat')
  for split, folder in (
    ('train', 'ANU_data_small'),
    ('val', 'ANU_data_small'),
    ('test', 'ANU_data_test'),
  ):
    ids = [i for i in content.ids(split) if i not in set(missing)]
    satellites = (f'satview_polish/{i}_satView_polish.jpg' for i in ids)
    write(root / folder, satellites, SATELLITE_WH)
    panoramas = (f'streetview/{i}_grdView.jpg' for i in ids)
    write(root / folder, panoramas, PANORAMA_WH)
  return root


def vigor(
  root: pathlib.Path,
  *,
  satellite: str = '{city}/satellite',
  panorama: str = '{city}/panorama',
) -> pathlib.Path:
  """16 tiles and 24 panoramas a city, in folders of these patterns."""
  shutil.copytree(FIXTURES / 'VIGOR', root)
  for city in CITIES:
    lists = root / 'splits' / city
    tiles = (lists / 'satellite_list.txt').read_text().split()
    folder = satellite.format(city=city)
    write(root, (f'{folder}/{tile}' for tile in tiles), SATELLITE_WH)
    labels = (lists / 'pano_label_balanced.txt').read_text().splitlines()
    names = (line.split(' ')[0] for line in labels)
    folder = panorama.format(city=city)
    write(root, (f'{folder}/{name}' for name in names), PANORAMA_WH)
  return root
