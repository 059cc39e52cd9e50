"""Sample4Geo."""

_NETWORK = 'the network of Sample4Geo is not implemented yet'
_LOSS = 'the loss of Sample4Geo is not implemented yet'
_RECIPE = 'the training recipe of Sample4Geo is not implemented yet'
_DATA = 'the sampling of Sample4Geo is not implemented yet'

PENDING = {
  'convnext_base_full': _NETWORK,
  'infonce_': _LOSS,
  'schedules': _RECIPE,
  'shuffle_': _DATA,
  'gps_': _DATA,
  'preprocess_': _DATA,
}
