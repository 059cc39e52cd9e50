"""TransGeo on CVACT, two stages; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/transgeo_cvact.py \\
    --workdir=runs/transgeo_cvact
  python main.py train --config=configs/transgeo_cvact.py:stage2 \\
    --workdir=runs/transgeo_cvact_2

Published (stage 2, CVACT_val): R@1 84.95, R@5 94.14, R@10 95.78, R@1% 98.37.
CVACT_test too: ':test'. Options are joined by '+'.

Source: Jeff-Zilence/TransGeo2022, the settings of configs/transgeo_cvusa.py.
"""

from configs import frgeo_cvact, frgeo_cvusa, transgeo_cvusa


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', or of 'stage2', 'test', 'fov<degrees>', joined by '+'.
  """
  config = transgeo_cvusa.get_config()
  frgeo_cvusa.cvact(config)
  config.evals = frgeo_cvact.tasks(
    transgeo_cvusa.SOURCE,
    {'R@1': 84.95, 'R@5': 94.14, 'R@10': 95.78, 'R@1%': 98.37},
  )
  options = transgeo_cvusa.second_stage(
    config, options, satellite=(320, 320), first='runs/transgeo_cvact'
  )
  frgeo_cvact.extra(config, options)
  return config
