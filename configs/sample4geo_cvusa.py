"""Sample4Geo on CVUSA: one ConvNeXt-B, InfoNCE, neighbours in the batches.

  python -m data_builders cvusa --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/sample4geo_cvusa.py \\
    --workdir=runs/sample4geo_cvusa

Published: R@1 98.68, R@5 99.68, R@10 99.78, R@1% 99.87.

Source: Skyy93/Sample4Geo, `train_cvusa.py` (batch 128 on four GPUs, all
negatives meet); bfloat16 stands for its float16. Less memory:
--config.train.micro_batches=4 (exact) or --config.method.remat=True. Numbers:
list of layumi/University1652-Baseline. The best epoch is picked on the test
split, as in the release.

A released checkpoint: main.py evaluate --checkpoint=init with
--config.init.weights=weights_e40_98.6830.pth. No decay of biases
(`decay_exclue_bias`): --config.optim.no_decay="('bias',)". A field of view of 90
degrees: --config=configs/sample4geo_cvusa.py:fov90.
"""

from configs import base, frgeo_cvusa

SOURCE = 'layumi/University1652-Baseline, State-of-the-art/README.md'
IMAGENET = 'hf:timm/convnext_base.fb_in22k_ft_in1k_384/model.safetensors'


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '' or 'fov' and degrees, such as 'fov90'.
  """
  config = base.base()
  config.seed = 42
  frgeo_cvusa.cvusa(config, panorama=(140, 768), satellite=(384, 384))
  common(config, views=frgeo_cvusa.VIEWS)
  config.plan = neighbours(views=frgeo_cvusa.VIEWS)
  config.train.best_metric = 'panorama_to_satellite/R@1'
  config.evals = {
    'panorama_to_satellite': frgeo_cvusa.task(
      SOURCE, {'R@1': 98.68, 'R@5': 99.68, 'R@10': 99.78, 'R@1%': 99.87}
    )
  }
  frgeo_cvusa.take_options(config, options)
  return config


def common(config, *, views):
  """Network, augmentation and optimiser, the same on all data sets."""
  config.data.resize = 'opencv_linear'
  config.data.jpeg_p = 0.5
  config.init.weights = IMAGENET
  config.method = {
    'name': 'sample4geo',
    'views': views,
    'backbone': 'convnext_base',
    'backbone_width': 64,
    'pool': 'avg',
    'label_smoothing': 0.1,
    'initial_temperature': 0.07,
    'drop_path': 0.0,
    'layer_scale': 1e-6,
    'dtype': 'bfloat16',
    'remat': False,
  }
  config.augment = {
    'name': 'Sample4GeoTrain',
    'flip_p': 0.5,
    'rotate_p': 0.75,
    'jitter_p': 0.5,
    'color_jitter': (0.15, 0.15, 0.15, 0.15),
    'filter_p': 0.3,
    'dropout_p': 0.3,
    'grid_ratio': 0.4,
    'grid_ratio_panorama': 0.5,
  }
  config.optim = frgeo_cvusa.adamw(lr=1e-3, weight_decay=0.01) | {
    'groups': {'model': 1.0, 'logit_scale': 1.0},
    'schedule': 'cosine',
    'schedule_unit': 'step',
    'count_partial_batch': True,
    'warmup_epochs': 1.0,
    'clip_value': 100.0,
  }
  config.train.batch_size = 128
  config.train.epochs = 40
  config.train.eval_every_epochs = 4
  config.train.eval_at_start = False
  config.train.save_every_epochs = 4


def neighbours(*, views, **changes):
  """Neighbours on the ground, then by similarity, in the batches."""
  return {
    'name': 'NeighbourBatches',
    'views': views,
    'select': 64,
    'reach': 128,
    'gps': True,
    'gps_haversine': 'correct',  # 'published': degrees taken for radians
    'refresh_epochs': 4,
    'similar_at_start': False,
    'exclude_overlaps': False,
  } | changes
