"""Small real sets in University-1652's layout, from random weights, on a CPU.

Any sets in the official layout (street and google may be absent) with disjoint
place ids; three are trained on together and evaluated one by one. For sets in
folders odm_real/, oam_warp/ and naip_dates/ of DOWNLOAD:

  for set in odm_real oam_warp naip_dates; do
    python -m data_builders university1652 --data_dir=data/$set \\
      --manual_dir=DOWNLOAD/$set
  done
  python main.py train --config=configs/university1652_small.py \\
    --workdir=runs/small

Measured with two seeds, R@1 / AP in %: drone -> satellite odm_real 57-58 / 64-65,
oam_warp 88-96 / 91-97, naip_dates 14-17 / 21-24; satellite -> drone 59 / 62-64,
87-92 / 86-87, 14 / 13; 15 to 20 minutes on one shared core. Plan and length were
chosen on places cut out of the train splits.
"""

from configs import quickstart, university1652

SETS = ('odm_real', 'oam_warp', 'naip_dates')


def get_config():
  """Trains on the joined sets, evaluates on each one's test places."""
  config = quickstart.small()
  config.data.names = tuple(f'{name}/university1652' for name in SETS)
  config.train.best_metric = 'odm_real_drone_to_satellite/AP'
  # Every place equally often: a set with more pictures a place would else count
  # for more.
  config.plan = {
    'name': 'Pairs',
    'views': quickstart.VIEWS,
    'pictures_per_place': 5,
  }
  config.train.epochs = 40
  config.evals = {}
  for name in SETS:
    for query, gallery in (('drone', 'satellite'), ('satellite', 'drone')):
      section = university1652.task(query, gallery)
      section['data_names'] = (f'{name}/university1652',)
      config.evals[f'{name}_{query}_to_{gallery}'] = section
  return config
