"""Device augmentation: parts against Pillow, the recipe by its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cvgl_jax.data import augment
from cvgl_jax.models import layers

STILL = {'pad': 0, 'rotate_satellite_deg': 0.0, 'flip_p': 0.0}
FULL = augment.UniversityTrain(
  color_jitter=(0.3, 0.3, 0.3),
  rotate_drone_deg=45.0,
  zoom=(0.8, 1.25),
  erasing_p=0.5,
)


def pictures(number=6, height=24, width=20, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (number, height, width, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 3))
def jitted(recipe, key, images, view):
  return recipe(key, images, view)


def run(recipe, images, view='drone', seed=0):
  return np.asarray(jitted(recipe, jax.random.key(seed), images, view))


def pillow_warp(image, *, pad, angle_deg, zoom, crop, flip):
  """Edge padding, Pillow's affine transform, crop (top, left, h, w), flip."""
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
  height, width, _ = padded.shape
  angle = np.deg2rad(np.float64(angle_deg))
  cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
  x, y = width / 2, height / 2
  matrix = (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
  turned = Image.fromarray(padded).transform(
    (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
  )
  top, left, h, w = crop
  out = np.asarray(turned)[top : top + h, left : left + w]
  return out[:, ::-1] if flip else out


def our_warp(image, *, pad, angle_deg, zoom, crop, flip, dtype):
  height, width, _ = image.shape

  @jax.jit
  def warp(image, angle_deg, zoom):
    coefficients = augment.affine_coefficients(
      angle_deg, zoom, size_hw=(height + 2 * pad, width + 2 * pad)
    )
    return augment.warp(
      image,
      coefficients,
      pad=pad,
      top=crop[0],
      left=crop[1],
      flip=flip,
      size_hw=crop[2:],
    )

  return np.asarray(
    warp(image, jnp.asarray(angle_deg, dtype), jnp.asarray(zoom, dtype))
  )


@pytest.mark.parametrize('seed', range(5))
def test_warp_equals_pillow(seed):
  rng = np.random.default_rng(seed)
  image = pictures(1, 40, 33, seed)[0]
  case = {
    'pad': int(rng.integers(0, 11)),
    'angle_deg': rng.uniform(-180, 180),
    'zoom': rng.uniform(0.6, 1.6),
    'crop': (0, 0, 40, 33),
    'flip': bool(rng.integers(2)),
  }
  case['crop'] = (*rng.integers(0, 2 * case['pad'] + 1, 2), 40, 33)
  expected = pillow_warp(image, **case)
  with jax.enable_x64(True):
    exact = our_warp(image, **case, dtype=jnp.float64)
  np.testing.assert_array_equal(exact, expected)
  single = our_warp(image, **case, dtype=jnp.float32)
  assert (single != expected).any(-1).mean() < 0.01


@pytest.mark.parametrize('seed', range(5))
def test_color_jitter_equals_pillow_in_any_order(seed):
  rng = np.random.default_rng(seed)
  image = pictures(1, 31, 40, seed)[0]
  factors = rng.uniform(0, 2, 3).astype(np.float32)
  order = rng.permutation(3)
  ours = jax.jit(augment.color_jitter)(image, factors, order)
  expected = Image.fromarray(image)
  enhancers = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
  )
  for which in order:
    expected = enhancers[which](expected).enhance(float(factors[which]))
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_nothing_drawn_changes_nothing():
  recipe = augment.UniversityTrain(**STILL)
  for view in ('satellite', 'drone', 'street'):
    np.testing.assert_array_equal(run(recipe, pictures(), view), pictures())


def test_without_rotation_a_picture_is_a_crop_of_its_padding():
  images = pictures(20)
  padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode='edge')
  found = []
  for padding, ours in zip(
    padded, run(augment.UniversityTrain(pad=3), images), strict=True
  ):
    matches = [
      (top, left, flip)
      for top in range(7)
      for left in range(7)
      for flip in (1, -1)
      if np.array_equal(
        padding[top : top + 24, left : left + 20][:, ::flip], ours
      )
    ]
    assert matches
    found.append(matches[0])
  tops, lefts, flips = map(set, zip(*found, strict=True))
  assert len(tops) > 3
  assert len(lefts) > 3
  assert flips == {1, -1}


def test_only_the_views_asked_for_are_rotated():
  white = np.full((8, 24, 24, 3), 255, np.uint8)
  published = augment.UniversityTrain()
  assert (run(published, white, 'satellite') == 0).any()
  assert (run(published, white, 'drone') == 255).all()
  assert (run(published, white, 'street') == 255).all()
  free = augment.UniversityTrain(rotate_drone_deg=180.0)
  assert (run(free, white, 'drone') == 0).any()
  assert (run(free, white, 'google') == 255).all()


def test_fill_edge_leaves_nothing_black():
  white = np.full((8, 24, 24, 3), 255, np.uint8)
  recipe = augment.UniversityTrain(fill='edge', zoom=(0.5, 0.5))
  assert (run(recipe, white, 'satellite') == 255).all()


def test_zoom_enlarges_about_the_centre():
  image = np.zeros((1, 40, 40, 3), np.uint8)
  image[:, 15:25, 15:25] = 200
  recipe = augment.UniversityTrain(**STILL, zoom=(2.0, 2.0))
  expected = np.zeros((1, 40, 40, 3), np.uint8)
  expected[:, 10:30, 10:30] = 200
  np.testing.assert_array_equal(run(recipe, image), expected)


def test_flips_are_as_frequent_as_asked():
  images = pictures(400, 4, 4)
  for flip_p in (0.0, 0.3, 1.0):
    recipe = augment.UniversityTrain(**{**STILL, 'flip_p': flip_p})
    ours = run(recipe, images)
    flipped = (ours == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(ours[~flipped], images[~flipped])
    assert abs(flipped.mean() - flip_p) < 0.07


def test_a_result_does_not_depend_on_the_other_pictures():
  images = pictures(8)
  others = np.concatenate([images[:5], 255 - images[5:7]])
  np.testing.assert_array_equal(run(FULL, images)[:5], run(FULL, others)[:5])


def test_results_do_not_depend_on_sharding():
  images = pictures(16)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  key = jax.random.key(0)
  one = jitted(FULL, key, images, 'drone')
  many = jitted(FULL, key, jax.device_put(images, sharding), 'drone')
  assert len(many.sharding.device_set) == 8
  np.testing.assert_array_equal(one, many)


def test_views_and_steps_draw_different_numbers():
  images = pictures(8)
  recipe = augment.UniversityTrain(rotate_satellite_deg=0.0)
  drone = run(recipe, images, 'drone')
  assert not np.array_equal(drone, run(recipe, images, 'street'))
  assert not np.array_equal(drone, run(recipe, images, 'drone', seed=1))


def test_pictures_of_a_batch_draw_different_numbers():
  same = np.repeat(pictures(1), 8, axis=0)
  assert len({picture.tobytes() for picture in run(FULL, same)}) == 8


def test_jitter_factors_stay_in_their_range():
  grey = np.full((200, 2, 2, 3), 100, np.uint8)
  recipe = augment.UniversityTrain(**STILL, color_jitter=(0.1, 0.0, 0.0))
  values = run(recipe, grey)
  assert 90 <= values.min() < 92
  assert 108 < values.max() <= 110


def test_erasing_fills_a_rectangle_with_the_mean_colour():
  recipe = augment.UniversityTrain(**STILL, erasing_p=1.0)
  ours = run(recipe, pictures(50, 32, 32))
  mean = np.asarray(augment.MEAN_COLOR, np.float32)
  erased = (ours == mean).all(-1)
  for mask in erased:
    rows, columns = mask.any(1), mask.any(0)
    assert mask.sum() == rows.sum() * columns.sum()
    assert 0.01 < mask.mean() < 0.45
  np.testing.assert_array_equal(ours[~erased], pictures(50, 32, 32)[~erased])
  normalized = np.asarray(layers.normalize_image(jnp.asarray(ours)))
  np.testing.assert_allclose(normalized[erased], 0, atol=1e-6)


def test_erasing_spares_satellite_pictures():
  recipe = augment.UniversityTrain(**STILL, erasing_p=1.0)
  images = pictures()
  np.testing.assert_array_equal(run(recipe, images, 'satellite'), images)


def test_erasing_takes_the_first_rectangle_that_fits():
  areas = jnp.array([0.4, 0.4, 0.25, 0.1])
  ratios = jnp.array([3.3, 0.31, 1.0, 1.0])
  rooms = []

  def mask(chance):
    return augment.erasing_mask(
      jnp.asarray(chance),
      areas,
      ratios,
      corner=lambda room: rooms.append(room) or jnp.array([1, 2]),
      probability=0.5,
      size_hw=(20, 20),
    )

  expected = np.zeros((20, 20), bool)
  expected[1:11, 2:12] = True
  np.testing.assert_array_equal(mask(0.5), expected)
  np.testing.assert_array_equal(rooms[0], [10, 10])
  assert not mask(0.51).any()


def test_erasing_gives_up_when_nothing_fits():
  mask = augment.erasing_mask(
    jnp.asarray(0.0),
    jnp.full(5, 0.4),
    jnp.full(5, 3.3),
    corner=lambda room: jnp.zeros(2, jnp.int32),
    probability=1.0,
    size_hw=(8, 8),
  )
  assert not mask.any()


def test_no_augment_only_converts():
  ours = run(augment.NoAugment(), pictures())
  assert ours.dtype == np.float32
  np.testing.assert_array_equal(ours, pictures())


@pytest.mark.parametrize('view', ['satelite', 'ufo', ''])
def test_unknown_views_are_errors(view):
  with pytest.raises(ValueError, match=f'view {view!r}; the name'):
    run(augment.UniversityTrain(), pictures(), view)


@pytest.mark.parametrize(
  'view', ['drone', 'drone30', 'video45', 'ground_photo']
)
def test_views_may_carry_numbers_and_suffixes(view):
  assert run(augment.UniversityTrain(), pictures(), view).shape == (
    6,
    24,
    20,
    3,
  )


@pytest.mark.parametrize(
  'recipe', [augment.UniversityTrain(), augment.NoAugment()]
)
@pytest.mark.parametrize(
  'images', [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)]
)
def test_images_must_be_a_batch_of_bytes(recipe, images):
  with pytest.raises(ValueError, match='expected uint8'):
    run(recipe, images)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pad': -1}, 'pad'),
    ({'zoom': (1.2, 0.8)}, 'zoom'),
    ({'color_jitter': (0.1, 0.1)}, 'color_jitter'),
    ({'fill': 'grey'}, 'fill'),
    ({'flip_p': 1.5}, 'flip_p'),
    ({'erasing_p': -0.1}, 'erasing_p'),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    augment.UniversityTrain(**options)
