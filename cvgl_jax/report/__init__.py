"""The static page of a run, and of a chain of runs.

build: gathers and writes. rankings: answers and failures of an evaluator.
model: cost and layout of the method. figures: diagrams. panels: pictures of the
data set side by side. chain: all stages of a chain. paths: the way of its
queries through the bridge. files: reading and writing. published.csv: systems
that a run is compared with.
"""
