"""Pictures to batches.

Modules:
  sources: splits of built data sets, rows and bytes.
  transforms: decode and resize on the CPU; autoaugment: its policies.
  plans: who meets whom in a batch, as integer arrays.
  stream: executes a plan with threads (Grain).
  augment: training augmentation on the device.
"""
