"""Pictures to batches.

Modules:
  catalog: built data sets on disk; sources: their splits, rows and bytes;
    relations: ground truth beyond the equality of places; flight: the order of
    drone pictures and their altitude.
  transforms: decode, cut and resize on the CPU; resizing: by which filter;
    autoaugment: policies.
  plans: who meets whom in a batch, as integer arrays; global_mining (FRGeo,
    TransGeo) and neighbour_batches (Sample4Geo): those that bring together what
    is hard to tell apart, by hard_batches, out of lists of neighbours;
    peer_batches (PLCD): pictures with drone views from all around.
  stream: executes a plan with threads (Grain).
  augment: training augmentation on the device; augment_sample4geo: that of
    Sample4Geo, with filters.
  prepare: what follows it, in evaluation too; panorama: rolling, limited field
    of view, polar transform.
"""
