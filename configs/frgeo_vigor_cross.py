"""FRGeo on VIGOR, trained in two cities and tested in two others.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/frgeo_vigor_cross.py \\
    --workdir=runs/frgeo_vigor_cross

Published: R@1 37.54, R@5 59.58, R@10 67.34, R@1% 94.28, hit rate 40.66. Options
and the choice of the epoch as of configs/frgeo_vigor_same.py.

Source: zqwlearning/FRGeo-Code, the settings of configs/frgeo_vigor_same.py.
"""

from configs import frgeo_vigor_same


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: see `frgeo_vigor_same.get_config`.
  """
  published = {
    'R@1': 37.54,
    'R@5': 59.58,
    'R@10': 67.34,
    'R@1%': 94.28,
    'hit rate': 40.66,
  }
  return frgeo_vigor_same.recipe('cross', published, options)
