"""Slow NumPy versions of the losses, written from the formulas, in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def unit(x):
  return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True))


def ce(scores, label):
  """Mean of log(sum_j exp(s_j)) - s_label over the rows."""
  losses = []
  for row, k in zip(scores, label, strict=True):
    top = max(row)
    losses.append(top + math.log(sum(math.exp(s - top) for s in row)) - row[k])
  return sum(losses) / len(losses)


def circle(x, label, margin=0.25, gamma=32.0):
  z = unit(x)
  positive, negative = [], []
  for i in range(len(z)):
    for j in range(i + 1, len(z)):
      s = float(z[i] @ z[j])
      if label[i] == label[j]:
        alpha = max(0.0, 1 + margin - s)
        positive.append(-gamma * alpha * (s - 1 + margin))
      else:
        negative.append(gamma * max(0.0, s + margin) * (s - margin))
  if not positive or not negative:
    return 0.0
  total = sum(map(math.exp, positive)) * sum(map(math.exp, negative))
  return math.log1p(total)


def contrastive(x, label, pull_margin=0.0, push_margin=1.0):
  z = unit(x)
  pull, push = [], []
  for i in range(len(z)):
    for j in range(len(z)):
      d = float(np.linalg.norm(z[i] - z[j]))
      if i != j and label[i] == label[j] and d > pull_margin:
        pull.append(d - pull_margin)
      if label[i] != label[j] and d < push_margin:
        push.append(push_margin - d)
  mean = lambda values: sum(values) / len(values) if values else 0.0
  return mean(pull) + mean(push)


def lifted(x, label):
  z = unit(x)
  rows = []
  for i in range(len(z)):
    d = [float(np.linalg.norm(z[i] - z[j])) for j in range(len(z))]
    others = [j for j in range(len(z)) if j != i]
    a = [math.exp(d[j]) for j in others if label[j] == label[i]]
    b = [math.exp(1 - d[j]) for j in others if label[j] != label[i]]
    row = (math.log(sum(a)) if a else 0.0) + (math.log(sum(b)) if b else 0.0)
    rows.append(max(0.0, row))
  return sum(rows) / len(rows)


def mined_pairs(x, label, epsilon=0.1):
  s = unit(x) @ unit(x).T
  n = len(s)
  positive, negative = np.zeros((n, n), bool), np.zeros((n, n), bool)
  for i in range(n):
    mates = [j for j in range(n) if j != i and label[j] == label[i]]
    rivals = [j for j in range(n) if label[j] != label[i]]
    if not mates or not rivals:
      continue
    for p in mates:
      positive[i, p] = s[i, p] - epsilon < max(s[i, k] for k in rivals)
    for k in rivals:
      negative[i, k] = s[i, k] + epsilon > min(s[i, p] for p in mates)
  return positive, negative


def triplet(x, label, margin=0.3, epsilon=0.1):
  z = unit(x)
  positive, negative = mined_pairs(x, label, epsilon)
  values = []
  for i, p in np.argwhere(positive):
    for k in np.flatnonzero(negative[i]):
      v = np.linalg.norm(z[i] - z[p]) - np.linalg.norm(z[i] - z[k]) + margin
      if v > 0:
        values.append(v)
  return sum(values) / len(values) if values else 0.0


def margin_softmax(x, w, label, kind):
  """ArcFace 28.6 deg, CosFace 0.35, SphereFace 4, from the angles."""
  scores = unit(x) @ (w / np.linalg.norm(w, axis=0))
  for i, k in enumerate(label):
    theta = math.acos(min(1.0, max(-1.0, scores[i, k])))
    if kind == 'arcface':
      m = 28.6 * math.pi / 180
      moved = math.cos(theta + m)
      if theta > math.pi - m:
        moved = math.cos(theta) - m * math.sin(m)
    elif kind == 'cosface':
      moved = math.cos(theta) - 0.35
    else:
      turns = math.floor(4 * theta / math.pi)
      moved = (-1) ** turns * math.cos(4 * theta) - 2 * turns
    scores[i, k] = moved
  return ce(scores if kind == 'sphere' else 64 * scores, label)


def info_nce(
  query, reference, place, temperature, label_smoothing=0.0, groups=1
):
  losses = []
  for first in range(groups):
    part = range(first, len(query), groups)
    for a, b in ((query, reference), (reference, query)):
      a, b = unit(a), unit(b)
      for i in part:
        rows = [
          j for j in part if j == i or place is None or place[i] != place[j]
        ]
        s = {j: float(a[i] @ b[j]) / temperature for j in rows}
        log_sum = math.log(sum(map(math.exp, s.values())))
        even = sum(s.values()) / len(s)
        losses.append(
          log_sum - (1 - label_smoothing) * s[i] - label_smoothing * even
        )
  return sum(losses) / len(losses)


def weighted_tuple(query, reference, alpha, groups=1):
  """log(1 + sum over the negatives), both ways, group by group."""
  u, v = unit(query), unit(reference)
  losses = []
  for first in range(groups):
    part = range(first, len(u), groups)
    for a, b in ((u, v), (v, u)):
      for i in part:
        differences = [a[i] @ b[j] - a[i] @ b[i] for j in part if j != i]
        losses.append(math.log1p(sum(math.exp(alpha * d) for d in differences)))
  return sum(losses) / len(losses)


def soft_triplet(query, reference, alpha, groups=1):
  """Mean of log(1 + exp) over all triplets, both ways, group by group."""
  u, v = unit(query), unit(reference)
  losses = []
  for first in range(groups):
    part = range(first, len(u), groups)
    for a, b in ((u, v), (v, u)):
      losses += [
        math.log1p(math.exp(alpha * (a[i] @ b[j] - a[i] @ b[i])))
        for i in part
        for j in part
        if j != i
      ]
  return sum(losses) / len(losses)


def check_value_and_gradient(loss, oracle, arrays, label, **options):
  """`loss` (JAX) equals `oracle` (NumPy) in value and in its slopes.

  Both are called as f(*arrays, label, **options). The float64 value to 1e-9,
  the float64 gradient to the oracle's central differences, and the float32
  value to 2e-5 of the oracle.
  """
  plain = lambda *arrays: oracle(*arrays, label, **options)
  compiled = value_and_grad(loss, len(arrays), **options)
  expected = plain(*arrays)
  narrow, _ = compiled(*(jnp.asarray(a, jnp.float32) for a in arrays), label)
  np.testing.assert_allclose(narrow, expected, rtol=2e-5, atol=2e-5)
  with jax.enable_x64(True):
    value, grads = compiled(*(jnp.asarray(a) for a in arrays), label)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)
    for k, grad in enumerate(grads):
      slopes = central_differences(plain, arrays, k)
      np.testing.assert_allclose(grad, slopes, rtol=1e-5, atol=1e-6)


@functools.cache
def value_and_grad(loss, count=1, **options):
  """Jitted once per loss: f(*arrays, label) -> value, `count` gradients."""
  function = functools.partial(loss, **options)
  return jax.jit(jax.value_and_grad(function, argnums=tuple(range(count))))


def central_differences(function, arrays, k, step=1e-5):
  slopes = np.zeros_like(arrays[k])
  for index in np.ndindex(*slopes.shape):
    ends = []
    for sign in (1, -1):
      moved = [a.copy() for a in arrays]
      moved[k][index] += sign * step
      ends.append(function(*moved))
    slopes[index] = (ends[0] - ends[1]) / (2 * step)
  return slopes


def random_batch(seed, *, batch=7, dim=4, classes=3):
  """Embeddings [B, D] float64 of any length, labels [B]."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((batch, dim)) * rng.uniform(0.5, 3, (batch, 1))
  return x, rng.integers(0, classes, batch)
