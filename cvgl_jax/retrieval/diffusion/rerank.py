"""Re-ranking of a gallery by diffusion on its neighbourhood graph.

Two forms: the graph of the gallery alone, entered from a query's neighbours
(`gallery_diffusion`, the published algorithm), and one graph of queries and
gallery (`joint_diffusion`, the default of the published code). `diffusion` has
the method itself and its options.

Source: Yang et al., "Efficient Image Retrieval via Decoupling Diffusion into
Online and Offline Processing", AAAI 2019; fyang93/diffusion `rank.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import features as feature_rows
from cvgl_jax.retrieval.diffusion import cross, graph


def gallery_diffusion(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  options: cross.Options | None = None,
  cache_dir: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """Re-ranks a gallery by diffusion from each query's kq nearest rows.

  The graph holds the gallery alone, so queries may come at any time.

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    options: the paper has kq=10, kd=50, n_trunc=1000.
    cache_dir: keeps the rows of the whole gallery, as in `cross.cross_diffusion`.
    mesh: as in `cross.cross_diffusion`.

  Returns:
    Scores [Q, G] float32, 0 for rows that are not reached.

  Source: Yang et al., "Efficient Image Retrieval via Decoupling Diffusion into
  Online and Offline Processing", AAAI 2019; fyang93/diffusion `search_old`.
  """
  options = options or cross.Options()
  query, gallery = feature_rows.prepare_pair(
    query, gallery, similarity='cosine'
  )
  seeds = cross.nearest_places(query, gallery, k=options.kq, mesh=mesh)
  rows = cross.diffused_rows(
    gallery,
    read=seeds.rows,
    candidates=len(gallery),
    options=options,
    cache_dir=cache_dir,
    mesh=mesh,
  )
  return cross.online(
    seeds, rows, gamma=options.gamma, columns=(0, len(gallery))
  )


def joint_diffusion(
  query: np.ndarray,
  gallery: np.ndarray,
  *,
  options: cross.Options | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """Re-ranks a gallery by cosines of diffused rows, queries among the nodes.

  Queries and gallery form one graph; score = cosine of their rows of F. All
  queries must be known, and change each other's scores.

  Args:
    query: [Q, D] features.
    gallery: [G, D] features.
    options: kq and hiera are not used.
    mesh: as in `cross.cross_diffusion`.

  Returns:
    Scores [Q, G] float32.

  Source: fyang93/diffusion `rank.py`, `search` (its default).
  """
  options = options or cross.Options()
  query, gallery = feature_rows.prepare_pair(
    query, gallery, similarity='cosine'
  )
  nodes = graph.build(
    np.concatenate([query, gallery]),
    name='queries and gallery',
    **options.graph,
  )
  rows = cross.offline(nodes, options=options, mesh=mesh)
  values = rows.values / np.linalg.norm(rows.values, axis=1, keepdims=True)
  return np.asarray(_row_products(rows.ids, values, queries=len(query)))


@functools.partial(jax.jit, static_argnames='queries')
def _row_products(
  ids: jax.Array, values: jax.Array, *, queries: int
) -> jax.Array:
  """Dot products [Q, G] of the first Q sparse rows with the others."""

  def score(row):
    columns, entries = row
    dense = jnp.zeros(len(ids), jnp.float32).at[columns].set(entries)
    return jnp.sum(values[queries:] * dense[ids[queries:]], axis=1)

  return jax.lax.map(score, (ids[:queries], values[:queries]))
