"""PLCD: evaluation and cross-diffusion; no training yet."""

_NETWORK = 'networks of PLCD are not implemented yet'
_TRAINING = 'the training of PLCD is not implemented yet'
_DATA = 'the data plans of PLCD are not implemented yet'

PENDING = {
  'part_windows': _NETWORK,
  'head_': _NETWORK,
  'net_rmac_': _NETWORK,
  'extract_flip_': _NETWORK,
  'train_tiny_': _TRAINING,
  'step_': _TRAINING,
  'sgd_two_groups': _TRAINING,
  'ema': _TRAINING,
  'index_facts': _DATA,
  'sampler_views': _DATA,
  'transforms': _DATA,
}
