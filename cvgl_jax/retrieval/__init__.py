"""Retrieval on arrays of features: no model, no data set.

search: exact nearest neighbours. metrics: recall@k, CMC, average precision.
rerank: GNN and k-reciprocal re-ranking. multiview: several pictures of a place
as one feature. submission: answer files of the challenges.
"""
