import numpy as np
import pytest

from cvgl_jax.retrieval import evaluation, metrics, multiview, ranking, rerank

Q, G, D = 15, 40, 6


def features(seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(Q, D)).astype(np.float32),
    rng.normal(size=(G, D)).astype(np.float32),
  )


def dense_scores(query, gallery, method, **settings):
  if method == 'gnn':
    return rerank.gnn(query, gallery, **settings)
  return -rerank.k_reciprocal(query, gallery, **settings)


def oracle(query, gallery, positives, *, method, candidates, junk, forgiven):
  """Ranks of the positives in lists that are written out in full."""
  unit = [
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)
  ]
  scores = dense_scores(query, gallery, method, k1=5, k2=3)
  ranks = np.full(positives.shape, -1)
  for q, cosine in enumerate(unit[0] @ unit[1].T):
    order = np.argsort(-cosine, kind='stable')
    first = order[:candidates]
    first = first[np.argsort(-scores[q, first], kind='stable')]
    order = [*first, *order[candidates:]]
    gone = {
      *np.flatnonzero(junk),
      *(forgiven[q] if forgiven is not None else ()),
    }
    order = [g for g in order if g not in gone - {*positives[q]}]
    for p, row in enumerate(positives[q]):
      if row >= 0 and not junk[row]:
        ranks[q, p] = order.index(row)
  return ranks


@pytest.mark.parametrize('method', ['gnn', 'k_reciprocal'])
@pytest.mark.parametrize('candidates', [1, 7, 25, G, 10 * G])
def test_reranked_candidates_equal_lists_written_out(method, candidates):
  query, gallery = features(candidates)
  rng = np.random.default_rng(candidates)
  gallery_place = rng.integers(-1, 12, G)
  query_place = rng.integers(0, 13, Q)
  found = evaluation.rank(
    query,
    gallery,
    answers={'query_place': query_place, 'gallery_place': gallery_place},
    rules=evaluation.Rules(),
    rerank=evaluation.Reranking(
      method=method, k1=5, k2=3, candidates=candidates
    ),
    top=3,
  )
  equal = query_place[:, None] == gallery_place[None]
  wanted = oracle(
    query,
    gallery,
    np.where(equal, np.arange(G)[None], -1),
    method=method,
    candidates=candidates,
    junk=gallery_place == -1,
    forgiven=None,
  )
  wanted = metrics.summarize(wanted, G, per_query=True)
  np.testing.assert_array_equal(found.result.first_rank, wanted.first_rank)
  wanted = pytest.approx(wanted.report(), rel=1e-12)
  assert found.result.report() == wanted
  assert found.best.rows.shape == (Q, 3)


def test_semi_positives_are_forgiven_after_reranking():
  query, gallery = features(3)
  rows = np.stack(
    [np.random.default_rng(i).permutation(G)[:4] for i in range(Q)]
  )
  common = {'method': 'gnn', 'candidates': 12, 'junk': np.zeros(G, bool)}
  wanted = metrics.summarize(
    oracle(query, gallery, rows[:, :1], forgiven=None, **common),
    G,
    forgiving_ranks=oracle(
      query, gallery, rows[:, :1], forgiven=rows[:, 1:], **common
    ),
  )
  found = evaluation.rank(
    query,
    gallery,
    answers={'positives': rows[:, :1], 'semi_positives': rows[:, 1:]},
    rules=evaluation.Rules(),
    rerank=evaluation.Reranking(method='gnn', k1=5, k2=3, candidates=12),
  )
  wanted = pytest.approx(wanted.report(), rel=1e-12)
  assert found.result.report() == wanted


@pytest.mark.parametrize('method', ['none', 'gnn', 'k_reciprocal'])
def test_lists_come_without_ground_truth(method):
  query, gallery = features()
  found = evaluation.rank(
    query,
    gallery,
    answers=None,
    rules=evaluation.Rules(),
    rerank=evaluation.Reranking(method=method),
    top=4,
  )
  assert found.result is None
  assert found.best.rows.shape == (Q, 4)


def test_distractors_are_junk_where_the_rules_say_so():
  query, gallery = features()
  places = np.arange(Q), np.arange(G)
  answers = {'query_place': places[0], 'gallery_place': places[1]}
  for rules, kept in (
    (evaluation.Rules(), G),
    (evaluation.Rules(junk_distractors=True), Q),
  ):
    found = evaluation.rank(query, gallery, answers=answers, rules=rules)
    wanted = ranking.evaluate_ranking(
      query, gallery[:kept], places[0], places[1][:kept], per_query=True
    )
    np.testing.assert_array_equal(found.result.first_rank, wanted.first_rank)


def test_merged_places_are_shown_by_their_first_row():
  query, _ = features()
  place = np.array([7, 3, 7, 3, 5] * 3)
  mean = evaluation.merge(query, place, fusion='mean')
  refined = evaluation.merge(query, place, fusion='mrm')
  for merged in (mean, refined):
    assert merged.place.tolist() == [3, 5, 7]
    assert merged.row.tolist() == [1, 4, 0]
    np.testing.assert_allclose(
      np.linalg.norm(merged.features, axis=1), 1, rtol=1e-5
    )
  assert not np.allclose(mean.features, refined.features)
  raw = evaluation.merge(query, place, fusion='mean', unit=False)
  np.testing.assert_array_equal(
    raw.features, multiview.mean_by_place(query, place).features
  )


def test_every_protocol_is_a_valid_set_of_rules():
  query, gallery = features()
  answers = {'query_place': np.arange(Q), 'gallery_place': np.arange(G)}
  for rules in evaluation.PROTOCOLS.values():
    found = evaluation.rank(query, gallery, answers=answers, rules=rules)
    assert found.result.gallery_size == G


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'method': 'gcn'}, "rerank 'gcn'.*'k_reciprocal'"),
    ({'candidates': 5}, 'need a rerank method'),
    ({'k1': 5}, 'need a rerank method'),
    ({'method': 'gnn', 'candidates': -1}, 'rerank_candidates -1'),
  ],
)
def test_options_that_make_no_sense_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    evaluation.Reranking(**options)
