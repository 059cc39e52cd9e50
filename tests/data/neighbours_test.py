"""Lists of neighbours against all pairs, computed plainly."""

import numpy as np
import pytest

from cvgl_jax.data import neighbours
from cvgl_jax.retrieval import metres


def unit(count: int, seed: int) -> np.ndarray:
  x = np.random.default_rng(seed).standard_normal((count, 8))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def nearest(distance: np.ndarray, k: int) -> np.ndarray:
  """By a stable sort of the whole matrix, without oneself."""
  distance = distance.copy()
  np.fill_diagonal(distance, np.inf)
  return np.argsort(distance, axis=1, kind='stable')[:, :k]


def degrees(count: int, seed: int) -> np.ndarray:
  """Places all over the world, and a street of places a metre apart."""
  rng = np.random.default_rng(seed)
  world = rng.uniform((-90, -180), (90, 180), (count, 2))
  street = [52.0, 179.99996] + np.arange(20)[:, None] * [0.0, 1e-5]
  street[:, 1] = np.where(street[:, 1] > 180, street[:, 1] - 360, street[:, 1])
  return rng.permutation(np.concatenate([world, street]))


@pytest.mark.parametrize('seed', range(3))
def test_the_nearest_on_the_globe_are_those_by_distance_in_metres(seed):
  points = degrees(300, seed)
  found = neighbours.nearest_places(points, k=12, coordinates='degrees')
  distance = metres.great_circle_m(points[:, None], points[None])
  np.testing.assert_array_equal(found, nearest(distance, 12))
  assert found.dtype == np.int32


def test_the_published_haversine_takes_degrees_for_radians():
  points = np.random.default_rng(0).uniform((30, -120), (48, -70), (400, 2))
  found = neighbours.nearest_places(
    points, k=12, coordinates='degrees', haversine='published'
  )
  lat, lng = np.moveaxis(
    np.sin((points[:, None] - points[None]) / 2) ** 2, -1, 0
  )
  cos = np.cos(points[:, 0])
  half = lat + cos[:, None] * cos[None] * lng
  np.testing.assert_array_equal(found, nearest(half, 12))
  right = neighbours.nearest_places(points, k=12, coordinates='degrees')
  shared = [len(set(a) & set(b)) for a, b in zip(found, right, strict=True)]
  assert np.mean(shared) / 12 < 0.5


def test_the_nearest_of_coordinates_in_metres(monkeypatch):
  monkeypatch.setattr(neighbours, '_BLOCK', 64)
  points = np.random.default_rng(0).uniform((7e5, 6e6), (8e5, 7e6), (300, 2))
  found = neighbours.nearest_places(points, k=12, coordinates='metres')
  distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.testing.assert_array_equal(found, nearest(distance, 12))


def test_of_equally_near_places_the_lower_comes_first_and_few_are_padded():
  points = np.zeros((4, 2))
  for coordinates in ('metres', 'degrees'):
    found = neighbours.nearest_places(points, k=5, coordinates=coordinates)
    np.testing.assert_array_equal(
      found,
      [
        [1, 2, 3, -1, -1],
        [0, 2, 3, -1, -1],
        [0, 1, 3, -1, -1],
        [0, 1, 2, -1, -1],
      ],
    )


def test_unknown_coordinates_and_options_are_refused():
  points = np.array([[1.0, 2.0], [np.nan, 2.0]])
  with pytest.raises(ValueError, match=r'1 of 2 places have no coordinates'):
    neighbours.nearest_places(points, k=1, coordinates='degrees')
  with pytest.raises(ValueError, match="'metres' or 'degrees'"):
    neighbours.nearest_places(points[:1], k=1, coordinates='feet')
  with pytest.raises(ValueError, match="'correct' or 'published'"):
    neighbours.nearest_places(
      points[:1], k=1, coordinates='degrees', haversine='radians'
    )
  with pytest.raises(ValueError, match='expected'):
    neighbours.nearest_places(np.zeros((0, 2)), k=1, coordinates='degrees')


def test_the_most_similar_are_those_with_the_highest_products():
  query, reference = unit(30, 0), unit(50, 1)
  found = neighbours.most_similar(query, reference, k=7)
  expected = np.argsort(-(query @ reference.T), axis=1, kind='stable')[:, :7]
  np.testing.assert_array_equal(found, expected)


def test_ones_own_reference_is_left_out_wherever_it_ranks():
  query, reference = unit(30, 0), unit(30, 1)
  query[:10] = reference[:10]  # first; the others somewhere
  own = np.arange(30)
  found = neighbours.most_similar(query, reference, k=29, own=own)
  score = query @ reference.T
  np.fill_diagonal(score, -np.inf)
  expected = np.argsort(-score, axis=1, kind='stable')[:, :29]
  np.testing.assert_array_equal(found, expected)
  few = neighbours.most_similar(query, reference, k=5, own=own)
  np.testing.assert_array_equal(few, expected[:, :5])
  padded = neighbours.most_similar(query, reference, k=32, own=own)
  np.testing.assert_array_equal(padded[:, :29], expected)
  assert (padded[:, 29:] == -1).all()


def test_pictures_that_were_not_seen_look_like_nothing_and_nan_is_refused():
  query, reference = unit(4, 0), unit(6, 1)
  query[1] = 0
  first = neighbours.most_similar(query, reference, k=3)
  last = neighbours.most_similar(query, reference, k=3, ties='higher')
  np.testing.assert_array_equal(first[1], [0, 1, 2])
  np.testing.assert_array_equal(last[1], [5, 4, 3])
  query[2, 3] = np.nan
  with pytest.raises(ValueError, match='NaN'):
    neighbours.most_similar(query, reference, k=3)
