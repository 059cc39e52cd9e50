"""FRGeo on CVACT; numbers of CVACT_val.

  python -m data_builders cvact --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/frgeo_cvact.py \\
    --workdir=runs/frgeo_cvact

Published (CVACT_val): R@1 90.35, R@5 96.45, R@10 97.25, R@1% 98.74. Limited
fields of view: ':fov90'.

CVACT_test, 92,802 pairs, also by distance (5 m): the option 'test', with the
other options of the run (':test+fov90'). Use it when the run is done; in
training, every evaluation would go through these pairs too:

  python main.py evaluate --config=configs/frgeo_cvact.py:test \\
    --workdir=runs/frgeo_cvact

The `-e` of the release evaluates the last epoch: --checkpoint=latest. Ours is by
default the best one.

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
  chosen = frgeo_cvusa.take_options(config, options, 'test')
  frgeo_cvusa.cvact(config)
  config.evals = tasks(
    frgeo_cvusa.SOURCE,
    {'R@1': 90.35, 'R@5': 96.45, 'R@10': 97.25, 'R@1%': 98.74},
    test='test' in chosen,
  )
  return config


def tasks(source, published, *, test):
  """CVACT_val, which the best epoch is picked on, and CVACT_test if asked."""
  sections = {
    'panorama_to_satellite': frgeo_cvusa.task(
      source,
      published,
      query_split='val_query_panorama',
      gallery_split='val_gallery_satellite',
    )
  }
  if test:
    sections['test_panorama_to_satellite'] = frgeo_cvusa.task()
    # The rule of the authors of CVACT: right is what lies within 5 m.
    sections['test_within_5m'] = frgeo_cvusa.task(within_metres=5.0)
  return sections
