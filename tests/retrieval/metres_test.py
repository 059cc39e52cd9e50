import numpy as np
import pytest

from cvgl_jax.retrieval import metres

RADIUS = 6_371_004.0


def cosines(a, b):
  """The published formula, on degrees, in extended precision."""
  p, q = (np.radians(np.asarray(x, np.longdouble)) for x in (a, b))
  c = np.sin(p[0]) * np.sin(q[0])
  c += np.cos(p[0]) * np.cos(q[0]) * np.cos(p[1] - q[1])
  return float(RADIUS * np.arccos(c))


@pytest.mark.parametrize('seed', range(5))
def test_distance_equals_the_law_of_cosines(seed):
  rng = np.random.default_rng(seed)
  a, b = rng.uniform([-90, -180], [90, 180], (2, 2))
  np.testing.assert_allclose(
    metres.great_circle_m(a, b), cosines(a, b), rtol=1e-12
  )


def test_distance_of_equal_and_near_points_is_exact():
  point = np.array([40.7, -74.0])
  assert metres.great_circle_m(point, point) == 0
  # A millimetre to the north; arccos in float64 cannot tell it from 0.
  step = np.degrees(1e-3 / RADIUS)
  near = metres.great_circle_m(point, point + np.array([step, 0]))
  np.testing.assert_allclose(near, 1e-3, rtol=1e-5)


def test_antipodes_are_half_a_circle_apart():
  distance = metres.great_circle_m([0.0, 0.0], [0.0, 180.0])
  np.testing.assert_allclose(distance, np.pi * RADIUS, rtol=1e-15)


def test_a_shift_of_half_a_tile_goes_that_many_metres():
  centre = np.array([[40.7, -74.0], [-33.0, 151.0]])
  for offset in ([320, 0], [0, 320], [-320, 0]):
    moved = metres.shift_deg(centre, np.array([offset, offset]))
    distance = metres.great_circle_m(centre, moved)
    np.testing.assert_allclose(distance, 320 * 0.114, rtol=1e-9)
  # Latitude and longitude of the centre minus those of the place: the place
  # of a positive offset lies to the south, to the west.
  moved = metres.shift_deg(centre, np.array([[10, 20], [10, 20]]))
  assert (moved < centre).all()


def test_accuracy_is_the_share_strictly_below_each_threshold():
  result = metres.metre_accuracy([0.0, 5.0, 7.0, 9.0], thresholds_m=(5, 7.5))
  assert result.accuracy.tolist() == [0.25, 0.75]


def test_report_has_errors_in_metres_and_shares_in_percent():
  report = metres.metre_accuracy([0.0, 5.0, 9.0, 11.0, 50.0]).report()
  assert report == {
    'mean error m': 15.0,
    'median error m': 9.0,
    'within 5 m %': 40.0,
    'within 10 m %': 60.0,
    'within 25 m %': 80.0,
    'within 50 m %': 100.0,
  }


def test_default_thresholds_are_those_of_vigor():
  result = metres.metre_accuracy([1.0, 1.1, 2.0])
  np.testing.assert_allclose(
    result.thresholds_m, 1.1 ** (np.arange(1, 500) / 5), rtol=1e-12
  )
  assert result.accuracy.shape == (499,)
  assert result.accuracy[0] == pytest.approx(1 / 3)
  assert result.accuracy[-1] == 1


@pytest.mark.parametrize('coordinates', ['metres', 'degrees'])
@pytest.mark.parametrize('seed', range(5))
def test_rows_within_a_radius_equal_a_loop(seed, coordinates):
  rng = np.random.default_rng(seed)
  query, gallery = rng.uniform(-30, 30, (20, 2)), rng.uniform(-30, 30, (50, 2))
  if coordinates == 'degrees':
    radius = 900_000.0
    distance = lambda a, b: cosines(a, b)
  else:
    radius = 9.0
    distance = lambda a, b: float(np.sqrt(((a - b) ** 2).sum()))
  rows = metres.rows_within(
    query, gallery, radius_m=radius, coordinates=coordinates
  )
  for q, found in zip(query, rows, strict=True):
    expected = [i for i, g in enumerate(gallery) if distance(q, g) <= radius]
    assert found[found >= 0].tolist() == expected
    assert (found[len(expected) :] == -1).all()


def test_the_border_of_the_radius_belongs_to_it():
  gallery = np.array([[5.0, 0.0], [0.0, 5.000001]])
  rows = metres.rows_within(np.zeros((1, 2)), gallery, radius_m=5)
  assert rows.tolist() == [[0]]


def test_nothing_within_the_radius_is_an_orphan():
  rows = metres.rows_within(np.zeros((2, 2)), np.full((3, 2), 9.0))
  assert rows.tolist() == [[-1], [-1]]


def test_utm_coordinates_keep_their_precision():
  # A float32 northing of Canberra has steps of half a metre.
  query = np.array([[693_000.0, 6_090_000.0]])
  rows = metres.rows_within(query, query + np.array([[0, 0.3], [0, 5.1]]))
  assert rows.tolist() == [[0]]


@pytest.mark.parametrize(
  ('query', 'options', 'message'),
  [
    (np.zeros((2, 3)), {}, r'query: .*\(2, 3\)'),
    (np.array([[0, np.nan]]), {}, 'query: 1 of 1 .* row 0'),
    (np.array([[151.0, -33.0]]), {'coordinates': 'degrees'}, 'poles'),
    (np.zeros((1, 2)), {'coordinates': 'feet'}, "'feet'"),
    (np.zeros((1, 2)), {'radius_m': -1}, 'radius_m'),
  ],
)
def test_unusable_coordinates_are_an_error(query, options, message):
  with pytest.raises(ValueError, match=message):
    metres.rows_within(query, np.zeros((4, 2)), **options)


def test_unusable_distances_are_an_error():
  with pytest.raises(ValueError, match='query 1'):
    metres.metre_accuracy([1.0, np.nan])
