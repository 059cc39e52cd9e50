"""TransGeo on CVACT, two stages; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/transgeo_cvact.py \\
    --workdir=runs/transgeo_cvact
  python main.py train --config=configs/transgeo_cvact.py:stage2 \\
    --workdir=runs/transgeo_cvact_2

Published (stage 2, CVACT_val): R@1 84.95, R@5 94.14, R@10 95.78, R@1% 98.37.
Both stages must have the same field of view: ':fov90', then ':stage2+fov90',
which starts from runs/transgeo_cvact_fov90.

CVACT_test, 92,802 pairs, also by distance (5 m): the option 'test', with the
other options of the run (':stage2+test+fov90'). Use it when the run is done; in
training, every evaluation would go through these pairs too:

  python main.py evaluate --config=configs/transgeo_cvact.py:stage2+test \\
    --workdir=runs/transgeo_cvact_2

Source: Jeff-Zilence/TransGeo2022, the settings of configs/transgeo_cvusa.py.
"""

from configs import frgeo_cvact, frgeo_cvusa, transgeo_cvusa


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', or of 'stage2', 'test', 'fov<degrees>', joined by '+'.
  """
  config = transgeo_cvusa.get_config()
  chosen = frgeo_cvusa.take_options(config, options, 'stage2', 'test')
  frgeo_cvusa.cvact(config)
  config.evals = frgeo_cvact.tasks(
    transgeo_cvusa.SOURCE,
    {'R@1': 84.95, 'R@5': 94.14, 'R@10': 95.78, 'R@1%': 98.37},
    test='test' in chosen,
  )
  if 'stage2' in chosen:
    transgeo_cvusa.second_stage(
      config, satellite=(320, 320), first='runs/transgeo_cvact'
    )
  return config
