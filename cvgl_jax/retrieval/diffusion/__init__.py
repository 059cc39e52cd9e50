"""Diffusion on the graph of a gallery: PLCD's cross-diffusion and its parents.

Modules:
  graph: mutual nearest neighbours, affinities, the normalised Laplacian.
  truncated_solve: one small linear system a node, many at once.
  cross: `cross_diffusion` of two spaces, its offline and its online step.
  spaces: whether the two fit each other, and meet.
  rerank: diffusion of queries in one space.
  cache: the offline result on disk, by the hash of what it was made from.
"""
