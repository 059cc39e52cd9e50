"""From a network and splits to numbers, in training and in `main.py evaluate`.

embedder: features of whole splits. retrieval: one split against another.
"""
