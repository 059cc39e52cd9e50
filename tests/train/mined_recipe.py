"""The demo's recipe with hard batches: 16 places, epochs of six steps."""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.plan = {
    'name': 'GlobalMining',
    'views': quickstart.VIEWS[::-1],
    'hardest': 4,
    'visits': 3,
  }
  config.evals = {}
  config.train.best_metric = ''
  return config
