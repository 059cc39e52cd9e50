"""Losses: pure functions on arrays.

classification: cross entropy, instance loss, ArcFace, CosFace, SphereFace.
contrastive: circle, contrastive, lifted structure, InfoNCE.
cross_view: weighted (B+1)-tuple, soft-margin triplet between two views.
triplet: multi-similarity miner, triplet margin.
peer: anchors against drone pictures, distillation of similarities (PLCD).
metric: the baselines' optional metric losses by name, over views.
pairs: what they share: unit vectors, pair masks, masked sums.
"""
