"""Peer learning against loops in NumPy, and at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.losses import peer


def units(rng, *shape):
  x = rng.standard_normal(shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch(seed, anchors=5, peers=3, places=4, dim=6):
  """Unit features and labels; some anchors have the same label."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, places, anchors).astype(np.int32)
  f, p = units(rng, anchors, dim), units(rng, anchors * peers, dim)
  return f, p, label, np.repeat(label, peers)


def loop(f, p, label, peer_label, easy, count):
  """(positive, negatives) of every anchor, one after the other."""
  n, rows = len(p) // len(f), []
  for k in range(len(f)):
    score = p @ f[k]
    own = list(range(n * k, n * k + n))
    best = (max if easy else min)(own, key=lambda m: score[m])
    others = [m for m in range(len(p)) if peer_label[m] != label[k]]
    hard = sorted(others, key=lambda m: -score[m])[:count]
    rows.append((best, hard + [-1] * (count - len(hard))))
  return [row[0] for row in rows], [row[1] for row in rows]


@pytest.mark.parametrize('easy', [True, False])
@pytest.mark.parametrize('count', [1, 4, 20])
@pytest.mark.parametrize('seed', range(3))
def test_mining_is_that_of_a_loop(easy, count, seed):
  f, p, label, peer_label = batch(seed)
  mined = peer.mine(
    peer.scores(f, p), label, peer_label, easy_positive=easy, negatives=count
  )
  positive, negatives = loop(f, p, label, peer_label, easy, count)
  np.testing.assert_array_equal(mined.positive, positive)
  np.testing.assert_array_equal(mined.negatives, negatives)


@pytest.mark.parametrize('pairing', peer.PAIRINGS)
@pytest.mark.parametrize('count', [4, 20])
def test_the_ranking_is_the_mean_over_all_negatives(pairing, count):
  f, p, label, peer_label = batch(1)
  positive, negatives = loop(f, p, label, peer_label, True, count)
  total = []
  for k in range(len(f)):
    for j, m in enumerate(negatives[k]):
      other = (count * k + j) % len(f) if pairing == 'tiled' else k
      negative = f[k] @ p[m] if m >= 0 else 0.0
      total.append(np.log1p(np.exp(negative - f[other] @ p[positive[other]])))
  mined = peer.Mined(jnp.array(positive), jnp.array(negatives))
  value = peer.ranking(peer.scores(f, p), mined, pairing=pairing)
  np.testing.assert_allclose(value, np.mean(total), rtol=1e-6)


def test_one_place_in_a_batch_has_no_negatives_and_a_finite_gradient():
  f, p, _, _ = batch(2)
  label, peer_label = np.zeros(5, np.int32), np.zeros(15, np.int32)

  def loss(f):
    score = peer.scores(f, p)
    mined = peer.mine(
      score, label, peer_label, easy_positive=True, negatives=10
    )
    return peer.ranking(score, mined, pairing='aligned'), mined

  (value, mined), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(f))
  assert (mined.negatives == -1).all()
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_a_student_that_agrees_has_nothing_to_learn():
  rng = np.random.default_rng(0)
  f, rows = units(rng, 4, 6), units(rng, 12, 5, 6)
  same = lambda f: peer.distillation((f, rows), (f, rows), tau=0.1)
  value, grad = jax.value_and_grad(same)(jnp.asarray(f))
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_distillation_is_the_divergence_over_all_rows_and_regions():
  rng = np.random.default_rng(1)
  student = units(rng, 3, 6), units(rng, 6, 5, 6)
  teacher = units(rng, 3, 6), units(rng, 6, 5, 6)

  def softmax(f, rows):
    score = np.einsum('bd,md->bm', f, rows.reshape(-1, 6)).astype(np.float64)
    weight = np.exp(score / 0.2)
    return weight / weight.sum(1, keepdims=True)

  q, p = softmax(*student), softmax(*teacher)
  value = peer.distillation(student, teacher, tau=0.2)
  np.testing.assert_allclose(
    value, (p * np.log(p / q)).sum(1).mean(), rtol=1e-5
  )


def test_the_teacher_has_no_gradient():
  rng = np.random.default_rng(2)
  student = units(rng, 3, 6), units(rng, 6, 1, 6)
  teacher = jnp.asarray(units(rng, 3, 6)), jnp.asarray(units(rng, 6, 1, 6))
  run = lambda teacher: peer.distillation(student, teacher, tau=0.1)
  assert not any(grad.any() for grad in jax.grad(run)(teacher))


def test_a_plan_that_gives_anchors_different_numbers_of_peers_is_refused():
  f, p, _, _ = batch(0)
  with pytest.raises(ValueError, match='14 peers for 5 anchors'):
    peer.scores(f, p[:14])
