"""FRGeo on CVUSA: two ConvNeXt-T, feature recombination, ASAM, hard batches.

  python -m data_builders cvusa --data_dir=data --manual_dir=DOWNLOAD
  python main.py train --config=configs/frgeo_cvusa.py \\
    --workdir=runs/frgeo_cvusa

Published: R@1 97.06, R@5 99.25, R@10 99.47, R@1% 99.85.

Source: zqwlearning/FRGeo-Code, README.md and train.py: batch 32 on two GPUs,
each with the loss of its own half (`method.loss_groups`), ASAM with rho 2.5 over
AdamW, learning rate 1e-4, cosine, 50 epochs, mining. float32 throughout; on a
GPU --config.method.dtype=bfloat16 is faster. The best epoch is picked on the
test split, as in the release, and is what `evaluate` takes; the `-e` of the
release evaluates the last epoch: --checkpoint=latest.

A released checkpoint: main.py evaluate --checkpoint=init with
--config.init.weights=model_best.pth.tar. Panoramas of unknown orientation and a
field of view of 90 degrees: --config=configs/frgeo_cvusa.py:fov90 (360 keeps
the whole panorama).
"""

import difflib
import re

from configs import base, university1652

VIEWS = ('panorama', 'satellite')
SOURCE = 'zqwlearning/FRGeo-Code, README.md'


def get_config(options: str = ''):
  """The published recipe.

  Args:
    options: '' or 'fov' and degrees, such as 'fov90'.
  """
  config = base.base()
  config.seed = 2024
  cvusa(config, panorama=(128, 512), satellite=(256, 256))
  config.init.weights = 'hf:timm/convnext_tiny.fb_in1k/model.safetensors'
  config.method = {
    'name': 'frgeo',
    'views': VIEWS,
    'backbone': 'convnext_tiny',
    'backbone_width': 64,
    'pool': 'frm',  # 'avg': the plain average of the whole map
    # 'shape': as released, square maps are satellite's; for data.polar_size
    'frm_branch': 'view',
    'criterion': 'weighted_tuple',  # 'soft_triplet'
    'alpha': 10.0,
    'loss_groups': 2,  # 1: all pairs of the batch meet
    'drop_path': 0.0,
    'layer_scale': 1e-6,
    'dtype': 'float32',
    'remat': False,
  }
  config.plan = mining()
  config.augment = {'name': 'NoAugment'}
  config.optim = asam(lr=1e-4)
  config.train.batch_size = 32
  config.train.epochs = 50
  every_epoch(config)
  config.evals = {
    'panorama_to_satellite': task(
      SOURCE, {'R@1': 97.06, 'R@5': 99.25, 'R@10': 99.47, 'R@1%': 99.85}
    )
  }
  take_options(config, options)
  return config


def cvusa(config, *, panorama, satellite):
  """CVUSA, with pictures of these (height, width), as the code of TransGeo."""
  config.data.names = ('cvusa',)
  config.data.view_sizes = {'panorama': panorama, 'satellite': satellite}
  config.data.view_aspects = {'panorama': 1232 / 224, 'satellite': 1.0}
  config.data.resize = 'pillow_bilinear'


def cvact(config):
  """CVACT instead: panoramas of the whole sphere, of which the middle counts."""
  config.data.names = ('cvact',)
  config.data.view_aspects = {'panorama': 2.0, 'satellite': 1.0}
  config.data.middle_half = ('panorama',)


def vigor(config, protocol, *, panorama, satellite):
  """VIGOR instead, with pictures of these (height, width).

  Args:
    config: changed in place.
    protocol: 'same', 'cross', or with '_corrected' the labels of SliceMatch.
    panorama, satellite: sizes.
  """
  config.data.names = (f'vigor/{protocol}',)
  config.data.view_sizes = {'panorama': panorama, 'satellite': satellite}
  config.data.view_aspects = {'panorama': 2.0, 'satellite': 1.0}


def mining():
  """The sampler of TransGeo, which FRGeo took over."""
  return {
    'name': 'GlobalMining',
    'views': VIEWS,
    'hardest': 100,  # 0: random batches
    'pool': 40_000,
    'start_epoch': 1,
    'visits': 0,
    'order': 'seeded',  # 'published': the released order, whatever the seed
    'overlap_check': 'labels',
    'bank_dtype': 'float32',
  }


def asam(*, lr):
  """ASAM over AdamW on every parameter, cosine by epochs without warm-up."""
  return adamw(lr=lr, weight_decay=0.03) | {
    'groups': {'query_net': 1.0, 'reference_net': 1.0},
    'schedule': 'cosine',
    'schedule_unit': 'epoch',
    'sam': 'asam',
    'sam_rho': 2.5,
  }


def adamw(*, lr, weight_decay):
  """Every key of `optim` for AdamW with a constant learning rate."""
  return {
    'name': 'adamw',
    'lr': lr,
    'momentum': 0.9,  # of sgd
    'nesterov': False,  # of sgd
    'betas': (0.9, 0.999),
    'eps': 1e-8,
    'weight_decay': weight_decay,
    'no_decay': (),  # regular expressions of parameter paths
    'groups': {},
    'schedule': 'constant',
    'schedule_unit': 'epoch',
    'count_partial_batch': False,
    'end_lr': 0.0,
    'decay_epochs': 0.0,
    'step_every_epochs': 0.0,
    'step_at_epochs': (),
    'gamma': 0.1,
    'power': 1.0,
    'warmup_epochs': 0.0,
    'warmup_start': 0.0,
    'warmup_counts_from': 0,
    'loss_warmup_epochs': 0,
    'clip_value': 0.0,
    'clip_norm': 0.0,
    'sam': 'none',
    'sam_rho': 0.05,
  }


def every_epoch(config):
  """Evaluates and saves after every epoch, and keeps the best one."""
  config.train.eval_every_epochs = 1
  config.train.eval_at_start = False
  config.train.save_every_epochs = 1
  config.train.best_metric = 'panorama_to_satellite/R@1'


def task(source='', published=None, **changes):
  """An evaluator's section: panoramas against satellite pictures.

  Args:
    source: of the published numbers.
    published: numbers by metric name.
    **changes: of other keys.
  """
  section = university1652.task('panorama', 'satellite') | {
    'flip': False,
    'percent_index': 'floor',
    'ap': 'plain',
    'ties': 'optimistic',  # only what is more similar than the truth counts
    'sample_places': 50,
  }
  if published:
    section |= {'published': published, 'published_source': source}
  return section | changes


def take_options(config, options, *known):
  """Takes the option 'fov<degrees>'; returns which of the others are given.

  Args:
    config: its field of view is set.
    options: names joined by '+'; '' is none.
    *known: the names that there are beside 'fov<degrees>'.

  Raises:
    ValueError: an unknown name (says the nearest), or one given twice.
  """
  names = options.split('+') if options else []
  views = []
  for name in names:
    found = re.fullmatch(r'fov(\d+)', name)
    if found and 0 < int(found[1]) <= 360:
      views.append(name)
      config.data.fov_deg = float(found[1])
    elif name not in known:
      near = difflib.get_close_matches(name, (*known, 'fov90'), n=1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(
        f'unknown option {name!r}; {hint}expected some of '
        f"{[*known, 'fov<degrees>']}, with 1 to 360 degrees, joined by '+'"
      )
  chosen = set(names).difference(views)
  if len(views) > 1 or len(names) > len(chosen) + len(views):
    raise ValueError(f'options {options!r}: one is repeated; give it once')
  return chosen
