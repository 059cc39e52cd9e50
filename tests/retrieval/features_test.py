import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.retrieval import features

exact_scores = jax.jit(features.exact_scores)
approximate_scores = jax.jit(
  features.approximate_scores, static_argnames='first_pass'
)


def tree_sum(products):
  """The definition of an exact score, one float32 operation at a time."""
  values = list(products)
  while len(values) > 1:
    half = len(values) // 2
    sums = [a + b for a, b in zip(values, values[half:], strict=False)][:half]
    values = sums + values[2 * half :]
  return values[0]


@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(('size', 'dim'), [(7, 3), (50, 1001), (300, 64)])
def test_parts_equal_the_whole_bit_for_bit(dtype, size, dim):
  rng = np.random.default_rng(size)
  values = rng.standard_normal((size, dim)).astype(dtype)
  whole = features.prepare(values, 'gallery')
  assert whole.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)
  rows = features.Rows(values, 'gallery')
  for chunk in (1, 3, 16, size, size + 1):
    starts, parts = zip(*rows.parts(chunk), strict=True)
    assert starts == tuple(range(0, size, chunk))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_file_and_a_jax_array_are_prepared_like_an_array(tmp_path):
  values = np.random.default_rng(0).standard_normal((20, 5), np.float32)
  np.save(tmp_path / 'f.npy', values)
  mapped = np.load(tmp_path / 'f.npy', mmap_mode='r')
  whole = features.prepare(values, 'gallery')
  for other in (mapped, jnp.asarray(values), values[::-1][::-1]):
    rows = features.Rows(other, 'gallery')
    np.testing.assert_array_equal(rows.part(4, 11), whole[4:11])


def test_dot_products_leave_features_as_they_are():
  values = np.arange(6, dtype=np.float32).reshape(3, 2)
  assert features.prepare(values, 'g', similarity='dot') is not None
  np.testing.assert_array_equal(
    features.prepare(values, 'g', similarity='dot'), values
  )


@pytest.mark.parametrize(
  ('bad', 'message'),
  [(np.nan, 'NaN'), (np.inf, 'NaN or inf'), (0, 'zero'), (1e30, 'norm above')],
)
def test_a_refused_row_is_named_by_its_number_in_the_whole_array(bad, message):
  values = np.ones((10, 2), np.float32)
  values[7] = bad
  rows = features.Rows(values, 'drone.npy')
  rows.part(0, 7)
  with pytest.raises(ValueError, match=message) as error:
    rows.part(5, 10)
  assert 'drone.npy: 1 of 5 feature rows from row 5 on' in str(error.value)
  assert 'rows 7)' in str(error.value)


@pytest.mark.parametrize(
  'values', [np.ones((2, 2), bool), np.ones((2, 2), 'c8')]
)
def test_only_real_numbers_are_features(values):
  with pytest.raises(ValueError, match='expected real numbers'):
    features.Rows(values, 'query')


def test_more_rows_than_int32_can_number_are_refused():
  huge = np.broadcast_to(np.float32(1), (2**31, 1))
  with pytest.raises(ValueError, match=r'2147483648 rows.*int32'):
    features.check_row_numbers(features.Rows(huge, 'gallery'))


@pytest.mark.parametrize('dim', [1, 2, 3, 7, 64, 100, 513])
def test_an_exact_score_is_the_tree_sum_of_rounded_products(dim):
  rng = np.random.default_rng(dim)
  query, gallery = rng.standard_normal((2, 40, dim), np.float32)
  expected = [tree_sum(row) for row in query * gallery]
  found = np.asarray(exact_scores(query, gallery))
  np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_an_exact_score_depends_on_nothing_but_its_two_rows():
  rng = np.random.default_rng(0)
  query, gallery = rng.standard_normal((2, 33, 384), np.float32)
  whole = np.asarray(exact_scores(query[:, None], gallery[None]))
  np.testing.assert_array_equal(exact_scores(query[5], gallery[9]), whole[5, 9])
  np.testing.assert_array_equal(
    exact_scores(query[3:10], gallery[9:10]), whole[3:10, 9]
  )
  assert not np.signbit(exact_scores(-np.ones(3, 'f4'), np.zeros(3, 'f4')))


@pytest.mark.parametrize('first_pass', ['float32', 'bfloat16'])
@pytest.mark.parametrize('scale', [1, 1e-3, 1e15, 1e-18])
def test_approximate_scores_are_as_close_as_they_say(first_pass, scale):
  rng = np.random.default_rng(3)
  query, gallery = rng.standard_normal((2, 60, 200), np.float32)
  query *= np.float32(scale)
  gallery *= 10 ** rng.uniform(-3, 0, (60, 1)).astype(np.float32)
  scores, error = approximate_scores(query, gallery, first_pass=first_pass)
  exact = np.asarray(exact_scores(query[:, None], gallery[None]), np.float64)
  real = query.astype(np.float64) @ gallery.T.astype(np.float64)
  distance = np.abs(scores - exact).max(axis=1)
  assert (distance <= error).all()
  assert (np.abs(exact - real).max(axis=1) <= error).all()
  if scale < 1e-10:
    return  # Numbers that become zero are allowed for, generously.
  # Not a bound that excludes nothing.
  norms = np.linalg.norm(query, axis=1) * np.linalg.norm(gallery, axis=1).max()
  limit = {'float32': 4e-5, 'bfloat16': 5e-3}[first_pass]
  assert (np.asarray(error) < limit * norms).all()
  if first_pass == 'bfloat16':
    assert (distance > 1e-5 * norms).any()
