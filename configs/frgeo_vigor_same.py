"""FRGeo on VIGOR, trained and tested in the same four cities.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/frgeo_vigor_same.py \\
    --workdir=runs/frgeo_vigor_same

Published: R@1 71.26, R@5 91.38, R@10 94.32, R@1% 99.52, hit rate 82.41. With the
labels corrected by SliceMatch: --config=configs/frgeo_vigor_same.py:corrected.
Limited fields of view: ':fov180', ':corrected+fov180'.

Source: zqwlearning/FRGeo-Code, the settings of configs/frgeo_cvusa.py but for
batch 16 and learning rate 5e-5. The released loop cannot train on VIGOR (its
loader returns one value too many). The best epoch is picked on the test split;
the `-e` of the release evaluates the last one: --checkpoint=latest.
"""

from configs import frgeo_cvusa

SIZES = {'panorama': (320, 640), 'satellite': (320, 320)}


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', 'corrected', 'fov<degrees>', or both joined by '+'.
  """
  published = {
    'R@1': 71.26,
    'R@5': 91.38,
    'R@10': 94.32,
    'R@1%': 99.52,
    'hit rate': 82.41,
  }
  return recipe('same', published, options)


def recipe(protocol, published, options):
  """FRGeo on one protocol of VIGOR."""
  config = frgeo_cvusa.get_config()
  chosen = frgeo_cvusa.take_options(config, options, 'corrected')
  frgeo_cvusa.vigor(config, labels(protocol, chosen), **SIZES)
  config.optim.lr = 5e-5
  config.train.batch_size = 16
  config.evals = {'panorama_to_satellite': task(frgeo_cvusa.SOURCE, published)}
  return config


def labels(protocol, chosen):
  """The protocol with the labels that the chosen options say."""
  return f'{protocol}_corrected' if 'corrected' in chosen else protocol


def task(source, published):
  """Recall, hit rate, and how far the best answers are off."""
  return frgeo_cvusa.task(source, published, metre_errors=True)
