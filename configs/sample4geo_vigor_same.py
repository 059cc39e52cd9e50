"""Sample4Geo on VIGOR, trained and tested in the same four cities.

  python -m data_builders vigor --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/sample4geo_vigor_same.py \\
    --workdir=runs/sample4geo_vigor_same

Published: R@1 77.86 (name of the released checkpoint). With the labels corrected
by SliceMatch: ':corrected'; a limited field of view: ':fov90'. The best epoch is
picked on the test split, as in the release.

Semi-positives are negatives in the loss, as published;
--config.plan.exclude_overlaps=True keeps them out of a batch. Rows cut off top
and bottom (`ground_cutting` c): --config.data.cut_rows.panorama=c with
--config.data.view_sizes.panorama='(h, 768)', h = int((1024 - 2 c) * 0.375).

Source: Skyy93/Sample4Geo, `train_vigor.py`; see configs/sample4geo_cvusa.py.
"""

from configs import frgeo_cvusa, frgeo_vigor_same, sample4geo_cvusa

SOURCE = 'Skyy93/Sample4Geo, name of the released checkpoint'


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '', 'corrected', 'fov<degrees>', or both joined by '+'.
  """
  return recipe('same', {'R@1': 77.86}, options)


def recipe(protocol, published, options):
  """Sample4Geo on one protocol of VIGOR."""
  config = sample4geo_cvusa.get_config()
  config.seed = 1
  chosen = frgeo_cvusa.take_options(config, options, 'corrected')
  labels = frgeo_vigor_same.labels(protocol, chosen)
  frgeo_cvusa.vigor(config, labels, panorama=(384, 768), satellite=(384, 384))
  config.data.cut_rows = {'panorama': 0}
  config.evals = {
    'panorama_to_satellite': frgeo_vigor_same.task(SOURCE, published)
  }
  return config
