"""PLCD, drone and satellite on University-1652: the graph of the diffusion.

  python main.py train --config=configs/plcd_d2s.py --workdir=runs/plcd_d2s

Published: drone -> satellite R@1 70.09, R@5 87.63, R@10 91.38, R@1% 91.80, AP
74.05.

Source: ZelongZeng/PLCD, README and `train_D2S.py --train_all --batchsize 8 --pool
max --seed 0 --lambda1 5.0 --lambda2 0.5`: the least similar drone picture is the
positive, no generations.
"""

from configs import plcd_g2d, university1652


def get_config():
  """The published recipe."""
  config = plcd_g2d.network('satellite')
  config.method.update(
    {'easy_positive': False, 'lambda_metric': 5.0, 'lambda_identity': 0.5}
  )
  config.evals = {'drone_to_satellite': drone_to_satellite()}
  return config


def drone_to_satellite() -> dict:
  """The published test."""
  section = university1652.task('drone', 'satellite')
  section['published'] = {
    'R@1': 70.09, 'R@5': 87.63, 'R@10': 91.38, 'R@1%': 91.80, 'AP': 74.05
  }  # fmt: skip
  section['published_source'] = plcd_g2d.SOURCE
  return section
