"""AutoAugment: tables, drawing, and the simple operations by formula."""

import numpy as np
import pytest

from cvgl_jax.data import autoaugment


def picture(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (31, 40, 3), np.uint8)


def test_the_policies_have_the_published_lengths():
  assert {k: len(v) for k, v in autoaugment.POLICIES.items()} == {
    'imagenet': 25,
    'reid': 11,
  }


@pytest.mark.parametrize('policy', autoaugment.POLICIES)
def test_every_sub_policy_is_applicable(policy):
  for sub_policy in autoaugment.POLICIES[policy]:
    for probability, name, index in sub_policy:
      assert 0 <= probability <= 1
      for sign in (1, -1):
        out = autoaugment.operation(picture(), name, index=index, sign=sign)
        assert out.shape == (31, 40, 3)
        assert out.dtype == np.uint8


@pytest.mark.parametrize('policy', autoaugment.POLICIES)
def test_apply_is_a_function_of_its_generator(policy):
  results = [
    autoaugment.apply(picture(), np.random.default_rng(seed), policy=policy)
    for seed in (0, 0, 1, 2, 3)
  ]
  np.testing.assert_array_equal(results[0], results[1])
  assert len({result.tobytes() for result in results}) > 2


def test_apply_leaves_its_input_alone():
  image = picture()
  autoaugment.apply(image, np.random.default_rng(0), policy='imagenet')
  np.testing.assert_array_equal(image, picture())


def test_posterize_keeps_the_top_bits():
  bits = np.round(np.linspace(8, 4, 10)).astype(int)
  for index in range(10):
    ours = autoaugment.operation(picture(), 'posterize', index=index)
    mask = 256 - 2 ** (8 - bits[index])
    np.testing.assert_array_equal(ours, picture() & mask)


def test_solarize_inverts_from_the_threshold_up():
  for index in range(10):
    threshold = np.linspace(256, 0, 10)[index]
    image = picture()
    expected = np.where(image < threshold, image, 255 - image)
    ours = autoaugment.operation(image, 'solarize', index=index)
    np.testing.assert_array_equal(ours, expected)


def test_invert_is_the_negative():
  ours = autoaugment.operation(picture(), 'invert', index=4)
  np.testing.assert_array_equal(ours, 255 - picture())


def test_translation_goes_both_ways_and_uncovers_grey():
  right, left = (
    autoaugment.operation(picture(), 'translateX', index=9, sign=sign)
    for sign in (-1, 1)
  )
  shift = round(150 / 331 * 40)
  np.testing.assert_array_equal(left[:, : 40 - shift], picture()[:, shift:])
  np.testing.assert_array_equal(right[:, shift:], picture()[:, : 40 - shift])
  assert (left[:, -10:] == 128).all()
  assert (right[:, :10] == 128).all()


def test_rotation_has_no_sign():
  one, other = (
    autoaugment.operation(picture(), 'rotate', index=5, sign=sign)
    for sign in (1, -1)
  )
  np.testing.assert_array_equal(one, other)


def test_strength_zero_of_an_enhancement_changes_nothing():
  for name in ('color', 'contrast', 'sharpness', 'brightness'):
    ours = autoaugment.operation(picture(), name, index=0)
    np.testing.assert_array_equal(ours, picture())


def test_unknown_names_and_magnitudes_are_errors():
  with pytest.raises(ValueError, match="policy 'cifar10'"):
    autoaugment.apply(picture(), np.random.default_rng(0), policy='cifar10')
  with pytest.raises(ValueError, match="operation 'blur'"):
    autoaugment.operation(picture(), 'blur', index=1)
  with pytest.raises(ValueError, match='magnitude index 10'):
    autoaugment.operation(picture(), 'rotate', index=10)
