"""FRGeo and TransGeo."""

_NETWORK = 'the networks of FRGeo and TransGeo are not implemented yet'
_LOSS = 'the losses of FRGeo and TransGeo are not implemented yet'
_RECIPE = 'the training recipe of FRGeo is not implemented yet'
_DATA = 'the input pipeline of FRGeo is not implemented yet'

PENDING = {
  'convnext_': _NETWORK,
  'frm_': _NETWORK,
  'frgeo_full_': _NETWORK,
  'deit_': _NETWORK,
  'transgeo_full_': _NETWORK,
  'wbl_': _LOSS,
  'soft_triplet_': _LOSS,
  'sam_': _RECIPE,
  'asam_': _RECIPE,
  'schedule_': _RECIPE,
  'sampler_': _DATA,
  'limited_fov_': _DATA,
  'preprocess_': _DATA,
}
