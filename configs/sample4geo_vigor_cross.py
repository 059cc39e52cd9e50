"""Sample4Geo on VIGOR, trained in two cities and tested in two others.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/sample4geo_vigor_cross.py \\
    --workdir=runs/sample4geo_vigor_cross

Published: R@1 61.09 (name of the released checkpoint). Options and the choice
of the epoch as of configs/sample4geo_vigor_same.py.

Source: Skyy93/Sample4Geo, `train_vigor.py`; see configs/sample4geo_cvusa.py.
"""

from configs import sample4geo_vigor_same


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: see `sample4geo_vigor_same.get_config`.
  """
  return sample4geo_vigor_same.recipe('cross', {'R@1': 61.09}, options)
