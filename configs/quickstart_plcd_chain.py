"""PLCD from end to end, small, on the rendered city: under an hour on two cores.

  python -m data_builders rendered_city --config flights_demo --data_dir data \\
    --num-processes 2
  python main.py chain --config=configs/quickstart_plcd_chain.py \\
    --workdir=runs/quickstart_plcd
  python main.py report --workdir=runs/quickstart_plcd

The stages of configs/plcd_chain.py with its regions and generations;
--config=configs/quickstart_plcd_chain.py:direct ranks directly too. What is not
PLCD's, since the networks start from random weights and see 240 places: four
convolutions instead of a ResNet-50 from ImageNet's, no dropout, 112 x 112
pictures; optimiser and augmentation of configs/quickstart.py (AdamW with warm-up
and cosine decay instead of SGD in steps; pictures rotated freely, zoomed and
coloured, never mirrored); ten times the weight of the labels (d2s: with the most
similar positive and the aligned pairing too); batches of 16 anchors, 12 epochs
(d2s: 45) instead of 120; kq, kd and n_trunc for 120 places.

It shows the way, not what PLCD is worth: from random weights this is too short
for street pictures. Measured with two seeds, R@1 in %: street -> drone 2.8 and 1.9
with generation 0, 1-2 with 1 and 2 (untrained 0-1), drone -> satellite 31 and 30
(0, 1); AP of street -> satellite 3.6 and 4.7 by cross-diffusion, 3.7 and 3.1 by
one hop, 5.9 and 7.6 directly. More in benchmarks/README.md.
"""

from configs import plcd_chain, quickstart

OPTIONS = plcd_chain.OPTIONS


def get_config(option: str = ''):
  """Three generations, drone-satellite, cross-diffusion.

  Args:
    option: as in configs/plcd_chain.py.
  """
  stages = {
    name: small(stage) for name, stage in plcd_chain.stages(option).items()
  }
  # Random weights learn what a place is from its label before they can tell the
  # hardest of others apart: ten times the published weights of the labels.
  for name in ('g2d0', 'g2d1', 'g2d2'):
    stages[name].method.lambda_identity = 1.0
  stages['d2s'].method.update(
    {'lambda_identity': 5.0, 'easy_positive': True, 'pairing': 'aligned'}
  )
  # An epoch of it has a satellite picture a place, a quarter of the streets.
  stages['d2s'].train.update({'epochs': 45, 'eval_every_epochs': 15})
  joint = plcd_chain.joint('g2d2', 'd2s', plcd_chain.direct(option))
  joint['published'] = {}  # of University-1652
  # 120 places with six low drone pictures each, instead of 951 with 18.
  joint['diffusion'].update({'kq': 6, 'kd': 20, 'n_trunc': 200})
  return plcd_chain.chain(stages, joint=joint)


def small(config):
  """What trains from random weights on a CPU."""
  like = quickstart.small()
  config.data.names = ('rendered_city/flights_demo',)
  config.data.image_size = like.data.image_size
  config.data.train_resize = like.data.train_resize
  config.init.weights = ''
  config.method.update(
    {'backbone': 'small_cnn', 'backbone_width': 32, 'dim': 128, 'droprate': 0.0}
  )
  if config.method.name == like.method.name:
    # The instance loss alone learns little from a few hundred places: InfoNCE
    # between a satellite picture and others of its place, a street one a row.
    for key in ('joint_statistics', 'instance_weight', 'losses'):
      config.method[key] = like.method[key]
    views = config.method.views
    config.plan = {'name': 'AllViews', 'views': views, 'view': 'street'}
  config.augment = like.augment
  config.optim = like.optim
  config.train.batch_size = 16
  config.train.epochs = 12
  config.train.eval_every_epochs = 4
  config.train.save_every_epochs = 2
  for section in config.evals.values():
    section.published, section.published_source = {}, ''
  return config
