import numpy as np
import pytest

from cvgl_jax.retrieval import multiview


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
