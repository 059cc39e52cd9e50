import numpy as np
import pytest

from cvgl_jax.retrieval import truth


def test_positives_are_the_rows_of_the_place():
  found = truth.ground_truth(
    (3, 5), np.array([7, 9, 3]), np.array([3, 7, 7, -1, 4])
  )
  assert found.positives.tolist() == [[1, 2], [-1, -1], [0, -1]]
  assert found.junk.tolist() == [False, False, False, True, False]
  assert found.semi_positives is None


def test_distractors_can_be_ignored():
  found = truth.ground_truth(
    (1, 3), np.array([7]), np.array([3, 7, 8]), ignore_distractors=True
  )
  assert found.junk.tolist() == [True, False, True]


def test_junk_is_no_positive():
  found = truth.ground_truth(
    (1, 3),
    np.array([7]),
    np.array([7, 7, 8]),
    junk=np.array([True, False, False]),
  )
  assert found.positives.tolist() == [[-1, 1]]


def test_junk_of_one_query_is_excluded_for_it_alone():
  junk = np.array([[True, False, True], [False, False, False]])
  found = truth.ground_truth(
    (2, 3), np.array([7, 7]), np.array([7, 7, -1]), junk=junk
  )
  assert found.positives.tolist() == [[-1, 1], [0, 1]]
  # Row 2 is junk for all, so it must not be taken out a second time.
  assert found.exclude.tolist() == [[0], [-1]]


def test_listed_rows_take_the_place_of_places():
  found = truth.ground_truth(
    (2, 4),
    positives=np.array([2, 0]),
    semi_positives=np.array([[2, 1, 3], [1, -1, -1]]),
    junk=np.array([False, True, False, False]),
  )
  assert found.positives.tolist() == [[2], [0]]
  # A positive is no semi-positive, nor is junk.
  assert found.semi_positives.tolist() == [[-1, -1, 3], [-1, -1, -1]]


PLACES = {'query_place': np.arange(2), 'gallery_place': np.arange(4)}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, 'must be given either'),
    (PLACES | {'positives': np.array([0, 1])}, 'must be given either'),
    ({'query_place': np.arange(2)}, 'must be given either'),
    ({'positives': np.zeros(3, int)}, r'positives: shape \(3, 1\)'),
    ({'positives': np.zeros((2, 1))}, 'positives: rows are float64'),
    ({'positives': np.array([0, 4])}, 'rows from 0 to 4, expected 0 to 3'),
    ({'positives': np.array([0, -2])}, 'rows from -2'),
    ({'positives': np.array([[0, 1], [3, 3]])}, 'query 1 lists .* twice'),
    (
      PLACES | {'semi_positives': np.zeros((2, 2), int)},
      'semi_positives.*twice',
    ),
    ({'positives': np.arange(2), 'ignore_distractors': True}, 'ignore_dis'),
    (PLACES | {'junk': np.zeros(2, bool)}, r'junk: bool of shape \(2,\)'),
    (PLACES | {'gallery_place': np.arange(3)}, r'gallery: 4 .*\(3,\)'),
  ],
)
def test_contradictions_are_an_error(arguments, message):
  with pytest.raises(ValueError, match=message):
    truth.ground_truth((2, 4), **arguments)
