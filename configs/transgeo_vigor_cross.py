"""TransGeo on VIGOR, trained in two cities and tested in two others.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/transgeo_vigor_cross.py \\
    --workdir=runs/transgeo_vigor_cross
  python main.py train --config=configs/transgeo_vigor_cross.py:stage2 \\
    --workdir=runs/transgeo_vigor_cross_2

Options, which both stages must share, and the choice of the epoch as of
configs/transgeo_vigor_same.py. Published numbers are in the paper and not
repeated here: they were not checked.

Source: Jeff-Zilence/TransGeo2022, the settings of configs/transgeo_vigor_same.py.
"""

from configs import transgeo_vigor_same


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: see `transgeo_vigor_same.get_config`.
  """
  return transgeo_vigor_same.recipe('cross', {}, options)
