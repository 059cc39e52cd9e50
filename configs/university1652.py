"""University-1652, the published full recipe: satellite, street, drone, google.

  python -m data_builders university1652 --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/university1652.py \\
    --workdir=runs/university1652

Published (ResNet-50, README and State-of-the-art page of the repository):
drone -> satellite R@1 58.23, AP 62.91; satellite -> drone R@1 74.47, AP 59.45;
"1-2 hours on GPU". Which recipe that row used is not stated beside it.

Source: layumi/University1652-Baseline, `train.py --views 3 --extra_Google
--share --stride 1 --h 256 --w 256 --droprate 0.75 --fp16` (batch 8, lr 0.01,
120 epochs); bfloat16 stands for its float16.

More tasks, where their pictures are there: EXTRA_TASKS, for example
--config=configs/university1652.py:drone_4k_to_satellite+satellite_to_street_average

One optional loss: --config.method.losses.triplet=1.0. Fewer drone views:
--config.data.drone_views_per_place=9. See `sweep`.
"""

from ml_collections import config_dict

from configs import base

VIEWS = ('satellite', 'street', 'drone', 'google')
# Tasks beside the usual six: query view, gallery view, changes of the section.
EXTRA_TASKS = {
  # 54 drone pictures of a building as one query.
  'multi_query_drone_to_satellite': (
    'drone',
    'satellite',
    {'multi_query': True},
  ),
  # Real drone shots (test/4K_drone); `test_4K.py` uses the satellite branch.
  'drone_4k_to_satellite': (
    'drone',
    'satellite',
    {'query_split': 'test_4k_drone', 'query_view': 'satellite'},
  ),
  # The street pictures of a building averaged to one query or gallery entry.
  'street_average_to_satellite': (
    'street',
    'satellite',
    {'average_street': True},
  ),
  'satellite_to_street_average': (
    'satellite',
    'street',
    {'average_street': True},
  ),
  'drone_to_street_average': ('drone', 'street', {'average_street': True}),
}
SOURCE = 'layumi/University1652-Baseline, State-of-the-art/README.md'


def get_config(tasks: str = ''):
  """The published full recipe.

  Args:
    tasks: names of `EXTRA_TASKS` joined by '+', evaluated as well.
  """
  config = base.base()
  config.data.names = ('university1652',)
  config.init.weights = 'hf:timm/resnet50.tv_in1k/model.safetensors'
  config.method = {
    'name': 'university1652',
    'num_classes': 0,  # 0: the number of training places
    'views': VIEWS,
    'share_satellite_drone': True,
    'share_satellite_street': False,
    'joint_statistics': False,
    'backbone': 'resnet50',
    'backbone_width': 64,
    'last_stride': 1,
    'pool': 'avg',
    'attention': 'none',
    'dim': 512,
    'droprate': 0.75,
    'instance_weight': 1.0,
    'street_weight': 1.0,
    'losses': {
      'circle': 0.0,
      'triplet': 0.0,
      'contrast': 0.0,
      'lifted': 0.0,
      'arcface': 0.0,
      'cosface': 0.0,
      'sphere': 0.0,
      'info_nce': 0.0,
    },
    'loss_merge': False,
    'circle_gamma': 32.0,
    'temperature': 0.07,
    'prototype_trainable': False,
    'dtype': 'bfloat16',
    'remat': False,
  }
  config.plan = {'name': 'IndependentViews', 'views': VIEWS}
  config.augment = {
    'name': 'UniversityTrain',
    'pad': 10,
    'rotate_satellite_deg': 90.0,
    'rotate_drone_deg': 0.0,
    'rotate_ground_deg': 0.0,
    'zoom': (1.0, 1.0),
    'color_jitter': (0.0, 0.0, 0.0),  # --color_jitter: (0.1, 0.1, 0.1)
    'fill': 'black',
    'flip_p': 0.5,
    'erasing_p': 0.0,
    'erasing_area': (0.02, 0.4),
    'erasing_ratio': (0.3, 1 / 0.3),
  }
  config.optim = {
    'name': 'sgd',  # 'adam', 'adamw'
    'lr': 0.01,
    'momentum': 0.9,
    'nesterov': True,
    'betas': (0.9, 0.999),  # of adam and adamw
    'eps': 1e-8,
    'weight_decay': 5e-4,  # on every parameter, as published
    'no_decay': (),  # regular expressions of parameter paths
    'groups': {'classifier': 1.0, 'backbone': 0.1},  # factors of lr
    'schedule': 'step',
    'schedule_unit': 'epoch',
    'count_partial_batch': False,
    'end_lr': 0.0,
    'decay_epochs': 0.0,
    'step_every_epochs': 80.0,
    'step_at_epochs': (),
    'gamma': 0.1,
    'power': 1.0,
    'warmup_epochs': 0.0,
    'warmup_start': 0.0,
    'warmup_counts_from': 0,
    'loss_warmup_epochs': 0,  # --warm_epoch
    'clip_value': 0.0,
    'clip_norm': 0.0,
    'sam': 'none',
    'sam_rho': 0.05,
  }
  config.train.batch_size = 8
  config.train.epochs = 120
  config.train.save_every_epochs = 20
  config.train.best_metric = 'drone_to_satellite/R@1'
  config.train.eval_every_epochs = 20
  config.evals = {
    'drone_to_satellite': task('drone', 'satellite', r1=58.23, ap=62.91),
    'satellite_to_drone': task('satellite', 'drone', r1=74.47, ap=59.45),
    'street_to_satellite': task('street', 'satellite', r1=1.20, ap=2.52),
    'satellite_to_street': task('satellite', 'street', r1=1.14, ap=1.41),
    'drone_to_street': task('drone', 'street'),
    'street_to_drone': task('street', 'drone'),
  }
  config.evals.update(extra_tasks(tasks))
  return config


def extra_tasks(names: str) -> dict:
  """Evaluators of `EXTRA_TASKS`, by names joined by '+'; '' is none."""
  sections = {}
  for name in names.split('+') if names else ():
    if name not in EXTRA_TASKS:
      raise ValueError(
        f'no extra task {name!r}; there are {sorted(EXTRA_TASKS)}'
      )
    query, gallery, changes = EXTRA_TASKS[name]
    sections[name] = task(query, gallery) | changes
  return sections


def task(
  query: str, gallery: str, r1: float | None = None, ap: float | None = None
) -> dict:
  """An evaluator's section: query view against gallery view."""
  section = {
    'type': 'retrieval',
    'query_split': f'test_query_{query}',
    'gallery_split': f'test_gallery_{gallery}',
    'data_names': (),  # the run's own
    'query_view': '',  # trunk of the queries, if not their own view's
    'gallery_view': '',
    'flip': True,
    'scales': (1.0,),
    'cumulative': True,
    'multi_query': False,
    'average_street': False,
    'refine': 'none',  # 'query', 'gallery': all pictures of a place as one too
    'ranks': (1, 5, 10),
    'percent_index': 'university',
    'ap': 'trapezoid',
    'ties': 'lower',
    'junk_distractors': False,
    'within_metres': config_dict.placeholder(float),
    'metre_errors': False,
    'rerank': 'none',  # 'gnn', 'k_reciprocal'
    'rerank_k1': config_dict.placeholder(int),
    'rerank_k2': config_dict.placeholder(int),
    'rerank_candidates': 0,  # 0: the whole gallery
    'answer_file': '',  # '160k', '160k_wx'
    'query_names': '',
    'top': 10,
    'sample_places': 20,
    'published': {},
    'published_source': '',
  }
  if r1 is not None:
    section['published'] = {'R@1': r1, 'AP': ap}
    section['published_source'] = SOURCE
  return section


def sweep():
  """Overrides of the published ablations, one dict a run."""
  for views in (54, 27, 18, 9, 3, 1):
    yield {'data.drone_views_per_place': views}
  for pool in ('avg', 'max', 'avg+max', 'gem'):
    yield {'method.pool': pool}
