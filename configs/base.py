"""Every key that all recipes share, with its unit and default.

A recipe is `get_config()` = `base()` + differences. The sections `method`,
`plan`, `augment`, `optim` and each entry of `evals` are the fields of one
dataclass (cvgl_jax/methods/<name>.py: Method, cvgl_jax/data/plans.py,
cvgl_jax/data/augment.py, cvgl_jax/optim/build.py: Optimizer,
cvgl_jax/evaluators/<type>.py: Evaluator); a key that it does not have is an
error. Plain values only: this folder imports nothing from cvgl_jax.
"""

from ml_collections import config_dict


def base() -> config_dict.ConfigDict:
  """The shared keys; `method`, `plan`, `augment`, `optim`, `evals` are empty."""
  return config_dict.create(
    seed=0,  # of everything random
    method={},
    data={
      'dir': 'data',  # folder of the built data sets
      'names': (),  # data sets below it; several are joined
      'train_split': 'train',  # pictures of a view: <train_split>_<view>
      'image_size': (256, 256),  # height, width in pixels
      'view_sizes': {},  # view -> (height, width) instead of image_size
      'view_aspects': {},  # view -> width / height of stored pictures; 0: any
      'middle_half': (),  # views cut to the rows H//4 : 3 (H//4)
      'cut_rows': {},  # view -> pixels cut off at top and bottom
      'resize': 'pillow_bicubic',  # 'pillow_bilinear', 'opencv_linear'
      'train_resize': '',  # '': as resize; 'area': faster, not the reference
      'autoaugment': 'none',  # 'imagenet', 'reid'
      'jpeg_p': 0.0,  # probability of JPEG compression in training
      'jpeg_quality': (90, 100),  # least, most
      'polar_size': (),  # (height, width): polar transform of satellite pictures
      'fov_deg': 0.0,  # of panoramas of unknown orientation; 360: all; 0: off
      'fov_seed': 0,  # of the orientation of every query in evaluation
      'drone_views_per_place': 0,  # 54, 27, 18, 9, 3, 1; 0: all there are
      'threads': 0,  # that read and decode; 0: one per core
      'eval_batch_size': 64,  # pictures a step of embedding
    },
    plan={},
    augment={},
    init={
      # .safetensors or .pth, or hf:owner/repo/file: the backbone in torchvision's
      # names, or the whole method in the reference's
      'weights': '',
      'workdir': '',  # another run of the same method
    },
    teacher={
      'workdir': '',  # run of the network that this one learns from
      'checkpoint': 'latest',  # of it: 'latest', 'best' or a step
      'weights': '',  # or a torch file in the reference's names
    },
    optim={},
    train={
      'batch_size': 8,  # rows of the plan a step, over all devices
      'epochs': 120,
      'micro_batches': 1,  # >1: GradCache, the loss still sees the whole batch
      'ema_decay': 0.0,  # moving average of the parameters; 0: none
      'log_every_steps': 50,
      'eval_every_epochs': 10,  # 0: never
      'eval_at_start': True,  # evaluate the first weights too
      'save_every_steps': 0,  # 0: only by epochs
      'save_every_epochs': 10,  # 0: at evaluations and the end
      'best_metric': '',  # '<evaluator>/<metric>', higher is better
      'fsdp': False,  # split large parameters over the devices
      'fsdp_min_size': 65536,  # elements of the smallest array that is split
    },
    evals={},
  )
