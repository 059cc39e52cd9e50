import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.retrieval import device_search, features, search
from tests.retrieval import oracle

SEEDS = range(5)
exact_scores = jax.jit(features.exact_scores)


def mesh_of(count):
  """None searches on the host."""
  return sharding.make_mesh(jax.devices()[:count]) if count else None


def all_exact(query, gallery, similarity='cosine'):
  """[Q, G], the scores that rankings are defined by."""
  query, gallery = features.prepare_pair(query, gallery, similarity=similarity)
  return np.asarray(exact_scores(query[:, None], gallery[None]))


def copies(seed, *, num_queries=20, size=500, dim=48):
  """Rows that differ in the last bits, and many exact copies."""
  rng = np.random.default_rng(seed)
  query = rng.standard_normal((num_queries, dim), np.float32)
  gallery = query[rng.integers(0, num_queries, size)]
  noise = rng.choice([0, 1e-7, 1e-3], (size, 1)).astype(np.float32)
  return query, gallery + noise * rng.standard_normal((size, dim), np.float32)


@pytest.mark.parametrize('ties', ['lower', 'higher'])
@pytest.mark.parametrize('seed', SEEDS)
def test_top_k_equals_a_sorted_loop_with_ties(seed, ties):
  query, gallery, _, _ = oracle.case(seed)
  scores = query @ gallery.T
  expected = np.stack([oracle.ranking(row, ties)[:7] for row in scores])
  found = search.top_k(
    query,
    gallery,
    k=7,
    similarity='dot',
    ties=ties,
    query_chunk=5,
    gallery_chunk=6,
  )
  np.testing.assert_array_equal(found.rows, expected)
  np.testing.assert_array_equal(
    found.scores, np.take_along_axis(scores, expected, axis=1)
  )
  given = search.top_k_scores(scores, k=7, ties=ties)
  np.testing.assert_array_equal(given.rows, expected)
  np.testing.assert_array_equal(given.scores, found.scores)


@pytest.mark.parametrize('chunks', [(1, 1), (4, 39), (13, 40), (100, 100)])
def test_chunks_do_not_change_the_result(chunks):
  query, gallery, _, _ = oracle.case(0, coarse=False)
  whole = search.top_k(query, gallery, k=9)
  parts = search.top_k(
    query, gallery, k=9, query_chunk=chunks[0], gallery_chunk=chunks[1]
  )
  np.testing.assert_array_equal(parts.rows, whole.rows)
  np.testing.assert_array_equal(parts.scores, whole.scores)


def test_k_above_the_gallery_size_gives_the_whole_gallery():
  query, gallery, _, _ = oracle.case(1, coarse=False)
  found = search.top_k(query, gallery, k=1000, gallery_chunk=7)
  assert found.rows.shape == (len(query), len(gallery))
  assert (np.sort(found.rows, axis=1) == np.arange(len(gallery))).all()
  assert (np.diff(found.scores, axis=1) <= 0).all()


def test_cosine_ignores_the_scale_of_features_and_dot_does_not():
  query, gallery, _, _ = oracle.case(2, coarse=False)
  scale = np.random.default_rng(0).uniform(0.01, 100, (len(gallery), 1))
  scaled = (gallery * scale).astype(np.float32)
  plain = search.top_k(query, gallery, k=5)
  np.testing.assert_array_equal(
    search.top_k(query * 7, scaled, k=5).rows, plain.rows
  )
  dot = search.top_k(query, scaled, k=5, similarity='dot')
  assert (dot.rows != plain.rows).any()


def test_one_query_and_float64_features_are_fine():
  gallery = np.eye(4)
  found = search.top_k(gallery[2:3], gallery, k=1)
  assert found.rows.tolist() == [[2]]
  assert found.scores.dtype == np.float32


@pytest.mark.parametrize(
  ('value', 'message'), [(np.nan, 'NaN or infinite'), (np.inf, 'NaN or inf')]
)
def test_features_that_are_not_finite_are_refused_by_row(value, message):
  query, gallery, _, _ = oracle.case(3, coarse=False)
  gallery[[4, 9], 1] = value
  with pytest.raises(ValueError, match=message) as error:
    search.top_k(query, gallery, k=1)
  assert 'gallery: 2 of 40' in str(error.value)
  assert 'rows 4, 9' in str(error.value)


def test_zero_features_have_no_cosine_but_a_dot_product():
  query, gallery, _, _ = oracle.case(4, coarse=False)
  query[0] = 0
  with pytest.raises(ValueError, match=r'query: 1 of 13 .* zero.*rows 0'):
    search.top_k(query, gallery, k=1)
  search.top_k(query, gallery, k=1, similarity='dot')


@pytest.mark.parametrize(
  ('query', 'gallery', 'options', 'message'),
  [
    (np.ones((2, 3)), np.ones((4, 5)), {'k': 1}, 'dimension 3.*5'),
    (np.ones((2, 3)), np.ones((0, 3)), {'k': 1}, 'gallery.*empty'),
    (np.ones((2, 3)), np.ones(3), {'k': 1}, r'gallery.*shape \(3,\)'),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 0}, 'k=0'),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 1, 'ties': 'x'}, "ties 'x'"),
    (np.ones((2, 3)), np.ones((4, 3)), {'k': 1, 'similarity': 'l2'}, "'l2'"),
    (np.ones((2, 3)), np.full((4, 3), 1e30), {'k': 1}, 'norm above'),
  ],
)
def test_unusable_input_is_an_error(query, gallery, options, message):
  with pytest.raises(ValueError, match=message):
    search.top_k(query, gallery, **options)


@pytest.mark.parametrize('first_pass', ['float32', 'bfloat16'])
@pytest.mark.parametrize('devices', [0, 3])
@pytest.mark.parametrize('ties', ['lower', 'higher'])
def test_every_way_of_searching_gives_the_defined_ranking(
  ties, devices, first_pass
):
  for seed, make in enumerate([copies, lambda s: oracle.case(s + 5)[:2]]):
    query, gallery = make(seed)
    scores = all_exact(query, gallery, 'dot')
    expected = np.stack([oracle.ranking(row, ties)[:9] for row in scores])
    found = search.top_k(
      query,
      gallery,
      k=9,
      similarity='dot',
      ties=ties,
      query_chunk=7,
      gallery_chunk=16,
      mesh=mesh_of(devices),
      first_pass=first_pass,
    )
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(
      found.scores, np.take_along_axis(scores, expected, axis=1)
    )


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('k', [1, 10, 700])
def test_eight_devices_equal_one_bit_for_bit(k, seed):
  rng = np.random.default_rng(seed)
  size = int(rng.integers(300, 700))
  query, gallery = copies(seed, size=size, dim=int(rng.integers(3, 70)))
  chunks = {'query_chunk': 8, 'gallery_chunk': int(rng.integers(1, 60))}
  whole = search.top_k(query, gallery, k=k)
  assert whole.rows.shape == (20, min(k, size))
  split = search.top_k(query, gallery, k=k, mesh=mesh_of(8), **chunks)
  np.testing.assert_array_equal(split.rows, whole.rows)
  np.testing.assert_array_equal(split.scores, whole.scores)


@pytest.mark.parametrize('devices', [0, 8])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_a_memory_mapped_gallery_equals_one_in_memory(tmp_path, dtype, devices):
  query, gallery = copies(1)
  gallery = gallery.astype(dtype)
  np.save(tmp_path / 'gallery.npy', gallery)
  mapped = np.load(tmp_path / 'gallery.npy', mmap_mode='r')
  options = {'k': 11, 'mesh': mesh_of(devices), 'gallery_chunk': 13}
  expected = search.top_k(query, gallery, k=11)
  found = search.top_k(query, mapped, **options)
  np.testing.assert_array_equal(found.rows, expected.rows)
  np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_placed_gallery_is_searched_again_and_again():
  query, gallery = copies(2)
  placed = device_search.place(gallery, chunk=30, mesh=mesh_of(8))
  for k, ties in ((3, 'lower'), (3, 'higher'), (20, 'lower')):
    found = search.top_k(query, placed, k=k, ties=ties)
    expected = search.top_k(query, gallery, k=k, ties=ties)
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_too_many_equal_rows_for_a_device_are_found_all_the_same():
  query = np.ones((3, 4), np.float32)
  gallery = np.ones((900, 4), np.float32)
  for ties, first in (('lower', 0), ('higher', 899)):
    found = search.top_k(query, gallery, k=2, ties=ties, mesh=mesh_of(1))
    assert found.rows[:, 0].tolist() == [first] * 3
    assert found.repeated == 3


def test_a_gallery_sorted_the_wrong_way_round_is_no_special_case():
  rng = np.random.default_rng(0)
  query = rng.standard_normal((1, 16), np.float32)
  gallery = rng.standard_normal((600, 16), np.float32)
  gallery = gallery[np.argsort(all_exact(query, gallery)[0])]
  for devices in (0, 8):
    found = search.top_k(
      query, gallery, k=5, gallery_chunk=50, mesh=mesh_of(devices)
    )
    assert found.rows[0].tolist() == [599, 598, 597, 596, 595]


@pytest.mark.parametrize('devices', [0, 8])
def test_the_first_pass_in_bfloat16_is_repeated_where_it_cannot_decide(devices):
  rng = np.random.default_rng(0)
  query = rng.standard_normal((6, 32), np.float32)
  gallery = rng.standard_normal((4000, 32), np.float32)
  options = {'k': 2, 'first_pass': 'bfloat16', 'mesh': mesh_of(devices)}
  assert search.top_k(query, gallery, **options).repeated == 0
  # All cosines are within 1e-4 of each other: bfloat16 sees one number.
  query, gallery = 1 + 0.01 * query, 1 + 0.01 * gallery
  found = search.top_k(query, gallery, **options)
  assert found.repeated == 6
  expected = np.argsort(-all_exact(query, gallery), axis=1, kind='stable')
  np.testing.assert_array_equal(found.rows, expected[:, :2])


@pytest.mark.parametrize('devices', [0, 8])
def test_a_bad_row_in_the_last_chunk_is_refused(devices):
  query, gallery, _, _ = oracle.case(3, coarse=False)
  gallery[38] = np.nan
  with pytest.raises(ValueError, match=r'gallery: 1 of .* \(rows 38\)'):
    search.top_k(query, gallery, k=1, gallery_chunk=4, mesh=mesh_of(devices))


def test_scores_that_are_nan_are_not_ranked():
  with pytest.raises(ValueError, match='NaN'):
    search.top_k_scores(np.array([[1, np.nan]]), k=1)


# Watches the memory of its own process, without pages of mapped files.
WATCH = """
import re, sys, threading, time
import numpy as np
from cvgl_jax.retrieval import search

def resident():
  text = open('/proc/self/status').read()
  return 1024 * int(re.search(r'RssAnon:\\s+(\\d+)', text)[1])

def watch():
  while not done.is_set():
    seen.append(resident())
    time.sleep(0.002)

gallery = np.load(sys.argv[1], mmap_mode='r')
query = np.random.default_rng(1).standard_normal((64, 512), np.float32)
options = {'k': 10, 'query_chunk': 32, 'gallery_chunk': 1024}
search.top_k(query, gallery[:2048], **options)
seen, done = [resident()], threading.Event()
threading.Thread(target=watch, daemon=True).start()
found = search.top_k(query, gallery, **options)
done.set()
# Copies of the best row, the first of them first.
assert (np.diff(found.rows) == 1000).all() and (found.rows < 10_000).all()
peak = 8 * 64 * (512 + 10) + 16 * 1024 * 512 + 16 * 32 * 1024 + 2**26
assert len(seen) > 20 and max(seen) - seen[0] < peak, (max(seen), seen[0])
"""


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='reads /proc'
)
def test_a_gallery_in_a_file_is_searched_within_the_documented_memory(tmp_path):
  path = tmp_path / 'gallery.npy'
  gallery = np.lib.format.open_memmap(path, 'w+', np.float32, (50_000, 512))
  tile = np.random.default_rng(0).standard_normal((1000, 512), np.float32)
  for start in range(0, 50_000, 1000):
    gallery[start : start + 1000] = tile
  gallery.flush()
  subprocess.run(
    [sys.executable, '-c', WATCH, str(path)],
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
    env={'JAX_PLATFORMS': 'cpu'},
  )


@pytest.mark.parametrize('first_pass', ['float32', 'bfloat16'])
def test_a_device_needs_the_documented_memory(first_pass):
  q, g, dim, k, devices = 512, 16384, 64, 20, 8
  shape = jax.ShapeDtypeStruct
  step = device_search._step(mesh_of(devices), k=k, first_pass=first_pass)
  compiled = step.lower(
    shape((q, dim), np.float32),
    shape((devices * g, dim), np.float32),
    *(shape((), np.int32) for _ in range(3)),
    shape((devices, q, k), np.float32),
    shape((devices, q, k), np.int32),
    shape((devices, q), bool),
  ).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert 4 * q * g < temporary < 12 * q * g + 8 * g * dim
