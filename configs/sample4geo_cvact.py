"""Sample4Geo on CVACT; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/sample4geo_cvact.py \\
    --workdir=runs/sample4geo_cvact

Published (CVACT_val): R@1 90.81, R@5 96.74, R@10 97.48, R@1% 98.77. Limited
fields of view: ':fov90'.

CVACT_test, 92,802 pairs, also by distance (5 m): the option 'test', with the
other options of the run (':test+fov90'). Use it when the run is done; in
training, every evaluation would go through these pairs too:

  python main.py evaluate --config=configs/sample4geo_cvact.py:test \\
    --workdir=runs/sample4geo_cvact

Source: Skyy93/Sample4Geo, `train_cvact.py`; see configs/sample4geo_cvusa.py. The
panoramas are squeezed whole, not cut as by FRGeo and TransGeo.
"""

from configs import frgeo_cvact, frgeo_cvusa, sample4geo_cvusa


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', or of 'test', 'fov<degrees>', joined by '+'.
  """
  config = sample4geo_cvusa.get_config()
  config.seed = 1
  chosen = frgeo_cvusa.take_options(config, options, 'test')
  frgeo_cvusa.cvact(config)
  config.data.middle_half = ()
  config.evals = frgeo_cvact.tasks(
    sample4geo_cvusa.SOURCE,
    {'R@1': 90.81, 'R@5': 96.74, 'R@10': 97.48, 'R@1%': 98.77},
    test='test' in chosen,
  )
  return config
