"""Pictures per second of the renderer, after compilation.

  taskset -c 0 python -m benchmarks.render        # one core
  python -m benchmarks.render --size=512          # whatever JAX finds

Prints seconds of compilation, pictures/s by the clock, and pictures per second
of processor time (what counts when the machine is busy with other things).
"""

import argparse
import sys
import time

import jax
import numpy as np

from data_builders.rendered_city import (
  cameras,
  cars,
  conditions,
  heights,
  render,
)
from data_builders.rendered_city import scene as sc


def scenes(view, count, size_px):
  """(hour, camera, weather, size) of `count` pictures of different places."""
  made = []
  for place in range(count):
    rng = np.random.default_rng(place)
    world = sc.make(0, 12 * place)
    weather = conditions.draw(rng, view)
    size_hw = (size_px, size_px)
    if view == 'satellite':
      camera = cameras.satellite(half_side_m=64)
    elif view == 'drone':
      eye, fov_deg = cameras.spiral(int(rng.integers(54)))
      camera = cameras.look_at(eye, (0, 0, 0), fov_deg=fov_deg)
    else:
      size_hw = (size_px, 4 * size_px)
      height = float(sc.terrain(world.eyes[0], world.bumps))
      camera = cameras.panorama(
        (*world.eyes[0], height + 2), ground_m=height, size_hw=size_hw
      )
    busy = cars.with_cars(world, rng)
    hour = render.Hour(busy, heights.make(world), weather.sun)
    made.append((hour, camera, weather, size_hw))
  return made


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--oversample', type=int, default=1)
  parser.add_argument('--pictures', type=int, default=60)
  args = parser.parse_args(argv)
  out = sys.stdout
  out.write(f'{jax.devices()}, {args.size} px, {args.oversample}^2 rays\n')
  for view in ('satellite', 'drone', 'panorama'):
    todo = scenes(view, 12, args.size)

    def take(i, todo=todo):
      hour, camera, weather, size_hw = todo[i % len(todo)]
      return np.asarray(
        render.picture(
          hour, camera, weather, size_hw=size_hw, oversample=args.oversample
        )
      )

    start = time.perf_counter()
    take(0)
    first_s = time.perf_counter() - start
    clock, cpu = time.perf_counter(), time.process_time()
    for i in range(args.pictures):
      take(i)
    clock = time.perf_counter() - clock
    cpu = time.process_time() - cpu
    out.write(
      f'{view:10s} first {first_s:5.1f} s, then {args.pictures / clock:6.1f}'
      f' pictures/s ({args.pictures / cpu:6.1f} per CPU second)\n'
    )


if __name__ == '__main__':
  main()
