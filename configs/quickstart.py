"""The demo: a small network on the rendered city, minutes on two CPU cores.

  make demo

or, step by step:

  python -m data_builders rendered_city --config demo --data_dir data
  python main.py train --config=configs/quickstart.py --workdir=runs/quickstart
  python main.py report --workdir=runs/quickstart

Expected on unseen places: drone -> satellite R@1 about 64 % (untrained: below
10 %).
"""

from configs import university1652

VIEWS = ('satellite', 'drone')


def get_config():
  """Small network, random weights, the rendered city."""
  config = small()
  config.data.names = ('rendered_city/demo',)
  # Minutes are too few to overfit, so pictures vary less than in `small`.
  config.augment.update(
    {
      'rotate_satellite_deg': 0.0,  # satellite pictures have north up
      'zoom': (0.9, 1.1),
      'color_jitter': (0.1, 0.1, 0.1),
    }
  )
  config.train.epochs = 28
  config.train.ema_decay = 0.0
  config.train.eval_every_epochs = 14
  config.train.best_metric = 'drone_to_satellite/R@1'
  config.evals = {
    'drone_to_satellite': university1652.task('drone', 'satellite'),
    'satellite_to_drone': university1652.task('satellite', 'drone'),
  }
  return config


def small():
  """What trains from random weights on a CPU, on a few hundred places.

  Four strided convolutions instead of a ResNet. A few hundred classes teach
  little, so symmetric InfoNCE between the satellite and the drone picture of
  the same place leads and the instance loss helps. Pictures are rotated
  freely, since the heading of a drone says nothing about the place, and never
  mirrored: a mirrored place is another place.
  """
  config = university1652.get_config()
  config.init.weights = ''
  config.data.image_size = (112, 112)
  config.data.train_resize = 'area'
  config.method.update(
    {
      'views': VIEWS,
      'joint_statistics': True,
      'backbone': 'small_cnn',
      'backbone_width': 32,
      'last_stride': 2,
      'pool': 'gem',
      'dim': 128,
      'droprate': 0.0,
      'instance_weight': 0.05,
      'dtype': 'float32',
    }
  )
  config.method.losses.info_nce = 1.0
  config.plan = {'name': 'AllViews', 'views': VIEWS, 'view': 'drone'}
  config.augment.update(
    {
      'rotate_satellite_deg': 180.0,
      'rotate_drone_deg': 180.0,
      'zoom': (0.8, 1.25),
      'color_jitter': (0.2, 0.2, 0.2),
      'fill': 'edge',
      'flip_p': 0.0,
    }
  )
  config.optim.update(
    {
      'name': 'adamw',
      'lr': 2e-3,
      'weight_decay': 0.01,
      'groups': {'classifier': 1.0, 'backbone': 1.0},
      'schedule': 'cosine',
      'schedule_unit': 'step',
      'step_every_epochs': 0.0,
      'warmup_epochs': 1.0,
      'clip_norm': 10.0,
    }
  )
  config.train.batch_size = 32
  config.train.epochs = 30
  config.train.ema_decay = 0.99
  config.train.log_every_steps = 50
  config.train.eval_every_epochs = 10
  config.train.save_every_epochs = 5
  return config
