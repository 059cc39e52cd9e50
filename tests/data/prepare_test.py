"""What pictures go through on the device, in training and evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.data import augment, panorama, prepare

HALF = prepare.Prepare(fov_deg=180.0)
POLAR = prepare.Prepare(polar_size=(6, 20))
RANDOM = jax.jit(prepare.Prepare.random, static_argnums=(0, 3))
FIXED = jax.jit(prepare.Prepare.fixed, static_argnums=(0, 2))


def pictures(number=6, height=3, width=36, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (number, height, width, 3), np.uint8)


def angle_of(original, shown, columns):
  """Shifts that explain what is shown."""
  return [
    r
    for r in range(original.shape[1])
    if np.array_equal(np.roll(original, r, axis=1)[:, :columns], shown)
  ]


@pytest.mark.parametrize('view', ['satellite', 'panorama', 'drone'])
def test_nothing_asked_changes_nothing(view):
  images = pictures()
  plain = prepare.Prepare()
  assert plain.size(view, (3, 36)) == (3, 36)
  for ours in (
    RANDOM(plain, jax.random.key(0), images, view),
    FIXED(plain, images, view, np.arange(6)),
  ):
    assert ours.dtype == jnp.uint8
    np.testing.assert_array_equal(ours, images)


def test_every_training_picture_is_seen_from_its_own_angle():
  images = np.repeat(pictures(1), 40, axis=0)
  ours = RANDOM(HALF, jax.random.key(0), images, 'panorama')
  assert ours.shape == (40, 3, 18, 3)
  shifts = [angle_of(images[0], shown, 18) for shown in np.asarray(ours)]
  assert all(len(found) == 1 for found in shifts)
  assert len({found[0] for found in shifts}) > 15


def test_every_training_step_draws_anew_and_repeats_with_its_key():
  images = pictures()
  first, second = (
    np.asarray(RANDOM(HALF, jax.random.key(seed), images, 'panorama'))
    for seed in (0, 1)
  )
  assert not np.array_equal(first, second)
  again = RANDOM(HALF, jax.random.key(0), images, 'panorama')
  np.testing.assert_array_equal(again, first)


def test_full_field_of_view_only_rolls():
  unknown = prepare.Prepare(fov_deg=360.0)
  images = pictures()
  ours = np.asarray(RANDOM(unknown, jax.random.key(0), images, 'panorama'))
  assert ours.shape == images.shape
  for shown, original in zip(ours, images, strict=True):
    assert angle_of(original, shown, 36)
  assert not np.array_equal(ours, images)


def test_in_evaluation_a_row_is_seen_from_one_angle_wherever_it_stands():
  images, rows = pictures(), np.array([7, 3, 100000, 0, 1, -1], np.int32)
  whole = np.asarray(FIXED(HALF, images, 'panorama', rows))
  order = np.array([3, 0, 5, 1])
  part = FIXED(HALF, images[order], 'panorama', rows[order])
  np.testing.assert_array_equal(part, whole[order])
  angles = HALF.angles_of(jnp.asarray(rows))
  expected = panorama.limit_view(jnp.asarray(images), angles, 18)
  np.testing.assert_array_equal(whole, expected)


def test_the_seed_decides_the_angles_of_the_queries():
  rows = jnp.arange(2000)
  first = np.asarray(HALF.angles_of(rows))
  other = np.asarray(prepare.Prepare(fov_deg=90, fov_seed=1).angles_of(rows))
  assert (first != other).mean() > 0.9
  assert first.min() < 5
  assert first.max() > 354
  assert abs(first.mean() - 179.5) < 8
  # Reported numbers stay comparable only if these never change.
  np.testing.assert_array_equal(first[:5], [97, 237, 241, 162, 8])


def test_satellite_pictures_become_polar_pictures_in_both():
  images = pictures(2, 16, 16)
  expected = panorama.polar_transform(jnp.asarray(images), (6, 20))
  for ours in (
    RANDOM(POLAR, jax.random.key(0), images, 'satellite'),
    FIXED(POLAR, images, 'satellite', np.arange(2)),
  ):
    assert ours.shape == (2, 6, 20, 3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-3)


def test_only_the_views_meant_are_touched():
  both = prepare.Prepare(polar_size=(6, 20), fov_deg=90.0)
  images = pictures(2, 16, 16)
  for view in ('drone', 'street', 'ground_photo'):
    ours = RANDOM(both, jax.random.key(0), images, view)
    np.testing.assert_array_equal(ours, images)
  assert both.size('panorama_night', (16, 16)) == (16, 4)
  assert both.size('satellite2', (16, 16)) == (6, 20)


@pytest.mark.parametrize(('fov_deg', 'columns'), [(70, 3), (90, 4), (360, 16)])
def test_kept_columns_are_rounded_down(fov_deg, columns):
  ready = prepare.Prepare(fov_deg=fov_deg)
  assert ready.size('panorama', (4, 16)) == (4, columns)


def test_the_chain_augments_first_and_with_the_key_of_the_step():
  images, key = pictures(6, 16, 16), jax.random.key(3)
  recipe = augment.UniversityTrain()
  alone = recipe(key, jnp.asarray(images), 'satellite')
  chain = prepare.Chain(augment=recipe, prepare=prepare.Prepare())
  np.testing.assert_array_equal(
    chain(key, jnp.asarray(images), 'satellite'), alone
  )
  chain = prepare.Chain(augment=recipe, prepare=POLAR)
  np.testing.assert_allclose(
    chain(key, jnp.asarray(images), 'satellite'),
    panorama.polar_transform(alone, (6, 20)),
    rtol=1e-5,
    atol=1e-3,
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'polar_size': (5,)}, 'polar_size'),
    ({'polar_size': (0, 5)}, 'polar_size'),
    ({'fov_deg': 361.0}, 'fov_deg is 361'),
    ({'fov_deg': -1.0}, 'fov_deg is -1'),
    ({'fov_seed': -1}, 'fov_seed is -1'),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    prepare.Prepare(**options)


def test_sizes_that_cannot_be_are_errors():
  with pytest.raises(ValueError, match='8x9 pixels; the polar'):
    POLAR.size('satellite', (8, 9))
  with pytest.raises(ValueError, match='10 degrees of 16 columns'):
    prepare.Prepare(fov_deg=10.0).size('panorama', (4, 16))
