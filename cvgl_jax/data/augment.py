"""Training augmentation on the device: pure functions of (key, pictures).

`UniversityTrain` is the recipe of the University-1652 baseline; the functions
below it are its parts and take their random numbers as arguments, so that they
can be compared with recorded ones. All arithmetic is Pillow's on 8-bit values:
colour jitter, edge padding, rotation about the centre (nearest neighbour in
16.16 fixed point), crop, flip; then random erasing. Geometry is one gather: an
output pixel is traced back through flip, crop, rotation and padding.

Picture i of a batch draws from its own key, whatever the others are.

Source: layumi/University1652-Baseline `train.py`, `random_erasing.py`;
torchvision `RandomAffine`, `ColorJitter`; Pillow `Geometry.c`, `Blend.c`.
Differs: colour jitter acts after the resize, not on the original picture; only
the mean grey that `contrast` uses and rounding notice.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

MEAN_COLOR = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # ImageNet, 0 normalised
ERASING_ATTEMPTS = 100

# First word of a view's name -> which rotation it gets.
KINDS = {
  'satellite': 'satellite',
  'drone': 'drone',
  'video': 'drone',
  'street': 'ground',
  'google': 'ground',
  'ground': 'ground',
  'panorama': 'ground',
}

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugment:
  """Only the conversion to float32."""

  def check(self, view: str, size_hw: tuple[int, int]) -> None:
    """Takes pictures of any view and size."""

  def __call__(self, key: jax.Array, images: jax.Array, view: str) -> jax.Array:
    """Returns `images`, uint8 [B, H, W, 3], as float32; ignores the rest."""
    del key, view
    check_images(images)
    return images.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniversityTrain:
  """The training transform of the University-1652 baseline and extensions.

  Order: colour jitter, pad by `pad` (edge), rotation and zoom about the centre
  of the padded picture, random crop back to the size, flip, erasing (never of
  satellite pictures). Defaults are the published recipe.

  Attributes:
    pad: pixels added on every side before the crop.
    rotate_satellite_deg: angle ~ U(-x, x) of satellite pictures.
    rotate_drone_deg: the same of drone pictures (extension).
    rotate_ground_deg: the same of all other views (extension).
    zoom: (low, high); pictures are enlarged by a factor whose logarithm is
      uniform between them (extension); (1, 1) is off.
    color_jitter: (brightness, contrast, saturation) strengths s, each factor
      ~ U(max(0, 1 - s), 1 + s), in random order. The reference's
      `--color_jitter` is (0.1, 0.1, 0.1); all zero is off.
    fill: what rotation and zoom uncover: 'black' as in the reference, or
      'edge' (the nearest pixel of the picture).
    flip_p: probability of a horizontal flip.
    erasing_p: probability of random erasing.
    erasing_area: (low, high) erased fraction of the picture.
    erasing_ratio: (low, high) height / width of the erased rectangle.
  """

  pad: int = 10
  rotate_satellite_deg: float = 90.0
  rotate_drone_deg: float = 0.0
  rotate_ground_deg: float = 0.0
  zoom: tuple[float, float] = (1.0, 1.0)
  color_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
  fill: Literal['black', 'edge'] = 'black'
  flip_p: float = 0.5
  erasing_p: float = 0.0
  erasing_area: tuple[float, float] = (0.02, 0.4)
  erasing_ratio: tuple[float, float] = (0.3, 1 / 0.3)

  def __post_init__(self):
    if self.pad < 0:
      raise ValueError(f'pad is {self.pad} pixels; it must not be negative')
    if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]:
      raise ValueError(f'zoom {self.zoom}; expected 0 < low <= high')
    if len(self.color_jitter) != 3 or min(self.color_jitter) < 0:
      raise ValueError(
        f'color_jitter {self.color_jitter}; expected three strengths >= 0: '
        'brightness, contrast, saturation'
      )
    if self.fill not in ('black', 'edge'):
      raise ValueError(f"fill {self.fill!r}; expected 'black' or 'edge'")
    for name in ('flip_p', 'erasing_p'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name} is {getattr(self, name)}; expected 0 to 1')

  def check(self, view: str, size_hw: tuple[int, int]) -> None:
    """Raises ValueError where pictures of this view and size cannot be had."""
    del size_hw
    kind_of(view)

  def __call__(self, key: jax.Array, images: jax.Array, view: str) -> jax.Array:
    """Augments a batch of one view.

    Args:
      key: of the step; the views of a step draw different numbers from it.
      images: uint8 [B, H, W, 3].
      view: of the pictures; its first word is a key of `KINDS`.

    Returns:
      float32 [B, H, W, 3], values of the augmented 8-bit picture in 0 ... 255;
      erased pixels have the ImageNet mean colour.

    Raises:
      ValueError: `images` are not uint8 [B, H, W, 3], or the view is unknown.
    """
    check_images(images)
    kind = kind_of(view)
    key = jax.random.fold_in(key, zlib.crc32(view.encode()) & 0x7FFFFFFF)
    number = jnp.arange(images.shape[0])  # [B]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, number)
    return jax.vmap(lambda k, image: self._one(k, image, kind))(keys, images)

  def _one(self, key: jax.Array, image: jax.Array, kind: str) -> jax.Array:
    """One picture, uint8 [H, W, 3] -> float32 [H, W, 3]."""
    height, width, _ = image.shape
    # One draw of everything: each call of the generator costs compile time.
    erases = kind != 'satellite' and self.erasing_p > 0
    draws = jax.random.uniform(key, (14 + 2 * ERASING_ATTEMPTS * erases,))
    factors, order, crop, turn, erasing, attempts = jnp.split(
      draws, (3, 6, 8, 11, 14)
    )
    if any(self.color_jitter):
      strength = jnp.asarray(self.color_jitter)
      low = jnp.maximum(0.0, 1 - strength)
      factors = _between(factors, low, 1 + strength)
      image = color_jitter(image, factors, jnp.argsort(order))
    limit = {
      'satellite': self.rotate_satellite_deg,
      'drone': self.rotate_drone_deg,
      'ground': self.rotate_ground_deg,
    }[kind]
    top, left = _whole(crop, 2 * self.pad)
    image = warp(
      image,
      affine_coefficients(
        _between(turn[0], -limit, limit),
        jnp.exp(_between(turn[1], *map(math.log, self.zoom))),
        size_hw=(height + 2 * self.pad, width + 2 * self.pad),
      ),
      pad=self.pad,
      top=top,
      left=left,
      flip=turn[2] < self.flip_p,
      size_hw=(height, width),
      fill=self.fill,
    )
    image = image.astype(jnp.float32)
    if not erases:
      return image
    areas, ratios = jnp.split(attempts, 2)
    erased = erasing_mask(
      erasing[0],
      _between(areas, *self.erasing_area),
      _between(ratios, *self.erasing_ratio),
      corner=lambda room: _whole(erasing[1:], room),
      probability=self.erasing_p,
      size_hw=(height, width),
    )
    color = jnp.asarray(MEAN_COLOR, jnp.float32)
    return jnp.where(erased[:, :, None], color[None, None, :], image)


def color_jitter(
  image: jax.Array, factors: jax.Array, order: jax.Array
) -> jax.Array:
  """Brightness, contrast and saturation in a given order, as Pillow does.

  Each is a blend out = trunc(clip(d + f (x - d))) with d = 0 (brightness),
  the rounded mean of the grey picture (contrast), the grey of the pixel
  (saturation), grey = (19595 R + 38470 G + 7471 B + 32768) >> 16.

  Args:
    image: uint8 [H, W, 3].
    factors: float32 [3], of brightness, contrast, saturation; 1 is neutral.
    order: int [n], which of the three (0, 1, 2) comes first, second, ...

  Returns:
    uint8 [H, W, 3].
  """
  pixels = image.shape[0] * image.shape[1]
  weights = jnp.asarray([19595, 38470, 7471])[None, None, :]

  def blend(image: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
    values = image.astype(jnp.int32)
    grey = ((values * weights).sum(axis=-1) + 32768) >> 16  # [H, W]
    total = grey.sum(dtype=jnp.uint32)
    mean = ((2 * total + pixels) // (2 * pixels)).astype(jnp.int32)
    base = jnp.where(which == _CONTRAST, mean, grey)
    base = jnp.where(which == _BRIGHTNESS, 0, base)[:, :, None]
    difference = factors[which] * (values - base).astype(jnp.float32)
    # Pillow rounds the product before it adds. The maximum changes no value; it
    # keeps the compiler from fusing the two into one multiply-add.
    difference = jnp.maximum(difference, -1e30)
    return jnp.clip(base + difference, 0, 255).astype(jnp.uint8), None

  # A loop, since the compiler would repeat the first blends inside the last.
  return jax.lax.scan(blend, image, order)[0]


def affine_coefficients(
  angle_deg: jax.Array, zoom: jax.Array, *, size_hw: tuple[int, int]
) -> jax.Array:
  """Output pixel -> source pixel of a rotation and zoom about the centre.

  For the output pixel (x, y): source = (a2 + a0 x + a1 y) >> 16 horizontally
  and (a5 + a3 x + a4 y) >> 16 vertically; the picture turns clockwise.

  Args:
    angle_deg: scalar; in float64 the result is Pillow's, in float32 it may be
      off by a few 1/65536 of a pixel.
    zoom: scalar, enlargement of the picture.
    size_hw: (height, width) of the picture that is turned.

  Returns:
    int32 [6], (a0 ... a5) in units of 1/65536 pixel.
  """
  height, width = size_hw
  radians = angle_deg * (jnp.pi / 180)
  cos, sin = jnp.cos(radians) / zoom, jnp.sin(radians) / zoom
  x, y = width * 0.5, height * 0.5
  shift_x = (cos * -x + sin * -y) + x + 0.5 * cos + 0.5 * sin
  shift_y = (-sin * -x + cos * -y) + y - 0.5 * sin + 0.5 * cos
  matrix = jnp.stack([cos, sin, shift_x, -sin, cos, shift_y])
  return jnp.floor(matrix * 65536 + 0.5).astype(jnp.int32)


def warp(
  image: jax.Array,
  coefficients: jax.Array,
  *,
  pad: int,
  top: jax.Array | int,
  left: jax.Array | int,
  flip: jax.Array | bool,
  size_hw: tuple[int, int],
  fill: str = 'black',
) -> jax.Array:
  """Edge padding, affine map, crop and horizontal flip, as one gather.

  Args:
    image: uint8 [H, W, 3].
    coefficients: int32 [6] of `affine_coefficients` for the padded picture.
    pad: pixels of edge padding on every side before the map.
    top: first row of the crop in the padded picture.
    left: its first column.
    flip: whether the crop is mirrored.
    size_hw: (height, width) of the crop.
    fill: 'black' or 'edge', for source pixels outside the padded picture.

  Returns:
    uint8 [h, w, 3].
  """
  height, width, _ = image.shape
  rows, columns = size_hw
  y = (top + jnp.arange(rows))[:, None]
  x = jnp.arange(columns)
  x = (left + jnp.where(flip, columns - 1 - x, x))[None, :]
  a = coefficients
  source_x = (a[2] + a[0] * x + a[1] * y) >> 16  # [h, w]
  source_y = (a[5] + a[3] * x + a[4] * y) >> 16
  column = jnp.clip(source_x - pad, 0, width - 1)
  row = jnp.clip(source_y - pad, 0, height - 1)
  # One 32-bit word a pixel makes the gather about three times faster on CPUs.
  red, green, blue = jnp.moveaxis(image.astype(jnp.uint32), -1, 0)
  words = (red | (green << 8) | (blue << 16)).reshape(-1)
  words = words.at[row * width + column].get(mode='promise_in_bounds')
  if fill == 'black':
    inside = (source_x >= 0) & (source_x < width + 2 * pad)
    inside &= (source_y >= 0) & (source_y < height + 2 * pad)
    words = jnp.where(inside, words, 0)
  bands = [words & 255, (words >> 8) & 255, words >> 16]
  return jnp.stack(bands, axis=-1).astype(jnp.uint8)


def erasing_mask(
  chance: jax.Array,
  areas: jax.Array,
  ratios: jax.Array,
  *,
  corner: Callable[[jax.Array], jax.Array],
  probability: float,
  size_hw: tuple[int, int],
) -> jax.Array:
  """Which pixels random erasing covers, from explicit draws.

  The first attempt whose rectangle is smaller than the picture on both sides
  counts; nothing is erased when none is or when `chance` > `probability`.

  Args:
    chance: scalar in [0, 1).
    areas: [A] fraction of the picture, one an attempt.
    ratios: [A] height / width, one an attempt.
    corner: (H - eh, W - ew), int32 [2], to (top, left) between 0 and these.
    probability: of erasing.
    size_hw: (height, width) of the picture.

  Returns:
    bool [H, W].
  """
  height, width = size_hw
  target = areas * (height * width)
  heights = jnp.round(jnp.sqrt(target * ratios)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(target / ratios)).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  chosen = jnp.argmax(fits)
  tall, wide = heights[chosen], widths[chosen]
  applies = fits[chosen] & (chance <= probability)
  room = jnp.maximum(jnp.stack([height - tall, width - wide]), 0)
  top, left = corner(room)
  y = jnp.arange(height)[:, None]
  x = jnp.arange(width)[None, :]
  covered = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
  return covered & applies


def _between(unit: jax.Array, low: Any, high: Any) -> jax.Array:
  """Maps [0, 1) to [low, high)."""
  return low + (high - low) * unit


def _whole(unit: jax.Array, high: Any) -> jax.Array:
  """Maps [0, 1) to whole numbers 0 ... high, all equally likely."""
  return jnp.floor(unit * (high + 1)).astype(jnp.int32)


def first_word(view: str) -> str:
  """'panorama' of 'panorama', 'panorama2', 'panorama_night'."""
  return view.split('_')[0].rstrip('0123456789')


def kind_of(view: str) -> str:
  """'satellite', 'drone' or 'ground', of a view by its first word.

  Raises:
    ValueError: not a word of `KINDS`.
  """
  word = first_word(view)
  if word not in KINDS:
    raise ValueError(
      f'no augmentation is defined for view {view!r}; the name of a view '
      f'begins with one of {list(KINDS)}'
    )
  return KINDS[word]


def check_images(images: jax.Array) -> None:
  """Raises ValueError unless `images` are uint8 [B, H, W, 3]."""
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
    raise ValueError(
      f'augmentation got {images.dtype} {images.shape}; expected uint8 '
      '[batch, height, width, 3]'
    )
