import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.retrieval import counting, metrics, ranks
from tests.retrieval import oracle

SEEDS = range(5)
# Whole galleries are ranked at once, larger ones in parts with a first pass.
CHUNKS = [
  {},
  {'query_chunk': 1, 'gallery_chunk': 64},
  {'query_chunk': 64, 'gallery_chunk': 150},
]


def slow_ranks(scores, positives, *, ties, junk=None, exclude=None):
  """One query and one positive at a time, from the whole sorted gallery."""
  found = np.full(positives.shape, -1)
  gallery = np.arange(scores.shape[1])
  for q, row in enumerate(scores):
    kept = np.ones(len(row), bool) if junk is None else ~junk
    if exclude is not None:
      kept = kept & ~np.isin(gallery, exclude[q])
    order = np.lexsort((-gallery if ties == 'higher' else gallery, -row))
    order = order[kept[order]].tolist()
    for p, g in enumerate(positives[q]):
      if g < 0 or not kept[g]:
        continue
      if ties == 'optimistic':
        found[q, p] = (row[kept] > row[g]).sum()
      else:
        found[q, p] = order.index(g)
  return found


def lists(rng, num_queries, size, longest):
  """[Q, longest] distinct rows, some of them fills."""
  rows = np.argsort(rng.random((num_queries, size)), axis=1)[:, :longest]
  return np.where(rng.random(rows.shape) < 0.3, -1, rows)


@pytest.mark.parametrize('chunks', CHUNKS)
@pytest.mark.parametrize('ties', metrics.TIES)
@pytest.mark.parametrize('positives', [1, 3, 8])
@pytest.mark.parametrize('seed', SEEDS)
def test_ranks_equal_a_sorted_list_with_many_ties(
  seed, positives, ties, chunks
):
  query, gallery, _, _ = oracle.case(seed, num_queries=70, size=200)
  rng = np.random.default_rng(seed)
  rows = lists(rng, 70, 200, positives)
  junk = rng.random(200) < 0.2
  exclude = lists(rng, 70, 200, 5)
  scores = query @ gallery.T
  options = {'similarity': 'dot', 'ties': ties} | chunks
  for taken_out in ({}, {'junk': junk}, {'exclude': exclude}):
    found = ranks.rank_of_positive(
      query,
      gallery,
      rows,
      exclude=next(iter(taken_out.values()), None),
      **options,
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(
      found, slow_ranks(scores, rows, ties=ties, **taken_out)
    )


@pytest.mark.parametrize('mesh', [False, True])
@pytest.mark.parametrize('chunks', CHUNKS)
@pytest.mark.parametrize('dim', [3, 100, 513])
def test_equal_features_tie_wherever_they_stand(dim, chunks, mesh):
  """The score of a positive comes from elsewhere than those it is compared to."""
  rng = np.random.default_rng(dim)
  distinct = rng.standard_normal((100, dim)).astype(np.float32)
  gallery = distinct[np.argsort(rng.random((10, 100)), axis=1).reshape(-1)]
  query = rng.standard_normal((131, dim)).astype(np.float32)
  rows = lists(rng, 131, 1000, 4)
  mesh = sharding.make_mesh() if mesh else None
  found = ranks.rank_of_positive(
    query, gallery, rows, ties='optimistic', mesh=mesh, **chunks
  )
  # Exactly the ten copies tie, so each positive has a multiple of ten before it.
  assert (found[rows >= 0] % 10 == 0).all()
  lower = ranks.rank_of_positive(query, gallery, rows, mesh=mesh, **chunks)
  copies = (gallery[rows][:, :, None] == gallery[None, None]).all(-1)
  earlier = (copies & (np.arange(1000)[None, None] < rows[..., None])).sum(-1)
  np.testing.assert_array_equal((lower - found)[rows >= 0], earlier[rows >= 0])


@pytest.mark.parametrize('chunks', CHUNKS)
@pytest.mark.parametrize('positives', [1, 8])
def test_a_mesh_of_eight_devices_changes_no_rank(positives, chunks):
  rng = np.random.default_rng(0)
  query = rng.standard_normal((70, 65)).astype(np.float32)
  gallery = rng.standard_normal((700, 65)).astype(np.float32)
  rows = lists(rng, 70, 700, positives)
  watched = lists(rng, 70, 700, 3)
  one = ranks.count(query, gallery, rows, watched=watched, **chunks)
  mesh = sharding.make_mesh()
  assert mesh.size == 8
  many = ranks.count(query, gallery, rows, watched=watched, mesh=mesh, **chunks)
  for a, b in zip(one, many, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('chunks', CHUNKS)
def test_memory_mapped_features_rank_like_arrays(tmp_path, chunks):
  rng = np.random.default_rng(1)
  arrays = [rng.standard_normal((n, 20), np.float32) for n in (70, 300)]
  for name, array in zip('qg', arrays, strict=True):
    np.save(tmp_path / f'{name}.npy', array)
  mapped = [np.load(tmp_path / f'{name}.npy', mmap_mode='r') for name in 'qg']
  rows = lists(rng, 70, 300, 5)
  np.testing.assert_array_equal(
    ranks.rank_of_positive(*mapped, rows, **chunks),
    ranks.rank_of_positive(*arrays, rows),
  )


def test_scores_of_positives_and_watched_rows_are_returned():
  rng = np.random.default_rng(2)
  query, gallery = rng.standard_normal((5, 8)), rng.standard_normal((30, 8))
  rows, watched = lists(rng, 5, 30, 2), lists(rng, 5, 30, 3)
  unit = [
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)
  ]
  scores = unit[0] @ unit[1].T
  for chunks in CHUNKS:
    found = ranks.count(query, gallery, rows, watched=watched, **chunks)
    for listed, got in ((rows, found.scores), (watched, found.watched)):
      expected = np.where(
        listed < 0, np.nan, np.take_along_axis(scores, listed, axis=1)
      )
      np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('ties', metrics.TIES)
def test_counting_on_device_and_on_host_agree(ties):
  rng = np.random.default_rng(3)
  scores = rng.integers(0, 9, (2, 6, 64)).astype(np.float32)
  keep = rng.random((2, 64)) < 0.8
  rows = lists(rng, 6, 128, 4).astype(np.int32)
  options = {'num_positives': 3, 'ties': ties}
  device = counting.on_device(
    list(scores), list(keep), rows, None, 0, **options
  )
  host = counting.on_host(list(scores), list(keep), rows, None, 0, **options)
  valid = (rows >= 0)[:, :3] & keep.reshape(-1)[rows[:, :3]]
  np.testing.assert_array_equal(
    np.asarray(device[0])[valid], np.asarray(host[0])[valid]
  )


def test_a_gallery_of_nothing_but_junk_leaves_no_rank():
  found = ranks.rank_of_positive(
    np.eye(3), np.eye(3), np.arange(3)[:, None], exclude=np.ones(3, bool)
  )
  assert (found == -1).all()


def test_no_positives_at_all_are_no_error():
  found = ranks.rank_of_positive(np.eye(3), np.eye(3), np.zeros((3, 0), int))
  assert found.shape == (3, 0)


@pytest.mark.parametrize('chunks', CHUNKS)
@pytest.mark.parametrize('bad', [np.nan, np.inf, 0])
@pytest.mark.parametrize('side', [0, 1])
def test_features_that_cannot_be_ranked_are_named_by_side_and_row(
  side, bad, chunks
):
  rng = np.random.default_rng(4)
  pair = [rng.standard_normal((200, 3)), rng.standard_normal((300, 3))]
  pair[side][170] = bad
  # Row 170 is a positive: it is looked at before its part of the gallery.
  rows = np.full((200, 1), 170)
  with pytest.raises(ValueError, match=rf'{("query", "gallery")[side]}: .*170'):
    ranks.rank_of_positive(*pair, rows, **chunks)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'gallery': np.ones((5, 3))}, 'dimension 2.*3'),
    ({'gallery': np.ones((0, 2))}, 'gallery: .* empty'),
    ({'query': np.ones((0, 2))}, 'query: .* empty'),
    ({'positives': np.zeros((3, 1), int)}, r'positives: shape \(3, 1\)'),
    ({'positives': np.full((4, 1), 5)}, 'expected 0 to 4'),
    ({'exclude': np.zeros(4, bool)}, r'junk: bool of shape \(4,\)'),
    ({'exclude': np.full((4, 1), 9)}, 'exclude: rows from 9'),
    ({'ties': 'x'}, "ties 'x'"),
    ({'query_chunk': 0}, 'query_chunk=0'),
    ({'gallery_chunk': -1}, 'gallery_chunk=-1'),
    ({'similarity': 'l2'}, "similarity 'l2'"),
  ],
)
def test_unusable_input_is_an_error(change, message):
  arguments = {
    'query': np.ones((4, 2)),
    'gallery': np.ones((5, 2)),
    'positives': np.zeros((4, 1), int),
  }
  with pytest.raises(ValueError, match=message):
    ranks.rank_of_positive(**(arguments | change))
