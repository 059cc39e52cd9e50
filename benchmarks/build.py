"""Pictures a second of the University-1652 builder, on generated pictures.

  python -m benchmarks.build [--places=40] [--processes 1 2 4]

Writes a download of 54 drone pictures (512 x 512) and a satellite picture a
place to a temporary folder, then times the check, the verification of one
picture after the other, the build with each number of processes, and random
reads of the result. CPU seconds include the worker processes.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from cvgl_jax.data import sources
from data_builders import pictures, prepare
from data_builders.university1652 import download

SIDE_PX, VIEWS = 512, 54
DISTINCT_PICTURES = 32


def write_download(folder: pathlib.Path, places: int) -> int:
  """The official folders with `places` places; returns the bytes."""
  rng = np.random.default_rng(0)
  files = []
  for _ in range(DISTINCT_PICTURES):
    coarse = rng.integers(0, 256, (SIDE_PX // 6, SIDE_PX // 6, 3), np.uint8)
    image = cv2.resize(coarse, (SIDE_PX, SIDE_PX))
    files.append(cv2.imencode('.jpg', image)[1].tobytes())
  size = 0
  for place in range(places):
    for view, count in (('drone', VIEWS), ('satellite', 1)):
      place_folder = folder / 'train' / view / f'{place:04d}'
      place_folder.mkdir(parents=True)
      for i in range(count):
        data = files[(place + i) % DISTINCT_PICTURES]
        (place_folder / f'image-{i + 1:02d}.jpeg').write_bytes(data)
        size += len(data)
  return size


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
  """Result, wall seconds, CPU seconds of this process and its children."""
  start, cpu = time.perf_counter(), _cpu_seconds()
  result = run()
  return result, time.perf_counter() - start, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
  usages = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def line(name: str, count: int, wall: float, cpu: float) -> None:
  sys.stdout.write(
    f'{name:<28} {count / wall:9.0f} /s wall {count / cpu:9.0f} /CPU-s\n'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--places', type=int, default=40)
  parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    size = write_download(root / 'in', args.places)
    count = args.places * (VIEWS + 1)
    sys.stdout.write(
      f'{count} pictures of {SIDE_PX} x {SIDE_PX}, {size / count / 1000:.0f} KB'
      ' each\n'
    )
    (_, found), wall, cpu = timed(lambda: download.inspect(root / 'in'))
    line('check', count, wall, cpu)
    files = [
      (root / 'in' / file, file)
      for place in found.views['train/drone']
      for file in place.files
    ]
    _, wall, cpu = timed(lambda: pictures.verified(files))
    line('read and verify', len(files), wall, cpu)
    prepare.builder_class('university1652')  # imports TFDS
    for processes in args.processes:
      _, wall, cpu = timed(
        lambda n=processes: prepare.prepare(
          'university1652',
          root / f'out{n}',
          manual_dir=root / 'in',
          num_processes=n,
        )
      )
      line(f'build, {processes} processes', count, wall, cpu)
    data_dir = root / f'out{args.processes[0]}'
    split, wall, cpu = timed(
      lambda: sources.open_split(data_dir, 'university1652', 'train_drone')
    )
    line('open a split (rows)', len(split), wall, cpu)
    split.image_bytes(0)
    rows = np.random.default_rng(1).permutation(len(split)).tolist()
    _, wall, cpu = timed(lambda: [split.image_bytes(row) for row in rows])
    line('random reads', len(rows), wall, cpu)


if __name__ == '__main__':
  main()
