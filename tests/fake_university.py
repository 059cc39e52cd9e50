"""A small download in the folders of University-1652, made with cv2."""

import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

# Numbers of the release: three places of train, two query, one distractor.
TRAIN, QUERY, DISTRACTOR = (839, 842, 843), (0, 1), (2,)
VIEWS: dict[str, tuple[Sequence[int], int]] = {
  'train/satellite': (TRAIN, 1),
  'train/drone': (TRAIN, 3),
  'train/street': (TRAIN, 2),
  'test/query_satellite': (QUERY, 1),
  'test/gallery_satellite': (QUERY + DISTRACTOR, 1),
  'test/query_drone': (QUERY, 2),
  'test/gallery_drone': (QUERY + DISTRACTOR, 2),
}


def picture(seed: int, *, size_px: int = 32) -> np.ndarray:
  """A smooth random picture, uint8 [size, size, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return cv2.resize(coarse, (size_px, size_px))


def jpeg(seed: int, *, size_px: int = 32) -> bytes:
  """The same as a JPEG file."""
  return cv2.imencode('.jpg', picture(seed, size_px=size_px))[1].tobytes()


def write(
  folder: pathlib.Path,
  views: Mapping[str, tuple[Sequence[int], int]] | None = None,
  *,
  first_seed: int = 0,
) -> pathlib.Path:
  """Writes view -> (place numbers, pictures a place); returns `folder`."""
  seed = first_seed
  for view, (places, count) in (VIEWS if views is None else views).items():
    for place in places:
      place_folder = folder / view / f'{place:04d}'
      place_folder.mkdir(parents=True)
      for i in range(1, count + 1):
        name = f'image-{i:02d}.jpeg' if 'drone' in view else f'{i}.jpg'
        if 'satellite' in view:
          name = f'{place:04d}.jpg'
        (place_folder / name).write_bytes(jpeg(seed))
        seed += 1
  return folder
