"""PFED (MobileGeo): evaluation and multi-view refinement; no networks yet."""

_NETWORK = 'networks of PFED are not implemented yet'
_LOSS = 'losses of PFED are not implemented yet'

PENDING = {
  'bb_': _NETWORK,
  'mod_': _NETWORK,
  'student_': _NETWORK,
  'losses': _LOSS,
  'lr_schedule': 'the training recipe of PFED is not implemented yet',
}
