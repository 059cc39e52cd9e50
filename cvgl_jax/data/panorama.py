"""Pictures whose left edge is their right edge, on the device.

Panoramas have north in the centre column, and the direction grows clockwise to
the right: south is at both edges. `roll_left` turns them, `limit_view` leaves a
part of them, `polar_transform` makes one of a satellite picture:

Column j of a polar picture [H, W] is the direction a_j = 360 (j + 0.5) / W - 180
degrees from north. Row i is the distance r_i = (H - i - 0.5) / H of half the side
S of the satellite picture: the top row is far from the centre, the bottom row at
it. The colour is taken at

  row    = S/2 - S/2 r_i cos(a_j) - 0.5
  column = S/2 + S/2 r_i sin(a_j) - 0.5

(pixel centres are whole numbers), bilinearly, the edge repeated. Turning the
satellite picture by 90 degrees counter-clockwise rolls the polar picture by W/4
columns to the left.

Source: Shi, Liu, Yu, Li, "Spatial-Aware Feature Aggregation for Cross-View
Image based Geo-Localization", NeurIPS 2019 (SAFA), section 3.1 and its data
preparation script; `LimitedFoV` of zqwlearning/FRGeo-Code `dataset/*.py`.
Differs: SAFA's script (which, unlike its printed formula, has north in the centre
too) samples at the corners of pixels, half a pixel off; the turn by 90 degrees
would not be exact.
"""

import jax
import jax.numpy as jnp
import numpy as np

ANGLES = 360  # whole degrees that an unknown orientation may have


def roll_left(
  images: jax.Array, first: jax.Array, columns: int | None = None
) -> jax.Array:
  """Every panorama from its own first column on, around the edge.

  y[:, j] = x[:, (first + j) mod W] for j < columns.

  Args:
    images: [B, H, W, C].
    first: int [B], 0 ... W - 1.
    columns: of the result, up to W; None: W.

  Returns:
    [B, H, columns, C] of the same type.
  """
  columns = images.shape[2] if columns is None else columns

  def cut(image: jax.Array, start: jax.Array) -> jax.Array:
    around = jnp.concatenate([image, image[:, :columns]], axis=1)
    return jax.lax.dynamic_slice_in_dim(around, start, columns, axis=1)

  return jax.vmap(cut)(images, first)


def limit_view(
  images: jax.Array, angles_deg: jax.Array, columns: int
) -> jax.Array:
  """Rolls panoramas to the right by an angle and keeps the first columns.

  y[:, j] = x[:, (j - r) mod W] for j < columns, r = int(angle / 360 W).

  Args:
    images: [B, H, W, C].
    angles_deg: int [B], 0 ... 359.
    columns: that are kept, up to W.

  Returns:
    [B, H, columns, C] of the same type.
  """
  width = images.shape[2]
  # A table, since this product is rounded as the reference does, in float64.
  shift = np.array([int(a / ANGLES * width) for a in range(ANGLES)], np.int32)
  first = (width - jnp.asarray(shift)[angles_deg]) % width  # [B]
  return roll_left(images, first, columns)


def polar_transform(images: jax.Array, size_hw: tuple[int, int]) -> jax.Array:
  """Satellite pictures as polar pictures.

  Args:
    images: [B, S, S, C], north up, uint8 or floating point.
    size_hw: (height, width) of the result in pixels.

  Returns:
    float32 [B, height, width, C].

  Raises:
    ValueError: the pictures are not square.
  """
  _, side, columns, _ = images.shape
  if side != columns:
    raise ValueError(
      f'the polar transform takes square satellite pictures, got {side}x'
      f'{columns} pixels'
    )
  images = images.astype(jnp.float32)
  at_row, at_column = (
    _taps(x, side) for x in source_coordinates(side, size_hw)
  )

  def sample(image: jax.Array) -> jax.Array:
    """[S, S, C] -> [H, W, C]."""
    total = 0
    for row, row_weight in at_row:
      for column, column_weight in at_column:
        weight = (row_weight * column_weight).astype(np.float32)
        total = total + image[row, column] * weight[..., None]
    return total

  return jax.vmap(sample)(images)


def source_coordinates(
  side: int, size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Where the pixels of a polar picture lie in the satellite picture.

  Args:
    side: of the satellite picture in pixels.
    size_hw: (height, width) of the polar picture.

  Returns:
    (row, column), each float64 [height, width], in pixels of the satellite
    picture, 0 at the centre of the first; partly outside of 0 ... side - 1.
  """
  height, width = size_hw
  distance = ((height - np.arange(height) - 0.5) / height)[:, None]
  azimuth = (2 * np.pi * (np.arange(width) + 0.5) / width - np.pi)[None, :]
  row = side / 2 - side / 2 * distance * np.cos(azimuth) - 0.5
  column = side / 2 + side / 2 * distance * np.sin(azimuth) - 0.5
  return row, column


def _taps(
  at: np.ndarray, size: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
  """The two pixels beside a coordinate, and their weights."""
  low = np.floor(at)
  weight = at - low
  return tuple(
    (np.clip(low + i, 0, size - 1).astype(np.int32), w)
    for i, w in ((0, 1 - weight), (1, weight))
  )
