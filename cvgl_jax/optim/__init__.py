"""Optimisers with torch's semantics, as optax transformations.

build: the config section `optim` -> optimiser and learning-rate schedule.
schedules: learning rates and loss factors as functions of the step.
sam: sharpness-aware minimisation (SAM, ASAM).
ema: moving average of the parameters.
"""
