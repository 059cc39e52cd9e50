"""Sample4Geo's training augmentation on the device.

For each picture: horizontal flip (both pictures of a pair or none), a turn that
keeps a pair a pair (the satellite picture r * 90 degrees counter-clockwise, the
panorama rolled to the left by r quarters of its width, so that what is up in the
one stays in the centre of the other), colour jitter, blur or sharpening, grid or
coarse dropout. JPEG compression comes before all of it, on the CPU
(`config.data.jpeg_p`).

What the two pictures of a pair share is drawn from the key and the position in
the batch alone, the rest from the name of the view too.

Source: Skyy93/Sample4Geo `sample4geo/transforms.py`, `dataset/*.py`;
albumentations 1.3 `ColorJitter`, `AdvancedBlur`, `Sharpen`, `GridDropout`,
`CoarseDropout`. The University-1652 recipe there (a random quarter turn of the
satellite picture alone) is the same thing on views without a panorama.
Differs: values stay floating point between the steps, each step clipped to
0 ... 255, where albumentations rounds to 8 bits (and hues to 2 degrees); the
flip follows the JPEG compression and the resize, not the other way round. The
turn comes first here and what is dropped is turned with it, which is the same
but at the edges that the filter mirrors; last, it would cost the most of all.
"""

import dataclasses
import zlib

import einops
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.data import augment, filters, panorama

MAX_HOLES = 25
MIN_HOLES = 10

_HUE = 3  # after brightness, contrast, saturation
_GREY = (0.299, 0.587, 0.114)
# Uniform numbers for one picture, by what they decide.
_DRAWS = {
  'jitter': 1,
  'factors': 4,
  'order': 4,
  'filter': 2,
  'sharpen': 2,
  'blur': 6,
  'noise': (2 * filters.RADIUS + 1) ** 2,
  'dropout': 2,
  'count': 1,
  'holes': 4 * MAX_HOLES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample4GeoTrain:
  """The training transforms of Sample4Geo; defaults are the published recipe.

  Attributes:
    flip_p: probability that both pictures of a pair are mirrored.
    rotate_p: probability that a pair is turned, by 90, 180 or 270 degrees:
      satellite pictures are rotated, panoramas rolled, other views left alone.
    jitter_p: probability of the colour jitter.
    color_jitter: (brightness, contrast, saturation, hue) strengths s: factors
      ~ U(1 - s, 1 + s), the hue shifted by U(-s, s) of the colour circle, in
      random order.
    filter_p: probability of a blur or of sharpening, equally likely.
    dropout_p: probability of grid or of coarse dropout, equally likely; what is
      dropped becomes black.
    grid_ratio: side of a hole of the grid, in units of the grid.
    grid_ratio_panorama: the same of panoramas.
  """

  flip_p: float = 0.5
  rotate_p: float = 0.75
  jitter_p: float = 0.5
  color_jitter: tuple[float, float, float, float] = (0.15, 0.15, 0.15, 0.15)
  filter_p: float = 0.3
  dropout_p: float = 0.3
  grid_ratio: float = 0.4
  grid_ratio_panorama: float = 0.5

  def __post_init__(self):
    for name in ('flip_p', 'rotate_p', 'jitter_p', 'filter_p', 'dropout_p'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name} is {getattr(self, name)}; expected 0 to 1')
    for name in ('grid_ratio', 'grid_ratio_panorama'):
      if not 0 < getattr(self, name) <= 1:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected more than 0, up to 1'
        )
    if min(self.color_jitter) < 0 or max(self.color_jitter) > 1:
      raise ValueError(
        f'color_jitter {self.color_jitter}; expected strengths from 0 to 1'
      )

  def check(self, view: str, size_hw: tuple[int, int]) -> None:
    """Raises ValueError where pictures of this view and size cannot be had."""
    augment.kind_of(view)
    height, width = size_hw
    if min(size_hw) <= filters.RADIUS and self.filter_p:
      raise ValueError(
        f'filter_p: pictures of view {view!r} are {height}x{width} pixels, the '
        f'blur needs more than {filters.RADIUS} rows and columns'
      )
    is_satellite = augment.first_word(view) == 'satellite'
    if is_satellite and height != width and self.rotate_p:
      raise ValueError(
        f'rotate_p: pictures of view {view!r} are {height}x{width} pixels; '
        'only square ones can be turned by 90 degrees'
      )

  def __call__(self, key: jax.Array, images: jax.Array, view: str) -> jax.Array:
    """Augments a batch of one view.

    Args:
      key: of the step, the same for all views: picture i of each is one pair.
      images: uint8 [B, H, W, 3].
      view: of the pictures; its first word is a key of `augment.KINDS`.

    Returns:
      float32 [B, H, W, 3], values in 0 ... 255.

    Raises:
      ValueError: `images` are not uint8 [B, H, W, 3], the view is unknown, or a
        satellite picture that is to be turned is not square.
    """
    augment.check_images(images)
    self.check(view, images.shape[1:3])
    size_hw = images.shape[1:3]
    keys = jax.random.split(key, len(images))
    flip, turns = jax.vmap(self._pair)(keys)
    word = zlib.crc32(view.encode()) & 0x7FFFFFFF
    own = jax.vmap(lambda one: _draws(jax.random.fold_in(one, word)))(keys)

    images = jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
    if self.rotate_p:
      images = turn(images, turns, view)
    images = images.astype(jnp.float32)
    if self.jitter_p:
      images = jax.vmap(self._jittered)(images, own)
    if self.filter_p:
      kernels = jax.vmap(self._kernel)(own)  # [B, 7, 7]
      images = jax.vmap(filters.filter_picture)(images, kernels)
    if self.dropout_p:
      is_panorama = augment.first_word(view) == 'panorama'
      ratio = self.grid_ratio_panorama if is_panorama else self.grid_ratio
      dropped = jax.vmap(lambda d: self._dropped(d, size_hw, ratio))(own)
      dropped = dropped[..., None]  # [B, H, W, 1]
      if self.rotate_p:
        dropped = turn(dropped, turns, view)
      images = jnp.where(dropped, 0.0, images)
    return images

  def _pair(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether it is mirrored, quarter turns 0 ... 3) of one pair."""
    draws = jax.random.uniform(key, (3,))
    turns = 1 + jnp.floor(3 * draws[2]).astype(jnp.int32)
    return draws[0] < self.flip_p, jnp.where(draws[1] < self.rotate_p, turns, 0)

  def _jittered(self, image: jax.Array, draws: dict) -> jax.Array:
    strength = jnp.asarray(self.color_jitter)
    neutral = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    factors = neutral + strength * (2 * draws['factors'] - 1)
    applies = draws['jitter'][0] < self.jitter_p
    factors = jnp.where(applies, factors, neutral)
    jittered = color_jitter(image, factors, jnp.argsort(draws['order']))
    return jnp.where(applies, jittered, image)

  def _kernel(self, draws: dict) -> jax.Array:
    """The filter of one picture, float32 [7, 7]."""
    applies, which = draws['filter']
    size, sigma_x, sigma_y, angle, beta, half = draws['blur']
    side = 2 * filters.RADIUS + 1
    blur = filters.blur_kernel(
      3 + 2 * jnp.floor(3 * size),
      sigma=jnp.stack([0.2 + 0.8 * sigma_x, 0.2 + 0.8 * sigma_y]),
      angle=jnp.pi * (angle - 0.5),
      beta=jnp.where(half < 0.5, 0.5 + 0.5 * beta, 1 + 7 * beta),
      noise=(0.9 + 0.2 * draws['noise']).reshape(side, side),
    )
    alpha, lightness = draws['sharpen']
    sharpen = filters.sharpen_kernel(0.2 + 0.3 * alpha, 0.5 + 0.5 * lightness)
    kernel = jnp.where(which < 0.5, blur, sharpen)
    return jnp.where(applies < self.filter_p, kernel, filters.identity_kernel())

  def _dropped(
    self, draws: dict, size_hw: tuple[int, int], ratio: float
  ) -> jax.Array:
    """Which pixels of one picture are dropped, bool [H, W]."""
    applies, which = draws['dropout']
    count = MIN_HOLES + jnp.floor((MAX_HOLES - MIN_HOLES + 1) * draws['count'])
    holes = coarse_holes(
      count, draws['holes'].reshape(4, MAX_HOLES), size_hw=size_hw
    )
    mask = jnp.where(which < 0.5, grid_holes(size_hw, ratio), holes)
    return mask & (applies < self.dropout_p)


def color_jitter(
  image: jax.Array, factors: jax.Array, order: jax.Array
) -> jax.Array:
  """Brightness, contrast, saturation and hue, in a given order.

  The first three are blends clip(d + f (x - d), 0, 255) with d = 0, the mean
  grey, the grey of the pixel; grey = 0.299 R + 0.587 G + 0.114 B.

  Args:
    image: float32 [H, W, 3] in 0 ... 255.
    factors: float32 [4], of brightness, contrast, saturation (1 is neutral) and
      the shift of the hue in parts of the circle.
    order: int [4], which of the four (0 ... 3) comes first, second, ...

  Returns:
    float32 [H, W, 3].
  """

  def step(planes: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
    grey = _GREY[0] * planes[0] + _GREY[1] * planes[1] + _GREY[2] * planes[2]
    base = jnp.where(which == 1, grey.mean(), grey)
    base = jnp.where(which == 0, 0.0, base)[None]  # [1, H, W]
    blend = jnp.clip(base + factors[which] * (planes - base), 0, 255)
    turned = shift_hue(planes, factors[_HUE])
    return jnp.where(which == _HUE, turned, blend), None

  # Plane by plane, twice as fast as pixel by pixel. A loop, since the compiler
  # would repeat the first steps inside the last.
  planes = einops.rearrange(image, 'h w c -> c h w')
  planes = jax.lax.scan(step, planes, order)[0]
  return einops.rearrange(planes, 'c h w -> h w c')


def shift_hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
  """Turns the hue, with the saturation and value of the HSV model kept.

  Args:
    planes: float32 [3, ...], red, green and blue.
    shift: scalar, in parts of the colour circle.

  Returns:
    float32 [3, ...].
  """
  red, green, blue = planes
  value = planes.max(0)
  chroma = value - planes.min(0)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  # The hue in sixths of the circle, counted from red.
  sector = jnp.where(
    value == red,
    (green - blue) / safe,
    jnp.where(
      value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe
    ),
  )
  channels = []
  for offset in (5, 3, 1):
    at = offset + sector + 6 * shift
    at = at - 6 * jnp.floor(at / 6)  # faster than %
    channels.append(
      value - chroma * jnp.clip(jnp.minimum(at, 4 - at), 0.0, 1.0)
    )
  return jnp.stack(channels)


def grid_holes(size_hw: tuple[int, int], ratio: float) -> np.ndarray:
  """The holes of grid dropout, bool [H, W]; they begin in the corner.

  Args:
    size_hw: (height, width) of the picture. The unit of the grid is a tenth of
      the width, in both directions.
    ratio: side of a hole in units.
  """
  height, width = size_hw
  unit = max(2, width // 10)
  sides = []
  for size, step in ((height, max(2, min(unit, height))), (width, unit)):
    hole = min(max(int(step * ratio), 1), step - 1)
    sides.append(np.arange(size) % step < hole)
  return sides[0][:, None] & sides[1][None, :]


def coarse_holes(
  count: jax.Array, draws: jax.Array, *, size_hw: tuple[int, int]
) -> jax.Array:
  """The holes of coarse dropout, bool [H, W].

  Sides are whole numbers from int(0.1 H) to int(0.2 H), corners such that the
  hole lies in the picture.

  Args:
    count: of holes; the rest of the draws is ignored.
    draws: [4, K] in [0, 1), for the height, width, top and left of each hole.
    size_hw: (height, width) of the picture.
  """
  height, width = size_hw
  least, most = int(0.1 * height), int(0.2 * height)
  tall, wide = least + jnp.floor((most - least + 1) * draws[:2])  # [K]
  # A picture may be narrower than a fifth of its height.
  wide = jnp.minimum(wide, width)
  top = jnp.floor((height - tall + 1) * draws[2])
  left = jnp.floor((width - wide + 1) * draws[3])
  counts = jnp.arange(draws.shape[1]) < count
  y, x = jnp.arange(height)[:, None], jnp.arange(width)[:, None]
  rows = (y >= top[None]) & (y < (top + tall)[None]) & counts[None]  # [H, K]
  columns = (x >= left[None]) & (x < (left + wide)[None])  # [W, K]
  hits = jnp.einsum(
    'hk,wk->hw', rows.astype(jnp.float32), columns.astype(jnp.float32)
  )
  return hits > 0.5


def turn(images: jax.Array, turns: jax.Array, view: str) -> jax.Array:
  """Turns what the pictures show, the same for both views of a pair.

  Args:
    images: [B, H, W, C]; satellite pictures are square.
    turns: int [B], 0 ... 3 quarter turns counter-clockwise of the satellite
      picture; the panorama is rolled to the left by as many quarters of its
      width, rounded up. Other views stay as they are.
    view: of the pictures.

  Returns:
    [B, H, W, C].
  """
  word = augment.first_word(view)
  if word == 'panorama':
    width = images.shape[2]
    return panorama.roll_left(images, (-(-width // 4) * turns) % width)
  if word != 'satellite':
    return images
  turns = turns[:, None, None, None]
  quarter = jnp.swapaxes(images, 1, 2)[:, ::-1]
  images = jnp.where(turns % 2 == 1, quarter, images)
  return jnp.where(turns >= 2, images[:, ::-1, ::-1], images)


def _draws(key: jax.Array) -> dict[str, jax.Array]:
  """One draw of everything: each call of the generator costs compile time."""
  ends = np.cumsum(list(_DRAWS.values()))
  parts = jnp.split(jax.random.uniform(key, (int(ends[-1]),)), ends[:-1])
  return dict(zip(_DRAWS, parts, strict=True))
