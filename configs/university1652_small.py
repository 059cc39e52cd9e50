"""Small real sets in University-1652's layout, from random weights, on a CPU.

placeholder
"""

from configs import quickstart, university1652

SETS = ('odm_real', 'oam_warp', 'naip_dates')


def get_config():
  """Trains on the joined sets, evaluates on each one's test places."""
  config = quickstart.small()
  config.data.names = tuple(f'{name}/university1652' for name in SETS)
  config.evals = {}
  for name in SETS:
    for query, gallery in (('drone', 'satellite'), ('satellite', 'drone')):
      section = university1652.task(query, gallery)
      section['data_names'] = (f'{name}/university1652',)
      config.evals[f'{name}_{query}_to_{gallery}'] = section
  return config
