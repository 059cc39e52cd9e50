"""PLCD from end to end: three generations, drone-satellite, cross-diffusion.

  python -m data_builders university1652 --data_dir=data --manual_dir=DOWNLOAD
  python main.py chain --config=configs/plcd_chain.py --workdir=runs/plcd
  python main.py report --workdir=runs/plcd

Ground-drone networks g2d0 -> g2d1 -> g2d2, each the teacher of the next one, and
the drone-satellite network d2s are trained in this order, as configs/plcd_g2d.py
and configs/plcd_d2s.py say; then street queries are led to satellite pictures by
the drone pictures of low altitude. The same command resumes at any point.

--config=configs/plcd_chain.py:direct also trains g2s, a network of all three
views that compares street and satellite pictures directly, and ranks with it.

What all stages share is set once: --config.data.dir, --config.data.names,
--config.seed. Anything else is a stage's own:
--config.stages.g2d1.train.epochs=60.

Published (README of the code, by --low_altitude, kq 20, kd 70, n_trunc 500):
ground -> drone R@1 8.07, AP 6.09; ground -> satellite R@1 6.63, AP 8.80. Which
drone pictures those numbers are of is not stated; low altitude is most likely.

Source: ZelongZeng/PLCD, README, `diffusion/evaluate_dfs.py`.
"""

from ml_collections import config_dict

from configs import plcd_d2s, plcd_g2d, university1652

# Ground -> satellite by cross-diffusion.
PUBLISHED = {
  'R@1': 6.63, 'R@5': 14.73, 'R@10': 18.53, 'R@1%': 19.31, 'AP': 8.80
}  # fmt: skip


OPTIONS = ('', 'direct')
VIEWS = ('satellite', 'street', 'drone')


def get_config(option: str = '') -> config_dict.ConfigDict:
  """The published chain.

  Args:
    option: '', or 'direct' to compare with a network of all three views.
  """
  return chain(stages(option), joint=joint('g2d2', 'd2s', direct(option)))


def stages(option: str) -> dict[str, config_dict.ConfigDict]:
  """The recipes by name, in their order."""
  made = {
    f'g2d{number}': plcd_g2d.get_config(generation)
    for number, generation in enumerate(plcd_g2d.GENERATIONS)
  }
  made['g2d1'].teacher.workdir = 'stage:g2d0'
  made['g2d2'].teacher.workdir = 'stage:g2d1'
  made['d2s'] = plcd_d2s.get_config()
  if direct(option):
    made[direct(option)] = three_views()
  return made


def direct(option: str) -> str:
  """Name of the stage that ranks directly; '' for none."""
  if option not in OPTIONS:
    raise ValueError(f'no option {option!r}; there are {OPTIONS}')
  return 'g2s' if option else ''


def three_views() -> config_dict.ConfigDict:
  """University-1652's baseline, with trunk, pictures and training of PLCD."""
  config = plcd_g2d.network('street')
  plcd, config.method = config.method, university1652.get_config().method
  config.method.views = VIEWS
  for key in (
    *('backbone', 'backbone_width', 'last_stride', 'pool', 'dim', 'droprate'),
    *('dtype', 'remat'),
  ):
    config.method[key] = plcd[key]
  config.plan = {'name': 'IndependentViews', 'views': VIEWS}
  config.evals = {
    'street_to_satellite': university1652.task('street', 'satellite')
  }
  return config


def chain(
  stages: dict[str, config_dict.ConfigDict], *, joint: dict
) -> config_dict.ConfigDict:
  """Recipes in a row that share seed and data, as the first one has them."""
  first = next(iter(stages.values()))
  config = config_dict.ConfigDict(
    {
      'order': tuple(stages),
      'seed': first.seed,
      'data': {'dir': first.data.dir, 'names': first.data.names},
      'joint': joint,
      'stages': {},
    }
  )
  for name, stage in stages.items():
    # Follows the shared value, and can still be set alone.
    stage.seed = config.get_ref('seed').identity()
    for key in ('dir', 'names'):
      stage.data[key] = config.data.get_ref(key).identity()
    config.stages[name] = stage
  return config


def joint(query_stage: str, gallery_stage: str, direct_stage: str = '') -> dict:
  """What two networks find together, by the pictures that both embed.

  Args:
    query_stage: embeds queries and bridge.
    gallery_stage: embeds bridge and gallery.
    direct_stage: embeds queries and gallery, to compare with; '' for none.
  """
  return {
    'query_stage': query_stage,
    'gallery_stage': gallery_stage,
    'direct_stage': direct_stage,
    'query_split': 'test_query_street',
    'bridge_split': 'test_gallery_drone_low',  # '..._drone': all altitudes
    'gallery_split': 'test_gallery_satellite',
    'checkpoint': 'latest',  # 'best'
    'flip': True,
    'scales': (1.0,),  # --ms
    'cumulative': True,  # reference-bug: scales multiply up
    'diffusion': {
      'kq': 20,  # drone pictures that a query starts from
      'kd': 70,  # neighbours that decide the edges
      'n_trunc': 500,  # nodes that one spreads over
      'alpha': 0.99,
      'gamma': 3,
      'cg_iterations': 20,
      'cg_tolerance': 1e-6,
      'converge': False,  # True: whatever cg_iterations says
      'hiera': 0,  # regions of a drone picture that a query may resemble
      'block': 32,  # nodes solved together: speed only
    },
    'ranks': (1, 5, 10),
    'top': 10,
    'sample_places': 20,
    'published': {
      'query_to_bridge': plcd_g2d.ground_to_drone()['published'],
      'cross_diffusion': PUBLISHED,
    },
    'published_source': plcd_g2d.SOURCE,
  }
