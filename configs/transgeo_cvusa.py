"""TransGeo on CVUSA: two DeiT-S; the second stage attends and zooms in.

  python -m data_builders cvusa --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/transgeo_cvusa.py \\
    --workdir=runs/transgeo_cvusa
  python main.py train --config=configs/transgeo_cvusa.py:stage2 \\
    --workdir=runs/transgeo_cvusa_2

Published (stage 2): R@1 94.08, R@5 98.36, R@10 99.04, R@1% 99.77.

Source: Jeff-Zilence/TransGeo2022: batch 32 on one GPU, ASAM with rho 2.5 over
AdamW, learning rate 1e-4, cosine, 100 epochs, mining; then satellite pictures of
320 pixels, learning rate 1e-5, 50 epochs. Numbers: list of
layumi/University1652-Baseline. The best epoch is picked on the test split, as in
the release.

Stage 2 starts from the best checkpoint of runs/transgeo_cvusa; elsewhere:
--config.init.workdir=RUN, or --config.init.workdir= with a released checkpoint of
stage 1 as --config.init.weights=FILE. To evaluate a released checkpoint of stage
2, --config.method.teacher_weights=FILE names its stage 1, which knows where to
look. A field of view of 90 degrees: ':fov90', then ':stage2+fov90', which starts
from runs/transgeo_cvusa_fov90. Both stages must have the same options: stage 2
refuses a run on other pictures.
"""

from configs import base, frgeo_cvusa

SOURCE = 'layumi/University1652-Baseline, State-of-the-art/README.md'
STAGE_1 = 'hf:timm/deit_small_distilled_patch16_224.fb_in1k/model.safetensors'


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', 'stage2', 'fov<degrees>', or both joined by '+'.
  """
  config = base.base()
  frgeo_cvusa.cvusa(config, panorama=(112, 616), satellite=(256, 256))
  common(config)
  config.evals = {
    'panorama_to_satellite': frgeo_cvusa.task(
      SOURCE, {'R@1': 94.08, 'R@5': 98.36, 'R@10': 99.04, 'R@1%': 99.77}
    )
  }
  if 'stage2' in frgeo_cvusa.take_options(config, options, 'stage2'):
    second_stage(config, satellite=(320, 320), first='runs/transgeo_cvusa')
  return config


def common(config):
  """Stage 1 on any data set."""
  config.init.weights = STAGE_1
  config.method = {
    'name': 'transgeo',
    'views': frgeo_cvusa.VIEWS,
    'stage': 1,
    'attend_size': tuple(config.data.view_sizes['satellite']),
    'sat_keep': 0.64,
    'teacher_weights': '',  # of a released checkpoint of stage 2: its stage 1
    'width': 384,
    'depth': 12,
    'heads': 6,
    'patch': 16,
    'dim': 1000,
    'criterion': 'soft_triplet',  # 'weighted_tuple'
    'alpha': 20.0,
    'loss_groups': 1,
    'dtype': 'float32',
    'remat': False,
  }
  config.plan = frgeo_cvusa.mining()
  config.augment = {'name': 'NoAugment'}
  config.optim = frgeo_cvusa.asam(lr=1e-4)
  config.train.batch_size = 32
  config.train.epochs = 100
  frgeo_cvusa.every_epoch(config)


def second_stage(config, *, satellite, first):
  """Makes the second stage out of the first.

  Args:
    config: of stage 1 with its options, changed in place.
    satellite: (height, width) of its pictures.
    first: workdir of stage 1, but for the field of view.
  """
  config.method.stage = 2
  config.data.view_sizes['satellite'] = satellite
  config.init.weights = ''
  config.init.workdir = first
  if config.data.fov_deg:
    config.init.workdir += f'_fov{config.data.fov_deg:g}'
  config.optim.lr *= 0.1
  config.train.epochs = 50
