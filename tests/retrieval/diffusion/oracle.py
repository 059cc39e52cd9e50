"""Diffusion written from the formulas, one number at a time, in float64."""

import numpy as np


def clustered(rng, clusters: int, each: int, dim: int = 16) -> np.ndarray:
  """Unit rows [clusters * each, dim] float32 around random centers."""
  center = np.repeat(rng.standard_normal((clusters, dim)), each, axis=0)
  return unit(center + 0.8 * rng.standard_normal(center.shape))


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of norm 1, float32."""
  rows = np.asarray(rows, np.float64)
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def neighbours(features: np.ndarray, k: int) -> np.ndarray:
  """[N, k]: the node itself, then the most similar ones, lower rows first."""
  lists = []
  for i, row in enumerate(features):
    similarity = features.astype(np.float64) @ row.astype(np.float64)
    order = np.argsort(-similarity, kind='stable')
    lists.append([i, *order[order != i]][:k])
  return np.array(lists)


def affinity(features, lists, kd: int, gamma: int = 3) -> np.ndarray:
  """Dense W [N, N]."""
  size = len(features)
  similarity = features.astype(np.float64) @ features.T.astype(np.float64)
  weight = np.zeros((size, size))
  for i in range(size):
    for j in lists[i, :kd]:
      if i != j and i in lists[j, :kd]:
        weight[i, j] = max(similarity[i, j], 0) ** gamma
  return weight


def laplacian(weight: np.ndarray, alpha: float = 0.99) -> np.ndarray:
  """Dense L [N, N]."""
  scale = (weight.sum(axis=1) + 1e-12) ** -0.5
  return np.eye(len(weight)) - alpha * scale[:, None] * weight * scale[None]


def cg(matrix: np.ndarray, iterations: int, tolerance: float = 1e-6):
  """(x, iterations, residual norm) of matrix x = e_0, from x = 0."""
  x = np.zeros(len(matrix))
  r = np.eye(len(matrix))[0]
  p, before = r, None
  for n in range(iterations):
    if np.linalg.norm(r) < tolerance:
      return x, n, np.linalg.norm(r)
    rho = r @ r
    p = r if before is None else r + rho / before * p
    q = matrix @ p
    x, r, before = x + rho / (p @ q) * p, r - rho / (p @ q) * q, rho
  return x, iterations, np.linalg.norm(r)


def offline(features, *, kd, n_trunc, iterations=20, alpha=0.99, gamma=3):
  """Dense F [N, N]."""
  lists = neighbours(features, n_trunc)
  matrix = laplacian(affinity(features, lists, kd, gamma), alpha)
  rows = np.zeros(matrix.shape)
  for i, near in enumerate(lists):
    rows[i, near], _, _ = cg(matrix[np.ix_(near, near)], iterations)
  return rows


def seeds(query, places, kq: int, vectors: int = 1):
  """[(similarity, place), ...] of every query, best first."""
  found = []
  for row in query.astype(np.float64):
    similarity = places.astype(np.float64) @ row
    best = [
      max(similarity[i : i + vectors]) for i in range(0, len(places), vectors)
    ]
    order = np.argsort(-np.array(best), kind='stable')[:kq]
    found.append([(best[i], i) for i in order])
  return found


def online(found, rows: np.ndarray, gamma: int = 3) -> np.ndarray:
  """[Q, N] scores."""
  return np.array(
    [sum(s**gamma * rows[j] for s, j in query) for query in found]
  )
