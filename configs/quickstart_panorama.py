"""FRGeo, small, on rendered panoramas: minutes on two CPU cores.

  python -m data_builders rendered_city --config pairs_demo --data_dir data \\
    --num-processes 2
  python main.py train --config=configs/quickstart_panorama.py \\
    --workdir=runs/quickstart_panorama
  python main.py report --workdir=runs/quickstart_panorama

The parts of the published recipe (configs/frgeo_cvusa.py): feature
recombination, weighted tuple loss, ASAM, hard batches. Instead of ConvNeXts
there are four convolutions, and since there are but 1,200 pairs, they are
mirrored and turned as by Sample4Geo.

In the format of VIGOR, after building --config tiles_demo:
--config.data.names="('rendered_city/tiles_demo/cross',)"
--config.data.view_aspects="{'panorama': 2.0, 'satellite': 1.0}"

Expected on unseen places: panorama -> satellite R@1 about 33 % (untrained: below
1 %), R@5 about 59 %.
"""

from configs import base, frgeo_cvusa, sample4geo_cvusa


def get_config():
  """Small networks, random weights, the rendered city."""
  config = frgeo_cvusa.get_config()
  config.seed = 0
  config.data.names = ('rendered_city/pairs_demo',)
  config.data.view_sizes = {'panorama': (64, 256), 'satellite': (96, 96)}
  config.data.train_resize = 'area'
  config.init.weights = ''
  config.method.update(
    {'backbone': 'small_cnn', 'backbone_width': 32, 'loss_groups': 1}
  )
  config.plan.hardest = 20
  config.augment = _turns()
  config.optim.update(
    {
      'lr': 4e-3,
      'schedule_unit': 'step',
      'warmup_epochs': 1.0,
      'sam_rho': 0.5,
    }
  )
  config.train.epochs = 12
  config.train.eval_every_epochs = 6
  config.train.eval_at_start = True
  config.train.save_every_epochs = 3
  config.evals = {'panorama_to_satellite': frgeo_cvusa.task(metre_errors=True)}
  return config


def _turns():
  """Sample4Geo's augmentation without blur and without holes."""
  config = base.base()
  sample4geo_cvusa.common(config, views=frgeo_cvusa.VIEWS)
  config.augment.update({'filter_p': 0.0, 'dropout_p': 0.0})
  return config.augment
