"""Sample4Geo's augmentation: parts against OpenCV, the recipe by properties."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.data import augment_sample4geo as sample4geo
from cvgl_jax.data import filters

OFF = {
  'flip_p': 0.0,
  'rotate_p': 0.0,
  'jitter_p': 0.0,
  'filter_p': 0.0,
  'dropout_p': 0.0,
}
FULL = sample4geo.Sample4GeoTrain(jitter_p=1.0, filter_p=1.0, dropout_p=1.0)


def only(**options):
  return sample4geo.Sample4GeoTrain(**(OFF | options))


def pictures(number=6, height=24, width=24, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (number, height, width, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 3))
def jitted(recipe, key, images, view):
  return recipe(key, images, view)


def run(recipe, images, view='satellite', seed=0):
  return np.asarray(jitted(recipe, jax.random.key(seed), images, view))


def turns_of(images, ours, turn):
  """The only r of 0 ... 3 for which turn(image, r) is what came out."""
  found = [
    [r for r in range(4) if np.array_equal(turn(before, r), after)]
    for before, after in zip(images, ours, strict=True)
  ]
  assert all(len(r) == 1 for r in found)
  return np.array(found)[:, 0]


def test_all_probabilities_zero_change_nothing():
  for view in ('satellite', 'panorama', 'drone'):
    ours = run(only(), pictures(), view)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, pictures())


def test_a_pair_is_flipped_together():
  recipe = only(flip_p=0.5)
  satellite, panorama = pictures(200), pictures(200, 4, 16)
  flipped = {}
  for view, images in (('satellite', satellite), ('panorama', panorama)):
    ours = run(recipe, images, view)
    flipped[view] = (ours == images[:, :, ::-1]).all((1, 2, 3))
    keep = ~flipped[view]
    np.testing.assert_array_equal(ours[keep], images[keep])
  np.testing.assert_array_equal(flipped['satellite'], flipped['panorama'])
  assert abs(flipped['satellite'].mean() - 0.5) < 0.1


def test_a_pair_is_turned_together_a_satellite_picture_counter_clockwise():
  recipe = only(rotate_p=0.75)
  satellite, panorama = pictures(300, 8, 8), pictures(300, 4, 16)
  first = turns_of(satellite, run(recipe, satellite), np.rot90)
  second = turns_of(
    panorama,
    run(recipe, panorama, 'panorama'),
    lambda image, r: np.roll(image, -4 * r, axis=1),
  )
  np.testing.assert_array_equal(first, second)
  shares = np.bincount(first, minlength=4) / 300
  np.testing.assert_allclose(shares, 0.25, atol=0.08)


def test_a_width_that_no_four_divides_is_rolled_by_quarters_rounded_up():
  images = pictures(1, 2, 18)
  for r in range(4):
    ours = sample4geo.turn(jnp.asarray(images), jnp.array([r]), 'panorama')
    expected = np.roll(images, (-18 // 4) * r, axis=2)
    np.testing.assert_array_equal(ours, expected)


def test_other_views_are_flipped_but_never_turned():
  images = pictures(50)
  ours = run(only(rotate_p=1.0, flip_p=0.5), images, 'drone')
  mirrored = (ours == images[:, :, ::-1]).all((1, 2, 3))
  np.testing.assert_array_equal(ours[~mirrored], images[~mirrored])
  assert 10 < mirrored.sum() < 40


def test_views_of_a_pair_draw_their_own_colours():
  recipe = only(jitter_p=1.0)
  images = pictures()
  assert not np.allclose(
    run(recipe, images), run(recipe, images, 'panorama'), atol=1
  )


@pytest.mark.parametrize('seed', range(4))
def test_hue_turns_as_in_opencv(seed):
  rng = np.random.default_rng(seed)
  image = pictures(1, seed=seed)[0]
  image[:2] = image[:2, :, :1]  # greys have no hue
  shift = float(rng.uniform(-0.5, 0.5))
  hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
  hsv[..., 0] = (hsv[..., 0] + 360 * shift) % 360
  expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
  planes = image.astype(np.float32).transpose(2, 0, 1)
  ours = np.asarray(jax.jit(sample4geo.shift_hue)(planes, shift))
  ours = ours.transpose(1, 2, 0)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize('seed', range(4))
def test_color_jitter_follows_its_order(seed):
  rng = np.random.default_rng(seed)
  image = pictures(1, seed=seed)[0].astype(np.float32)
  factors = np.append(rng.uniform(0.5, 1.5, 3), rng.uniform(-0.2, 0.2))
  order = rng.permutation(4)
  ours = jax.jit(sample4geo.color_jitter)(
    image, factors.astype(np.float32), order
  )
  expected = image.astype(np.float64)
  for which in order:
    grey = expected @ np.array([0.299, 0.587, 0.114])
    base = {0: 0.0, 1: grey.mean(), 2: grey[:, :, None]}
    if which == 3:
      planes = jnp.asarray(expected.transpose(2, 0, 1))
      turned = sample4geo.shift_hue(planes, factors[3])
      expected = np.asarray(turned, np.float64).transpose(1, 2, 0)
    else:
      blend = base[which] + factors[which] * (expected - base[which])
      expected = blend.clip(0, 255)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize('seed', range(3))
def test_filtering_is_that_of_opencv(seed):
  rng = np.random.default_rng(seed)
  image = pictures(1, 11, 17, seed)[0].astype(np.float32)
  kernel = rng.normal(0, 0.3, (7, 7)).astype(np.float32)
  ours = jax.jit(filters.filter_picture)(image, kernel)
  expected = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
  np.testing.assert_allclose(ours, expected.clip(0, 255), rtol=0, atol=1e-2)


@pytest.mark.parametrize('size', [3, 5, 7])
def test_the_blur_kernel_is_the_generalised_gaussian(size):
  rng = np.random.default_rng(size)
  sigma = rng.uniform(0.2, 1, 2)
  angle, beta = rng.uniform(-1.5, 1.5), rng.uniform(0.5, 8)
  noise = rng.uniform(0.9, 1.1, (7, 7))
  ours = filters.blur_kernel(
    jnp.asarray(float(size)),
    sigma=jnp.asarray(sigma),
    angle=jnp.asarray(angle),
    beta=jnp.asarray(beta),
    noise=jnp.asarray(noise),
  )
  turned = np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  inverse = np.linalg.inv(turned @ np.diag(sigma**2) @ turned.T)
  expected = np.zeros((7, 7))
  half = size // 2
  for y in range(-half, half + 1):
    for x in range(-half, half + 1):
      g = np.array([x, y])
      value = np.exp(-0.5 * (g @ inverse @ g) ** beta)
      expected[y + 3, x + 3] = value * noise[y + 3, x + 3]
  expected /= expected.sum()
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6)


def test_sharpening_is_the_published_kernel():
  ours = filters.sharpen_kernel(jnp.asarray(0.3), jnp.asarray(0.6))
  expected = np.full((3, 3), -0.3)
  expected[1, 1] = 0.7 + 0.3 * 8.6
  np.testing.assert_allclose(ours[2:5, 2:5], expected, rtol=1e-5)
  assert np.count_nonzero(ours) == 9


def test_a_filter_blurs_or_sharpens():
  edge = np.zeros((200, 9, 9, 3), np.uint8)
  edge[:, :, 4:] = 120
  edge[:, :, :4] = 60
  ours = run(only(filter_p=1.0), edge)
  contrast = ours[:, 4, 4, 0] - ours[:, 4, 3, 0]
  sharpened = contrast > 61
  assert 0.35 < sharpened.mean() < 0.65
  assert (contrast[~sharpened] <= 60.1).all()
  some = run(only(filter_p=0.3), edge)
  changed = (np.abs(some - edge) > 1).any((1, 2, 3))
  assert changed.mean() < 0.45


@pytest.mark.parametrize(
  ('size_hw', 'ratio'), [((140, 768), 0.5), ((384, 384), 0.4), ((7, 90), 0.5)]
)
def test_the_grid_is_that_of_albumentations(size_hw, ratio):
  height, width = size_hw
  unit = max(2, width // 10)
  unit_height = max(min(unit, height), 2)
  hole_width = min(max(int(unit * ratio), 1), unit - 1)
  hole_height = min(max(int(unit_height * ratio), 1), unit_height - 1)
  expected = np.zeros(size_hw, bool)
  for i in range(width // unit + 1):
    for j in range(height // unit_height + 1):
      top, left = unit_height * j, unit * i
      expected[top : top + hole_height, left : left + hole_width] = True
  ours = sample4geo.grid_holes(size_hw, ratio)
  np.testing.assert_array_equal(ours, expected)


def test_coarse_holes_lie_where_they_are_drawn():
  draws = np.full((4, 25), 0.5)
  draws[:, 0] = (0.0, 0.99, 0.0, 0.999)
  draws[:, 1] = (0.99, 0.0, 0.999, 0.0)
  ours = sample4geo.coarse_holes(
    jnp.asarray(2), jnp.asarray(draws), size_hw=(40, 60)
  )
  expected = np.zeros((40, 60), bool)
  expected[:4, 52:] = True
  expected[32:, :4] = True
  np.testing.assert_array_equal(ours, expected)


def test_dropout_is_black_and_coarse_or_a_grid():
  white = np.full((100, 60, 60, 3), 255, np.uint8)
  black = (run(only(dropout_p=1.0), white) == 0).all(-1)
  grid = sample4geo.grid_holes((60, 60), 0.4)
  is_grid = (black == grid).all((1, 2))
  assert 0.3 < is_grid.mean() < 0.7
  share = black[~is_grid].mean((1, 2))
  assert 0.05 < share.min() < share.max() < 0.7
  assert not (run(only(), white) == 0).any()


def test_what_is_dropped_is_turned_with_the_picture():
  white = np.full((60, 66, 66, 3), 255, np.uint8)
  ours = run(only(dropout_p=1.0, rotate_p=1.0), white)
  grid = sample4geo.grid_holes((66, 66), 0.4)
  seen = [
    ((ours == 0).all(-1) == np.rot90(grid, r)).all((1, 2)) for r in (0, 1, 2, 3)
  ]
  assert not seen[0].any()
  assert all(some.any() for some in seen[1:])


def test_the_grid_of_panoramas_is_coarser():
  white = np.full((40, 20, 80, 3), 255, np.uint8)
  black = (run(only(dropout_p=1.0), white, 'panorama') == 0).all(-1)
  wide = sample4geo.grid_holes((20, 80), 0.5)
  assert (black == wide).all((1, 2)).any()
  narrow = sample4geo.grid_holes((20, 80), 0.4)
  assert not (black == narrow).all((1, 2)).any()


def test_values_stay_in_range_and_pictures_differ():
  same = np.repeat(pictures(1), 8, axis=0)
  ours = run(FULL, same)
  assert ours.min() >= 0
  assert ours.max() <= 255
  assert len({picture.tobytes() for picture in ours}) == 8


def test_a_result_does_not_depend_on_the_other_pictures():
  images = pictures(8)
  others = np.concatenate([images[:5], 255 - images[5:]])
  np.testing.assert_array_equal(run(FULL, images)[:5], run(FULL, others)[:5])


def test_results_do_not_depend_on_sharding():
  images = pictures(16)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  one = jitted(FULL, jax.random.key(0), images, 'satellite')
  many = jitted(
    FULL, jax.random.key(0), jax.device_put(images, spread), 'satellite'
  )
  assert len(many.sharding.device_set) == 8
  np.testing.assert_allclose(one, many, rtol=0, atol=1e-3)


def test_pictures_that_cannot_be_turned_are_errors():
  with pytest.raises(ValueError, match='24x20 pixels; only square'):
    run(FULL, pictures(2, 24, 20))
  assert run(FULL, pictures(2, 24, 20), 'panorama').shape == (2, 24, 20, 3)
  with pytest.raises(ValueError, match="view 'ufo'"):
    run(FULL, pictures(), 'ufo')
  with pytest.raises(ValueError, match='expected uint8'):
    run(FULL, pictures().astype(np.float32))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'flip_p': 1.5}, 'flip_p'),
    ({'rotate_p': -0.5}, 'rotate_p'),
    ({'grid_ratio': 0.0}, 'grid_ratio'),
    ({'color_jitter': (0.1, 0.1, 0.1, 2.0)}, 'color_jitter'),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    sample4geo.Sample4GeoTrain(**options)
