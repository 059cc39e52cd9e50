"""Panoramas: rolled, cut, made of satellite pictures; north is in the centre."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.data import augment_sample4geo, panorama
from cvgl_jax.models import recombination

POLAR = jax.jit(panorama.polar_transform, static_argnums=1)


def noise(number, height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(0, 255, (number, height, width, 3)).astype(np.float32)


def smooth(side):
  """[1, S, S, 3], slow waves."""
  y, x = np.mgrid[:side, :side] / side * 2 * np.pi
  waves = np.stack([np.sin(x), np.cos(2 * y), np.sin(x + y)], axis=-1)
  return (127 + 100 * waves).astype(np.float32)[None]


def compass(side):
  """Four triangles about the centre: north 1, east 2, south 3, west 4."""
  y, x = np.mgrid[:side, :side] - (side - 1) / 2
  upright = np.abs(y) > np.abs(x)
  value = np.where(upright, np.where(y < 0, 1, 3), np.where(x > 0, 2, 4))
  return np.repeat(value[None, :, :, None], 3, axis=-1).astype(np.float32)


@pytest.mark.parametrize('columns', [None, 5, 12])
def test_roll_left_is_a_roll_of_each_picture(columns):
  images, first = noise(5, 4, 12), np.array([0, 1, 5, 11, 6])
  ours = jax.jit(panorama.roll_left, static_argnums=2)(images, first, columns)
  for picture, start, rolled in zip(images, first, ours, strict=True):
    expected = np.roll(picture, -start, axis=1)[:, :columns]
    np.testing.assert_array_equal(rolled, expected)


@pytest.mark.parametrize('width', [50, 512, 616, 640])
def test_limit_view_rolls_to_the_right_as_published(width):
  angles = np.arange(360)
  columns = int(70 / 360 * width)
  images = np.repeat(noise(1, 1, width), 360, axis=0)
  ours = jax.jit(panorama.limit_view, static_argnums=2)(images, angles, columns)
  for angle in angles:
    x, r = images[0], int(angle / 360 * width)
    rolled = np.empty_like(x)
    rolled[:, r:] = x[:, : width - r]
    rolled[:, :r] = x[:, width - r :]
    np.testing.assert_array_equal(ours[angle], rolled[:, :columns])


def test_polar_columns_are_south_west_north_east_south():
  polar = np.asarray(POLAR(compass(64), (16, 80)))[0, :, :, 0]
  for azimuth, name in ((0, 3), (20, 4), (40, 1), (60, 2), (79, 3)):
    # The lowest rows are at the centre, where the triangles meet.
    np.testing.assert_allclose(polar[:14, azimuth], name, rtol=1e-6)


def test_the_top_row_of_a_polar_picture_is_far_from_the_centre():
  y, x = np.mgrid[:64, :64] - 31.5
  distance = np.repeat(np.hypot(x, y)[None, :, :, None], 3, axis=-1)
  rows = np.asarray(POLAR(distance, (16, 60)))[0, :, :, 0]
  expected = 32 * (16 - np.arange(16) - 0.5) / 16
  np.testing.assert_allclose(rows.mean(1), expected, atol=0.3)
  assert np.ptp(rows[1:], axis=1).max() < 0.5


@pytest.mark.parametrize('side', [8, 31, 64])
@pytest.mark.parametrize('size_hw', [(7, 16), (16, 64)])
def test_turning_a_satellite_picture_rolls_its_polar_picture(side, size_hw):
  images = noise(2, side, side)
  plain = np.asarray(POLAR(images, size_hw))
  for turns in (1, 2, 3):
    turned = POLAR(np.rot90(images, turns, axes=(1, 2)), size_hw)
    expected = np.roll(plain, -turns * size_hw[1] // 4, axis=2)
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-3)


def test_the_turn_of_a_pair_keeps_satellite_and_panorama_together():
  images, turns = noise(4, 32, 32), np.arange(4)
  plain = POLAR(images, (8, 32))
  turned = augment_sample4geo.turn(jnp.asarray(images), turns, 'satellite')
  rolled = augment_sample4geo.turn(plain, turns, 'panorama')
  assert not np.allclose(rolled[1], plain[1], atol=1)
  np.testing.assert_allclose(POLAR(turned, (8, 32)), rolled, rtol=0, atol=1e-3)


@pytest.mark.parametrize('seed', range(3))
def test_polar_transform_equals_a_loop(seed):
  rng = np.random.default_rng(seed)
  side, height, width = (int(n) for n in rng.integers(3, 20, 3))
  image = noise(1, side, side, seed)[0].astype(np.float64)
  expected = np.zeros((height, width, 3))
  at = lambda y, x: image[np.clip(y, 0, side - 1), np.clip(x, 0, side - 1)]
  for i in range(height):
    for j in range(width):
      radius = side / 2 * (height - i - 0.5) / height
      direction = 2 * np.pi * (j + 0.5) / width - np.pi
      y = side / 2 - radius * np.cos(direction) - 0.5
      x = side / 2 + radius * np.sin(direction) - 0.5
      top, left = int(np.floor(y)), int(np.floor(x))
      v, u = y - top, x - left
      expected[i, j] = (1 - v) * (1 - u) * at(top, left)
      expected[i, j] += (1 - v) * u * at(top, left + 1)
      expected[i, j] += v * (1 - u) * at(top + 1, left)
      expected[i, j] += v * u * at(top + 1, left + 1)
  ours = POLAR(image[None].astype(np.float32), (height, width))
  np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-3)


def test_polar_transform_is_the_script_of_safa_but_for_half_a_pixel():
  """`y = S/2 - S/2/H (H-1-i) sin(2 pi j/W)`, `x = S/2 + ... cos(...)`."""
  side, height, width = 256, 32, 128
  image = smooth(side)[0]
  i, j = np.mgrid[:height, :width]
  radius = side / 2 / height * (height - 1 - i)
  column = side / 2 - radius * np.sin(2 * np.pi * j / width)
  row = side / 2 + radius * np.cos(2 * np.pi * j / width)
  low = lambda x: np.clip(np.round(x).astype(int), 0, side - 1)
  published = image[low(row), low(column)]
  ours = np.asarray(POLAR(image[None], (height, width)))[0]
  # Their pixels are half a pixel of the polar picture off, up to 8 here.
  assert np.abs(ours - published).mean() < 8
  wrong = ours[:, ::-1]
  assert np.abs(wrong - published).mean() > 30


@pytest.mark.parametrize('view', ['satellite', 'panorama'])
def test_turning_a_picture_shifts_the_parts_that_frgeo_matches(view):
  """New part p = old part p + 1, for both views of a pair."""
  size_hw = (8, 8) if view == 'satellite' else (4, 16)
  picture = noise(1, *size_hw)
  parts = np.asarray(recombination.recombine(jnp.asarray(picture), cut=view))[0]
  assert np.ptp(parts, axis=0).min() > 1
  for turns in range(4):
    turned = augment_sample4geo.turn(
      jnp.asarray(picture), jnp.array([turns]), view
    )
    ours = recombination.recombine(turned, cut=view)[0]
    np.testing.assert_allclose(ours, np.roll(parts, -turns, axis=0), rtol=1e-5)


def test_quadrants_of_a_satellite_picture_are_quarters_of_its_polar_picture():
  quadrants = np.zeros((1, 64, 64, 3), np.float32)
  quadrants[:, :32, :32] = 1
  quadrants[:, :32, 32:] = 2
  quadrants[:, 32:, 32:] = 3
  polar = POLAR(quadrants, (16, 64))
  first, second = (
    recombination.recombine(jnp.asarray(x), cut=cut)
    for x, cut in ((quadrants, 'satellite'), (polar, 'panorama'))
  )
  np.testing.assert_allclose(second, first, rtol=0, atol=0.1)


def test_polar_transform_takes_square_pictures_only():
  with pytest.raises(ValueError, match='square satellite pictures, got 8x9'):
    panorama.polar_transform(jnp.zeros((1, 8, 9, 3)), (4, 8))


def test_bytes_become_floating_point():
  image = np.full((1, 8, 8, 3), 200, np.uint8)
  polar = POLAR(image, (4, 8))
  assert polar.dtype == jnp.float32
  np.testing.assert_allclose(polar, 200, rtol=1e-6)
