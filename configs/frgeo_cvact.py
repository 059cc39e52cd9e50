"""FRGeo on CVACT; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/frgeo_cvact.py \\
    --workdir=runs/frgeo_cvact

Published (CVACT_val): R@1 90.35, R@5 96.45, R@10 97.25, R@1% 98.74. The 92,802
pairs of CVACT_test too, also by distance (5 m):
--config=configs/frgeo_cvact.py:test. Limited fields of view: ':fov90',
':test+fov90'.

Source: zqwlearning/FRGeo-Code, the settings of configs/frgeo_cvusa.py. The
release cannot evaluate on CVACT_test.
"""

from configs import frgeo_cvusa


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', 'test', 'fov<degrees>', or both joined by '+'.
  """
  config = frgeo_cvusa.get_config()
  frgeo_cvusa.cvact(config)
  config.evals = tasks(
    frgeo_cvusa.SOURCE,
    {'R@1': 90.35, 'R@5': 96.45, 'R@10': 97.25, 'R@1%': 98.74},
  )
  extra(config, options)
  return config


def tasks(source, published):
  """CVACT_val, which the best epoch is picked on."""
  return {
    'panorama_to_satellite': frgeo_cvusa.task(
      source,
      published,
      query_split='val_query_panorama',
      gallery_split='val_gallery_satellite',
    )
  }


def extra(config, options):
  """Takes the options 'test' and 'fov<degrees>', joined by '+'."""
  names = options.split('+') if options else []
  if 'test' in names:
    names.remove('test')
    config.evals['test_panorama_to_satellite'] = frgeo_cvusa.task()
    # The rule of the authors of CVACT: right is what lies within 5 m.
    config.evals['test_within_5m'] = frgeo_cvusa.task(within_metres=5.0)
  frgeo_cvusa.limit_view(config, '+'.join(names))
