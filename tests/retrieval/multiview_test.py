import jax
import numpy as np
import pytest

from cvgl_jax.retrieval import multiview, refinement


def test_places_come_in_order_with_their_means():
  features = np.array([[1, 0], [0, 1], [3, 0]], np.float32)
  mean = multiview.mean_by_place(features, np.array([7, 2, 7]))
  assert mean.place.tolist() == [2, 7]
  np.testing.assert_array_equal(mean.features, [[0, 1], [2, 0]])
  assert mean.features.dtype == np.float32


def test_means_can_be_normalized():
  features = np.array([[3, 0], [1, 0], [0, 5]], np.float32)
  mean = multiview.mean_by_place(features, np.array([0, 0, 1]), normalize=True)
  np.testing.assert_allclose(mean.features, np.eye(2), atol=1e-7)


def test_features_that_cancel_out_are_an_error():
  features = np.array([[1, 0], [-1, 0]], np.float32)
  with pytest.raises(ValueError, match=r'place 4.*cancel'):
    multiview.mean_by_place(features, np.array([4, 4]), normalize=True)


def test_lengths_must_agree():
  with pytest.raises(ValueError, match=r'\(3, 2\).*\(2,\)'):
    multiview.mean_by_place(np.ones((3, 2)), np.arange(2))


def test_every_place_is_refined_as_it_would_be_alone(monkeypatch):
  rng = np.random.default_rng(0)
  place = rng.permutation(np.repeat([9, 2, 5, 30], [7, 1, 12, 4]))
  features = rng.standard_normal((len(place), 6)).astype(np.float32)
  alone_of = jax.jit(refinement.refine, static_argnames='settings')
  # One place a chunk.
  monkeypatch.setattr(multiview, '_CHUNK_VALUES', 1)
  for diversity in ('feature', 'pose'):
    settings = refinement.Refinement(k=3, diversity=diversity)
    poses = {
      'altitude_m': rng.uniform(50, 90, len(place)).astype(np.float32),
      'azimuth_deg': rng.uniform(0, 360, len(place)).astype(np.float32),
    }
    found = multiview.refine_by_place(
      features, place, settings=settings, **poses
    )
    assert found.place.tolist() == [2, 5, 9, 30]
    for row, name in enumerate(found.place):
      alone = alone_of(features, place == name, settings=settings, **poses)
      np.testing.assert_allclose(found.features[row], alone.feature, atol=1e-6)


def test_the_refined_mean_is_the_mean_of_unit_features():
  rng = np.random.default_rng(1)
  place = np.array([1, 0, 1, 1, 0])
  features = rng.standard_normal((5, 4))
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  found = multiview.refine_by_place(
    features, place, settings=refinement.Refinement(score='mean')
  )
  expected = multiview.mean_by_place(unit, place, normalize=True)
  np.testing.assert_allclose(found.features, expected.features, atol=1e-6)


@pytest.mark.parametrize(
  ('features', 'poses', 'message'),
  [
    (np.ones((2, 2)), {}, 'needs altitude_m'),
    (np.ones((2, 2)), {'altitude_m': np.ones(3)}, r'altitude_m of.*\[2\]'),
    (
      np.ones((2, 2)),
      {'altitude_m': np.ones(2), 'azimuth_deg': np.array([0, np.nan])},
      r'azimuth_deg: unknown for 1 of 2 views \(first: row 1\)',
    ),
    (np.array([[1, 1], [0, 0]]), {}, '1 feature rows are all zero.*row 1'),
    (np.array([[1, 1], [np.nan, 0]]), {}, 'NaN'),
    (np.ones((3, 2)), {}, r'3 views with places of shape \(2,\)'),
  ],
)
def test_views_that_cannot_be_refined_are_errors(features, poses, message):
  settings = refinement.Refinement(diversity='pose')
  with pytest.raises(ValueError, match=message):
    multiview.refine_by_place(
      features, np.zeros(2, int), settings=settings, **poses
    )


def test_views_that_cancel_out_are_an_error():
  features = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
  settings = refinement.Refinement(score='mean')
  with pytest.raises(ValueError, match=r'place 8.*cancel'):
    multiview.refine_by_place(features, np.array([8, 8, 3]), settings=settings)


def test_the_drone_descends_in_three_rounds():
  altitude_m, azimuth_deg = multiview.spiral_pose(np.array([1, 2, 19, 54]))
  np.testing.assert_allclose(altitude_m[[0, 3]], [256, 121.5])
  assert azimuth_deg.tolist() == [0, 20, 0, 340]
  with pytest.raises(ValueError, match='view 0'):
    multiview.spiral_pose(np.array([3, 0]))
