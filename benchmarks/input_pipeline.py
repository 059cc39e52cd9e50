"""Speed of the input pipeline: `python -m benchmarks.input_pipeline`.

Prints a Markdown table: pictures per CPU-second (that is, per core, on a busy
machine too) of decoding, resizing and of whole batches from `stream`, for JPEG
files of 256 and 512 pixels; and pictures per second of the augmentation on the
default device. Pictures are made up unless --folder gives real ones.
"""

import argparse
import io
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from cvgl_jax.data import augment, resizing, stream, transforms


class MemorySplit:
  """Pictures in memory; every one a place of its own."""

  def __init__(self, files: Sequence[bytes]):
    self.name, self.view, self.files = 'memory_drone', 'drone', files
    self.place = np.arange(len(files))
    self.path = np.array([f'{n}.jpg' for n in range(len(files))])

  def __len__(self) -> int:
    return len(self.files)

  def image_bytes(self, row: int) -> bytes:
    return self.files[row]


def made_up(number: int, size_px: int) -> list[bytes]:
  """JPEG files with detail at all scales, about as large as photographs."""
  rng = np.random.default_rng(0)
  files = []
  for _ in range(number):
    total = np.zeros((size_px, size_px, 3))
    for cells in (4, 16, 64, size_px):
      noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
      layer = Image.fromarray(noise).resize((size_px, size_px), 3)
      total += np.asarray(layer, float) * 4 / cells**0.5 / 4.5
    picture = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    files.append(encoded(picture))
  return files


def from_folder(folder: str, number: int, size_px: int) -> list[bytes]:
  """JPEG files from real ones, scaled to the size."""
  paths = sorted(pathlib.Path(folder).rglob('*.jp*g'))[:number]
  if not paths:
    raise ValueError(f'{folder}: no .jpg or .jpeg files below it')
  return [
    encoded(Image.open(path).convert('RGB').resize((size_px, size_px), 3))
    for path in paths
  ]


def encoded(picture: Image.Image) -> bytes:
  file = io.BytesIO()
  picture.save(file, 'JPEG', quality=90)
  return file.getvalue()


def cpu_rate(run: Callable[[], int], repeats: int = 3) -> float:
  """Pictures per CPU-second of `run`, which returns how many it made."""
  best = 0.0
  for _ in range(repeats):
    start = time.process_time()
    number = run()
    best = max(best, number / (time.process_time() - start))
  return best


def wall_rate(step: Callable[[], jax.Array], number: int) -> float:
  """Pictures per second of a jitted step of `number` pictures."""
  step().block_until_ready()
  durations = []
  for _ in range(10):
    start = time.perf_counter()
    step().block_until_ready()
    durations.append(time.perf_counter() - start)
  return number / min(durations)


def stream_rate(files: Sequence[bytes], load: transforms.Loader) -> float:
  split = MemorySplit(files)
  rows = np.arange(len(files) // 32 * 32).reshape(-1, 32, 1)

  def run() -> int:
    batches = stream.batches(
      {'drone': split},
      rows,
      views=('drone',),
      load=load,
      labels=None,
      seed=0,
      epoch=0,
    )
    return sum(len(batch['drone']['label']) for batch in batches)

  return cpu_rate(run)


def input_rows(files: Sequence[bytes], size_px: int) -> list[tuple[str, float]]:
  images = [transforms.decode(data, 'x') for data in files]
  size_hw = (256, 256) if size_px > 256 else (224, 224)
  name = f'{size_px} px'
  rows = [
    (
      f'{name}: decode',
      cpu_rate(lambda: len([transforms.decode(d, 'x') for d in files])),
    ),
    (
      f'{name}: resize to {size_hw[0]}, Pillow bicubic',
      cpu_rate(
        lambda: len([resizing.resize_pillow(i, size_hw) for i in images])
      ),
    ),
    (
      f'{name}: resize to {size_hw[0]}, area',
      cpu_rate(lambda: len([resizing.resize_area(i, size_hw) for i in images])),
    ),
  ]
  for label, options in {
    'as stored': {'image_size': (size_px, size_px)},
    f'{size_hw[0]}, Pillow bicubic': {'image_size': size_hw},
    f'{size_hw[0]}, area': {'image_size': size_hw, 'resize': 'area'},
    f'{size_hw[0]}, area, AutoAugment': {
      'image_size': size_hw,
      'resize': 'area',
      'autoaugment': 'imagenet',
    },
  }.items():
    rate = stream_rate(files, transforms.Loader(**options))
    rows.append((f'{name}: batches of 32, {label}', rate))
  return rows


def augment_rows(batch_size: int, size_px: int) -> list[tuple[str, float]]:
  shape = (batch_size, size_px, size_px, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  images, key = jax.device_put(images), jax.random.key(0)
  jitter = (0.1, 0.1, 0.1)
  rows = []
  for label, view, recipe in (
    ('drone', 'drone', augment.UniversityTrain()),
    ('satellite, rotated', 'satellite', augment.UniversityTrain()),
    ('colour jitter', 'drone', augment.UniversityTrain(color_jitter=jitter)),
    ('erasing', 'drone', augment.UniversityTrain(erasing_p=0.5)),
  ):
    step = jax.jit(lambda k, x, r=recipe, v=view: r(k, x, v))
    rate = wall_rate(lambda s=step: s(key, images), batch_size)
    rows.append((f'augment {batch_size} x {size_px} px: {label}', rate))
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--folder', help='real JPEG files instead of made-up ones'
  )
  parser.add_argument('--number', type=int, default=128, help='pictures')
  options = parser.parse_args()
  write = sys.stdout.write
  write('| input pipeline, CPU | pictures / CPU-second |\n| --- | ---: |\n')
  for size_px in (256, 512):
    if options.folder:
      files = from_folder(options.folder, options.number, size_px)
    else:
      files = made_up(options.number, size_px)
    kilobytes = np.mean([len(data) for data in files]) / 1024
    for label, rate in input_rows(files, size_px):
      write(f'| {label} ({kilobytes:.0f} KB) | {rate:.0f} |\n')
  device = jax.devices()[0].device_kind
  write(f'\n| augmentation, {device} | pictures / second |\n| --- | ---: |\n')
  for size_px in (112, 256):
    for label, rate in augment_rows(64, size_px):
      write(f'| {label} | {rate:.0f} |\n')


if __name__ == '__main__':
  main()
