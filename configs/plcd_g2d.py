"""PLCD, ground to drone, in three generations on University-1652.

  python -m data_builders university1652 --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/plcd_g2d.py:gen=0 --workdir=runs/plcd_g2d_0
  python main.py train --config=configs/plcd_g2d.py:gen=1 --workdir=runs/plcd_g2d_1
  python main.py train --config=configs/plcd_g2d.py:gen=2 --workdir=runs/plcd_g2d_2

Every generation starts from ImageNet weights and learns from the last checkpoint
of the one before (elsewhere: --config.teacher.workdir=RUN, or a released
net_119.pth with --config.teacher.weights=FILE). All of PLCD in one command:
configs/plcd_chain.py.

Published (generation 2): ground -> drone R@1 8.07, R@5 13.18, R@10 17.14, R@1%
45.87, AP 6.09, most likely against the drone pictures of the lowest round, as
here; against all of them: --config.evals.ground_to_drone.gallery_split=\\
test_gallery_drone.

Source: ZelongZeng/PLCD, README and `train_PL_G2D.py --train_all --batchsize 8
--pool max --seed 0 --lambda1 1.0 --lambda2 0.1 --easy_pos`, then `--gen 1
--lambda3 1.0 --tau 0.1`, then `--gen 2 --lambda3 3.0 --hiera 13`.
"""

from configs import base, university1652

SOURCE = 'ZelongZeng/PLCD, README'
GENERATIONS = ('gen=0', 'gen=1', 'gen=2')


def get_config(option: str = 'gen=0'):
  """One generation.

  Args:
    option: 'gen=0', 'gen=1' or 'gen=2'.
  """
  if option not in GENERATIONS:
    raise ValueError(f'no option {option!r}; there are {GENERATIONS}')
  config = network('street')
  config.evals = {'ground_to_drone': ground_to_drone()}
  generation(config, int(option[-1]), runs='runs/plcd_g2d')
  return config


def network(anchor: str):
  """What both networks of PLCD have in common, alone.

  Args:
    anchor: 'street' or 'satellite', the view that drone pictures are peers of.
  """
  config = base.base()
  views = (anchor, 'drone')
  config.data.names = ('university1652',)
  config.data.image_size = (384, 384)
  config.init.weights = 'hf:timm/resnet50.tv_in1k/model.safetensors'
  config.method = {
    'name': 'plcd',
    'num_classes': 0,
    'views': views,
    'generation': 0,
    'regions': 0,
    'record_parts': True,
    'easy_positive': True,
    'negatives': 10,
    'pairing': 'tiled',  # 'aligned': every anchor with its own positive
    'lambda_metric': 1.0,
    'lambda_identity': 0.1,
    'lambda_distill': 1.0,
    'tau': 0.1,
    'teacher_mode': 'train',
    'share_trunks': False,
    'backbone': 'resnet50',
    'backbone_width': 64,
    'last_stride': 2,
    'pool': 'max',
    'dim': 512,
    'droprate': 0.5,
    'dtype': 'float32',
    'remat': False,
  }
  config.plan = {
    'name': 'PeerBatches',
    'views': views,
    'groups': 6,
    'rounds': 3,
  }
  published = university1652.get_config()
  config.augment = published.augment
  config.augment.update({'fill': 'edge', 'rotate_satellite_deg': 0.0})
  config.optim = published.optim
  config.optim.update({'step_every_epochs': 40.0})
  config.train.batch_size = 8  # anchors, each with six drone pictures
  config.train.epochs = 120
  config.train.eval_every_epochs = 20
  config.train.save_every_epochs = 10
  return config


def generation(config, number: int, *, runs: str) -> None:
  """Turns generation 0 into a later one.

  Args:
    config: of `network`.
    number: 0, 1 or 2.
    runs: start of the workdirs; generation k learns from `<runs>_<k - 1>`.
  """
  config.method.generation = number
  if number:
    config.teacher.workdir = f'{runs}_{number - 1}'
  if number == 2:
    config.method.update({'regions': 13, 'lambda_distill': 3.0})


def ground_to_drone() -> dict:
  """The published test, with the drone pictures of the lowest round."""
  section = university1652.task('street', 'drone_low')
  section['published'] = {
    'R@1': 8.07, 'R@5': 13.18, 'R@10': 17.14, 'R@1%': 45.87, 'AP': 6.09
  }  # fmt: skip
  section['published_source'] = SOURCE
  return section
