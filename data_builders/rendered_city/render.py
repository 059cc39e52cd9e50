"""Renders pictures of a scene. Pure JAX, runs on any device.

world = scene.make(seed, place)
hour = Hour(world, heights.make(world), weather.sun)
pixels = picture(hour, camera, weather, size_hw=(256, 256))
"""

import functools
from collections.abc import Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np

from data_builders.rendered_city import (
  cameras,
  conditions,
  ground,
  heights,
  light,
  patterns,
  surface,
  trace,
)
from data_builders.rendered_city import scene as sc


def shade(
  rays: trace.Rays,
  hit: trace.Hit,
  world: Mapping[str, jax.Array],
  weather: Mapping[str, jax.Array],
) -> jax.Array:
  """[3, T, R] radiance.

  Args:
    rays, hit: [T, R], of trace.py.
    world: of Hour.
    weather: of conditions.Conditions.arrays.
  """
  base, bumps = world['ground'], world['bumps']
  sun, sun_colour = weather['sun'], weather['sun_colour']
  sky_colour, haze_colour = weather['sky_colour'], weather['haze_colour']
  dryness, autumn = weather['dryness'], weather['autumn']
  # One rank for colours [3, T, R] and for numbers per ray [1, T, R].
  rays, hit = jax.tree.map(lambda a: a[None] if a.ndim == 2 else a, (rays, hit))
  t = hit.t
  x, y = rays.ox + t * rays.dx, rays.oy + t * rays.dy
  z = rays.oz + t * rays.dz
  size = t * rays.spread + rays.width
  is_box, is_tree = hit.box >= 0, hit.tree >= 0
  is_sky = t >= trace.FAR_M
  # Ground that is seen flat has a long footprint.
  slanted = size / jnp.clip(jnp.sqrt(-jnp.minimum(rays.dz, 0.0)), 0.12, 1.0)

  # One noise lookup serves all materials; walls use their height.
  nu = jnp.where(is_box, x + y, x) + base[1]
  nv = jnp.where(is_box, x - y + 1.5 * z, y) + base[2]
  drift = weather['seed'] * 1e-3
  nu = jnp.where(is_sky, 2 * rays.dx / jnp.maximum(rays.dz, 0.05) + drift, nu)
  nv = jnp.where(is_sky, 2 * rays.dy / jnp.maximum(rays.dz, 0.05) + drift, nv)
  fine = patterns.noise(3.1 * nu, 3.1 * nv)
  fine = fine * jnp.clip(1.6 - size / 0.6, 0.0, 1.0)
  coarse = patterns.noise(0.23 * nu, 0.23 * nv)
  coarse = jnp.where(is_sky, patterns.noise(nu, nv), coarse)
  noises = (fine, coarse)

  albedo, gloss = ground.ground(
    x, y, slanted, noises, streets=world['streets'], areas=world['areas'],
    base=base, dryness=dryness, season=0.5 * dryness + 0.5 * autumn,
  )  # fmt: skip
  built = surface.box(hit.box, x, y, z, size, noises, world['boxes'])
  grown = surface.tree(
    hit.tree, x, y, z, world['trees'], dryness=dryness, autumn=autumn
  )

  def choose(on_ground, on_box, on_tree):
    return jnp.where(is_box, on_box, jnp.where(is_tree, on_tree, on_ground))

  albedo = choose(albedo, built.albedo, grown.albedo)
  gloss = choose(gloss, built.gloss, 0.0)
  nx = choose(0.0, built.nx, grown.nx)
  ny = choose(0.0, built.ny, grown.ny)
  nz = choose(1.0, built.nz, grown.nz)
  dark = choose(1.0, 1.0, grown.dark)

  above = z - trace.height(x, y, bumps)
  # Roofs and crowns are not shadowed by their own cells of the height map.
  lift = jnp.where(is_box & (nz > 0.1), 2.5, jnp.where(is_tree, 1.5, 0.3))
  aside = jnp.where(is_box & (nz < 0.1), 0.9, 0.0)
  px, py = x + aside * nx, y + aside * ny
  deep = light.lookup(world['shadow'], px, py) - above - lift
  lit = 1 - jnp.clip(deep / 0.8 + 0.5, 0.0, 1.0)
  lit = jnp.where(is_tree, jnp.maximum(lit, 0.25), lit)
  around = light.lookup(world['around'], px, py)
  open_sky = 1 / (1 + 0.13 * jnp.maximum(around - above, 0.0))
  facing = nx * sun[0] + ny * sun[1] + nz * sun[2]
  direct = jnp.where(
    is_tree, jnp.clip(0.25 + 0.75 * facing, 0.0, 1.0), jnp.maximum(facing, 0.0)
  )
  direct = direct * lit
  diffuse = (0.55 + 0.45 * nz) * open_sky * dark
  bounce = 0.12 * sun[2] * (1 - nz)
  colour = albedo * (
    (direct + bounce) * sun_colour[:, None, None]
    + diffuse * sky_colour[:, None, None]
  )

  # Mirrored sky in windows and water.
  ripple = 0.05 * fine
  along = rays.dx * nx + rays.dy * ny + rays.dz * nz
  rx, ry = rays.dx - 2 * along * nx + ripple, rays.dy - 2 * along * ny + ripple
  rz = rays.dz - 2 * along * nz
  sky_of = functools.partial(
    light.sky, sun=sun, sun_colour=sun_colour, sky_colour=sky_colour,
    haze_colour=haze_colour,
  )  # fmt: skip
  grazing = (1 - jnp.clip(jnp.abs(along), 0.0, 1.0)) ** 2
  grazing = 0.06 + 0.94 * grazing * grazing
  shown = sky_of(rx, ry, jnp.abs(rz), 0.3 * coarse) * (0.4 + 0.6 * lit)
  colour = colour + (shown - colour) * gloss * grazing

  haze = 1 - jnp.exp(-weather['haze_per_m'] * jnp.minimum(t, trace.FAR_M))
  haze = jnp.where(rays.width > 0, weather['haze_per_m'] * 200, haze)
  colour = colour + (haze_colour[:, None, None] - colour) * haze
  return jnp.where(is_sky, sky_of(rays.dx, rays.dy, rays.dz, coarse), colour)


def expose(radiance: jax.Array, weather: Mapping[str, jax.Array]) -> jax.Array:
  """Lens and sensor: [3, H, W] radiance -> uint8 [H, W, 3]."""
  side = jnp.exp(-0.5 / weather['blur_px'] ** 2)
  for axis in (1, 2):
    pad = [(0, 0), (0, 0), (0, 0)]
    pad[axis] = (1, 1)
    wide = jnp.pad(radiance, pad, mode='edge')
    n = radiance.shape[axis]
    low = jax.lax.slice_in_dim(wide, 0, n, axis=axis)
    high = jax.lax.slice_in_dim(wide, 2, n + 2, axis=axis)
    radiance = (radiance + side * (low + high)) / (1 + 2 * side)
  grey = radiance.mean(0, keepdims=True)
  radiance = grey + weather['saturation'] * (radiance - grey)
  gain = weather['gain'][:, None, None]
  film = 1 - jnp.exp(-1.05 * gain * jnp.maximum(radiance, 0.0))
  value = jnp.maximum(film, 1e-5) ** (weather['gamma'] / 2.1)
  bent = value * (1 - value) * (2 * value - 1)
  value = value + weather['contrast'] * bent
  value = value + weather['noise'] * _sensor_noise(value.shape, weather['seed'])
  value = jnp.clip(value * 255 + 0.5, 0, 255).astype(jnp.uint8)
  return jnp.moveaxis(value, 0, -1)


def _sensor_noise(shape, seed):
  """Standard deviation 1; four bytes of a hash of pixel and picture."""
  count = int(np.prod(shape))
  x = jax.lax.iota(jnp.uint32, count)
  x = x * jnp.uint32(747796405) + seed.astype(jnp.uint32) * jnp.uint32(
    2891336453
  )
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  x = x ^ (x >> 16)
  total = sum((x >> (8 * i)) & 255 for i in range(4)).astype(jnp.float32)
  return ((total - 510) / 147.8).reshape(shape)


# Three compilations, not one: XLA on a CPU would fuse each stage into all the
# places that read it and repeat its work (10 times slower).
@jax.jit
def _see(px, py, camera, world):
  rays = trace.make_rays(px, py, camera)
  hit = trace.trace(rays, world['boxes'], world['trees'], world['bumps'])
  return rays, hit


_shade = jax.jit(shade)


@functools.partial(jax.jit, static_argnames=('size_hw', 'oversample'))
def _expose(radiance, weather, *, size_hw, oversample):
  radiance = jnp.concatenate(radiance, 1)
  traced_hw = (size_hw[0] * oversample, size_hw[1] * oversample)
  radiance = jnp.stack([trace.untile(c, traced_hw) for c in radiance])
  radiance = einops.reduce(
    # Bright spots count as the film shows them, or edges stay jagged.
    jnp.minimum(radiance, 1.5),
    'c (h a) (w b) -> c h w', 'mean', a=oversample, b=oversample,
  )  # fmt: skip
  return expose(radiance, weather)


_shadow_map = jax.jit(light.shadow_map)


class Hour:
  """A place at one hour, on the device."""

  def __init__(
    self, scene: sc.Scene, height_maps: heights.Heights, sun: np.ndarray
  ):
    """The scene with its cars, its height maps, where the sun is."""
    names = ('boxes', 'trees', 'streets', 'areas', 'bumps', 'ground')
    self.world = jax.device_put(
      {name: getattr(scene, name) for name in names}
      | {'around': height_maps.around}
    )
    self.world['shadow'] = _shadow_map(
      height_maps.top, np.asarray(sun, np.float32)
    )


def picture(
  hour: Hour,
  camera: cameras.Camera,
  when: conditions.Conditions,
  *,
  size_hw: tuple[int, int],
  oversample: int = 1,
) -> jax.Array:
  """One picture, uint8 [H, W, 3] RGB.

  Args:
    hour: the place.
    camera: see cameras.py.
    when: the same hour's sun, season; sensor.
    size_hw: multiples of trace.TILE_PX.
    oversample: rays per pixel along each side; 2 makes smooth edges and takes
      four times as long.

  Raises:
    ValueError: the size is not a multiple of the tile.
  """
  h, w = size_hw
  traced_hw = (h * oversample, w * oversample)
  weather, eye = jax.device_put(
    (
      when.arrays(),
      camera.arrays() | {'height_px': np.float32(h * oversample)}
      | {'aspect': np.float32(w / h)},
    )
  )  # fmt: skip
  radiance = []
  for px, py in trace.chunks(traced_hw):
    rays, hit = _see(px, py, eye, hour.world)
    radiance.append(_shade(rays, hit, hour.world, weather))
  return _expose(radiance, weather, size_hw=(h, w), oversample=oversample)
