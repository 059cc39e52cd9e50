"""Video2BEV: evaluation and the order of the second stage; no networks yet."""

_NETWORK = 'networks of Video2BEV are not implemented yet'
_LOSS = 'losses of Video2BEV are not implemented yet'
_RECIPE = 'the training recipe of Video2BEV is not implemented yet'
_DATA = 'the data pipeline of Video2BEV is not implemented yet'

PENDING = {
  'patch_embed_': _NETWORK,
  'vit_': _NETWORK,
  'drop_path': _NETWORK,
  'pos_embed_resize_': _NETWORK,
  'part_pool_': _NETWORK,
  'lpn_norm_feature': _NETWORK,
  'classblock': _NETWORK,
  'mlp_fusion_': _NETWORK,
  'itm_head': _NETWORK,
  'second_stage_formula': _NETWORK,
  'itc_loss': _LOSS,
  'instance_loss_lpn': _LOSS,
  'first_stage_': _LOSS,
  'matching_loss_': _LOSS,
  'lr_schedules': _RECIPE,
  'adamw_steps': _RECIPE,
  'sgd_nesterov_steps': _RECIPE,
  'sampler': _DATA,
  'eval_transform': _DATA,
  'train_geom_transform': _DATA,
}
