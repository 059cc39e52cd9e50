"""PLCD: data, networks, training, evaluation, cross-diffusion."""
