"""The static page of a run.

build: gathers and writes. rankings: answers and failures of an evaluator.
model: cost and layout of the method. figures: diagrams. panels: pictures of the
data set side by side. files: reading and writing. published.csv: systems that a
run is compared with.
"""
