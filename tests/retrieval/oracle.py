"""Slow retrieval metrics, one query at a time, from the published formulas."""

import numpy as np


def ranking(scores: np.ndarray, ties: str) -> np.ndarray:
  """Gallery rows of one query, best first."""
  rows = range(len(scores))
  sign = 1 if ties == 'lower' else -1
  return np.array(sorted(rows, key=lambda row: (-scores[row], sign * row)))


def evaluate(scores, query_place, gallery_place, *, ties, ap, junk=None):
  """First rank (-1: none), AP of every query, mean CMC."""
  num_queries, size = scores.shape
  first, precision = [], []
  cmc = np.zeros(size)
  for q in range(num_queries):
    order = ranking(scores[q], ties)
    taken_out = gallery_place == -1
    if junk is not None:
      taken_out = taken_out | (junk if junk.ndim == 1 else junk[q])
    order = [row for row in order if not taken_out[row]]
    good = [
      i for i, g in enumerate(order) if gallery_place[g] == query_place[q]
    ]
    if not good:
      first.append(-1)
      precision.append(0.0)
      continue
    total = 0.0
    for i, rank in enumerate(good):
      now = (i + 1) / (rank + 1)
      old = i / rank if rank else 1.0
      total += (now + old) / 2 if ap == 'trapezoid' else now
    first.append(good[0])
    precision.append(total / len(good))
    cmc[good[0] :] += 1
  return np.array(first), np.array(precision), cmc / num_queries


def case(seed, *, places=6, num_queries=13, size=40, dim=3, coarse=True):
  """Features with many exact ties, junk entries and orphan queries."""
  rng = np.random.default_rng(seed)
  query = rng.integers(-2, 3, (num_queries, dim)).astype(np.float32)
  gallery = rng.integers(-2, 3, (size, dim)).astype(np.float32)
  if not coarse:
    query = rng.standard_normal(query.shape).astype(np.float32)
    gallery = rng.standard_normal(gallery.shape).astype(np.float32)
  query_place = rng.integers(
    0, places + 2, num_queries
  )  # the last two: orphans
  gallery_place = rng.integers(-1, places, size)  # -1: junk
  return query, gallery, query_place, gallery_place


def hits(scores, positive, semi_positives, *, ties):
  """Which queries have nothing but semi-positives before their positive."""
  found = []
  for row, good, semi in zip(scores, positive, semi_positives, strict=True):
    others = [g for g in range(len(row)) if g != good and g not in semi]
    ahead = [
      row[g] > row[good]
      or (ties == 'lower' and row[g] == row[good] and g < good)
      or (ties == 'higher' and row[g] == row[good] and g > good)
      for g in others
    ]
    found.append(not any(ahead))
  return np.array(found)
