"""TransGeo on VIGOR, trained and tested in the same four cities; two stages.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/transgeo_vigor_same.py \\
    --workdir=runs/transgeo_vigor_same
  python main.py train --config=configs/transgeo_vigor_same.py:stage2 \\
    --workdir=runs/transgeo_vigor_same_2

Published: R@1 61.48 in the paper; users measured 57.6 with the released weights
(issue 16 of the repository). The best epoch is picked on the test split, as in
the release.

Corrected labels: ':corrected'. Both stages must have the same options:
':corrected+fov90', then ':stage2+corrected+fov90', which starts from
runs/transgeo_vigor_same_corrected_fov90.

Source: Jeff-Zilence/TransGeo2022, the settings of configs/transgeo_cvusa.py but
for batch 16, learning rate 5e-5, 50 epochs, and satellite pictures of 400 pixels
in stage 2.
"""

from configs import frgeo_cvusa, frgeo_vigor_same, transgeo_cvusa

SOURCE = 'Zhu, Shah, Chen, CVPR 2022'


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', or of 'stage2', 'corrected', 'fov<degrees>', joined by '+'.
  """
  return recipe('same', {'R@1': 61.48}, options)


def recipe(protocol, published, options):
  """TransGeo on one protocol of VIGOR."""
  config = transgeo_cvusa.get_config()
  chosen = frgeo_cvusa.take_options(config, options, 'stage2', 'corrected')
  labels = frgeo_vigor_same.labels(protocol, chosen)
  frgeo_cvusa.vigor(config, labels, **frgeo_vigor_same.SIZES)
  config.method.attend_size = frgeo_vigor_same.SIZES['satellite']
  config.optim.lr = 5e-5
  config.train.batch_size = 16
  config.train.epochs = 50
  config.evals = {
    'panorama_to_satellite': frgeo_vigor_same.task(SOURCE, published)
  }
  if 'stage2' in chosen:
    transgeo_cvusa.second_stage(
      config, satellite=(400, 400), first=f'runs/transgeo_vigor_{labels}'
    )
  return config
