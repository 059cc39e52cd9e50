"""The static page of a run.

build: gathers and writes. rankings: panels and failures of an evaluator.
figures: the PNGs. files: reading and writing.
"""
