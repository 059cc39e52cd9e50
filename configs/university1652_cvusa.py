"""The University-1652 baseline on CVUSA: VGG-16, two views, one class a pair.

  python -m data_builders cvusa --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/university1652_cvusa.py \\
    --workdir=runs/university1652_cvusa

Published (instance loss, panorama -> satellite): R@1 43.91, R@5 66.38, R@10
74.58, R@1% 91.78.

Source: layumi/University1652-Baseline, `train_cvusa.py --use_vgg16
--warm_epoch 5 --lr 0.02 --h 256 --w 256 --batchsize 16 --fp16`.
"""

from configs import university1652

VIEWS = ('satellite', 'panorama')


def get_config():
  """VGG-16 of each view, shared classifier, loss warm-up."""
  config = university1652.get_config()
  config.data.names = ('cvusa',)
  config.init.weights = 'hf:timm/vgg16_bn.tv_in1k/model.safetensors'
  config.method.update(
    {
      'views': VIEWS,
      'share_satellite_drone': False,
      'backbone': 'vgg16_bn',
      'last_stride': 2,
      'droprate': 0.5,
    }
  )
  config.plan.views = VIEWS
  config.optim.lr = 0.02
  config.optim.loss_warmup_epochs = 5
  config.train.batch_size = 16
  task = university1652.task('panorama', 'satellite')
  task['published'] = {'R@1': 43.91, 'R@5': 66.38, 'R@10': 74.58, 'R@1%': 91.78}
  task['published_source'] = university1652.SOURCE
  config.evals = {'panorama_to_satellite': task}
  config.train.best_metric = 'panorama_to_satellite/R@1'
  return config
