"""Sample4Geo on CVACT; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/sample4geo_cvact.py \\
    --workdir=runs/sample4geo_cvact

Published (CVACT_val): R@1 90.81, R@5 96.74, R@10 97.48, R@1% 98.77. CVACT_test
too: --config=configs/sample4geo_cvact.py:test.

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
  frgeo_cvusa.cvact(config)
  config.data.middle_half = ()
  config.evals = frgeo_cvact.tasks(
    sample4geo_cvusa.SOURCE,
    {'R@1': 90.81, 'R@5': 96.74, 'R@10': 97.48, 'R@1%': 98.77},
  )
  frgeo_cvact.extra(config, options)
  return config
