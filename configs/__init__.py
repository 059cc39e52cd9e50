"""Recipes: one published experiment, one file. See `base.py` for the keys."""
