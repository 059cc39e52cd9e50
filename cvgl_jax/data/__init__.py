"""Pictures to batches.

Modules:
  catalog: built data sets on disk; sources: their splits, rows and bytes;
    relations: ground truth beyond the equality of places.
  transforms: decode and resize on the CPU; autoaugment: its policies.
  plans: who meets whom in a batch, as integer arrays.
  stream: executes a plan with threads (Grain).
  augment: training augmentation on the device.
"""
