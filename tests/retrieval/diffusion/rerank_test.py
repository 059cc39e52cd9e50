"""Re-ranking of a gallery by diffusion."""

import dataclasses

import numpy as np
import pytest

from cvgl_jax.retrieval.diffusion import cross, rerank
from tests.retrieval.diffusion import oracle

OPTIONS = cross.Options(kq=3, kd=5, n_trunc=12)


def world(seed: int):
  """(queries, gallery) of the same clusters."""
  rows = oracle.clustered(np.random.default_rng(seed), clusters=5, each=9)
  return rows[::9], np.delete(rows, np.s_[::9], axis=0)


@pytest.mark.parametrize('seed', range(3))
def test_gallery_diffusion_equals_its_definition(seed, tmp_path):
  query, gallery = world(seed)
  got = rerank.gallery_diffusion(query, gallery, options=OPTIONS)
  rows = oracle.offline(gallery, kd=5, n_trunc=12)
  wanted = oracle.online(oracle.seeds(query, gallery, 3), rows)
  np.testing.assert_allclose(got, wanted, atol=1e-4 * wanted.max())
  cached = [
    rerank.gallery_diffusion(
      query, gallery, options=OPTIONS, cache_dir=str(tmp_path)
    )
    for _ in range(2)
  ]
  np.testing.assert_array_equal(*cached)
  np.testing.assert_allclose(cached[0], wanted, atol=1e-4 * wanted.max())


@pytest.mark.parametrize('seed', range(3))
def test_joint_diffusion_equals_its_definition(seed):
  query, gallery = world(seed)
  got = rerank.joint_diffusion(query, gallery, options=OPTIONS)
  rows = oracle.offline(np.concatenate([query, gallery]), kd=5, n_trunc=12)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  wanted = rows[: len(query)] @ rows[len(query) :].T
  np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_without_edges_diffusion_is_plain_ranking_of_the_seeds():
  query, gallery = world(0)
  options = dataclasses.replace(OPTIONS, kd=1)
  got = rerank.gallery_diffusion(query, gallery, options=options)
  wanted = np.zeros_like(got)
  for row, found in zip(wanted, oracle.seeds(query, gallery, 3), strict=True):
    for similarity, j in found:
      row[j] = similarity**3
  np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
  'rerank',
  [rerank.gallery_diffusion, rerank.joint_diffusion],
)
def test_the_order_of_the_gallery_does_not_matter(rerank):
  query, gallery = world(4)
  order = np.random.default_rng(0).permutation(len(gallery))
  got = rerank(query, gallery, options=OPTIONS)
  other = rerank(query, gallery[order], options=OPTIONS)
  np.testing.assert_allclose(other, got[:, order], atol=1e-4 * got.max())
