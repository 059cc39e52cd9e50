"""PLCD from end to end, small, on the rendered city: minutes on two CPU cores.

  python -m data_builders rendered_city --config flights_demo --data_dir data \\
    --num-processes 2
  python main.py chain --config=configs/quickstart_plcd_chain.py \\
    --workdir=runs/quickstart_plcd
  python main.py report --workdir=runs/quickstart_plcd

The stages of configs/plcd_chain.py with four convolutions from random weights
instead of a ResNet-50 from ImageNet's.
"""

from configs import plcd_chain, plcd_d2s, plcd_g2d, quickstart


def get_config():
  """Three generations, drone-satellite, cross-diffusion."""
  stages = {
    f'g2d{number}': small(plcd_g2d.get_config(option))
    for number, option in enumerate(plcd_g2d.GENERATIONS)
  }
  stages['g2d1'].teacher.workdir = 'stage:g2d0'
  stages['g2d2'].teacher.workdir = 'stage:g2d1'
  stages['d2s'] = small(plcd_d2s.get_config())
  joint = plcd_chain.joint('g2d2', 'd2s')
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
  config.augment = like.augment
  config.optim = like.optim
  config.train.batch_size = 16
  config.train.epochs = 8
  config.train.eval_every_epochs = 4
  config.train.save_every_epochs = 2
  for section in config.evals.values():
    section.published, section.published_source = {}, ''
  return config
