"""University-1652 from satellite and drone pictures only.

  python main.py train --config=configs/university1652_no_street.py \\
    --workdir=runs/university1652_no_street

Source: layumi/University1652-Baseline, `train_no_street.py --views 3 --share
--stride 1 --h 256 --w 256 --droprate 0.75 --fp16`.

Differs: there the street pictures still pass through the network with a loss
weight of 0 (they move the head's batch statistics). That needs street pictures:
--config.method.views="('satellite','street','drone')"
--config.plan.views="('satellite','street','drone')"
--config.method.street_weight=0. The default here leaves them out.
"""

from configs import university1652

VIEWS = ('satellite', 'drone')


def get_config(tasks: str = ''):
  """The full recipe without street and google pictures.

  Args:
    tasks: see `university1652.get_config`.
  """
  config = university1652.get_config()
  config.method.views = VIEWS
  config.method.street_weight = 0.0
  config.plan.views = VIEWS
  config.evals = {
    'drone_to_satellite': university1652.task('drone', 'satellite'),
    'satellite_to_drone': university1652.task('satellite', 'drone'),
    **university1652.extra_tasks(tasks),
  }
  return config
