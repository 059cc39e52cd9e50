"""Retrieval on arrays of features: no model, no data set.

Ranking: features (what can be ranked), search and device_search (exact nearest
neighbours; the sharded form), ranks and counting (ranks of the positives
without a sort), truth (who is a positive), metrics and metres (formulas),
ranking (`evaluate_ranking`), evaluation (the same for two named sides).
Re-ranking: rerank (dense GNN and k-reciprocal), rerank_sparse (candidates
only), diffusion/ (cross-diffusion). Several pictures of a place: multiview,
refinement. files/: features and labels from disk, answers for challenges.
"""
