"""The checked form of a chain's config.

A chain is an ordered list of stages. Each is a complete recipe of its own that
`main.py train` could run, and may name an earlier stage where a recipe takes a
workdir: `teacher.workdir: 'stage:first'` stands for the workdir of the stage
'first'. Everything is checked before the first stage starts.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cvgl_jax import experiment, settings, strict
from cvgl_jax.data import stream
from cvgl_jax.evaluators import retrieval
from cvgl_jax.retrieval.diffusion import cross

PREFIX = 'stage:'
_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*')
# Folders that a chain has beside those of its stages.
_TAKEN = ('diffusion', 'eval', 'features', 'report')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint:
  """Retrieval through two networks that share the pictures of a bridge.

  One network embeds the queries and the bridge (street and drone pictures), the
  other one the bridge and the gallery (drone and satellite pictures).

  Attributes:
    query_stage: the stage that embeds queries and bridge.
    gallery_stage: the stage that embeds bridge and gallery.
    direct_stage: a stage that embeds queries and gallery, to compare with; ''
      for none.
    query_split: such as 'test_query_street'.
    bridge_split: such as 'test_gallery_drone_low'.
    gallery_split: such as 'test_gallery_satellite'.
    checkpoint: of the stages: 'latest' or 'best'.
    flip: add the mirrored picture at test time.
    scales: picture scales at test time.
    cumulative: scales multiply up (as published), see `models/test_time`.
    diffusion: options of the cross-diffusion; kq, gamma and hiera also of the
      rankings without diffusion. With hiera, the query's network describes so
      many regions of every bridge picture too (`embed_regions` of its method).
    ranks: the k of recall@k.
    top: gallery entries kept for every query.
    sample_places: places whose features are kept for the t-SNE figures.
    published: ranking (see `joint.RANKINGS`) -> metric -> published number.
    published_source: where they stand.
  """

  query_stage: str
  gallery_stage: str
  direct_stage: str = ''
  query_split: str = 'test_query_street'
  bridge_split: str = 'test_gallery_drone'
  gallery_split: str = 'test_gallery_satellite'
  checkpoint: str = 'latest'
  flip: bool = True
  scales: tuple[float, ...] = (1.0,)
  cumulative: bool = True
  diffusion: cross.Options = dataclasses.field(default_factory=cross.Options)
  ranks: tuple[int, ...] = (1, 5, 10)
  top: int = 10
  sample_places: int = 20
  published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published_source: str = ''

  def __post_init__(self):
    if self.checkpoint not in ('latest', 'best'):
      raise ValueError(
        f"checkpoint: got {self.checkpoint!r}, expected 'latest' or 'best'"
      )
    unknown = set(self.published) - set(RANKINGS)
    if unknown:
      raise ValueError(
        f'published: no ranking {sorted(unknown)[0]!r}; there are {RANKINGS}'
      )
    self.evaluator()  # checks the options that both have

  def evaluator(self, **changes: Any) -> retrieval.Evaluator:
    """The same options as those of an evaluator of one network."""
    options = {
      'query_split': self.query_split,
      'gallery_split': self.gallery_split,
      'flip': self.flip,
      'scales': self.scales,
      'cumulative': self.cumulative,
      'ranks': self.ranks,
      'top': self.top,
      'sample_places': self.sample_places,
    }
    return retrieval.Evaluator(**(options | changes))

  @property
  def embedding(self) -> dict[str, Any]:
    """Options of the embedder."""
    return {
      name: getattr(self, name) for name in ('flip', 'scales', 'cumulative')
    }


# What the joint evaluation ranks: each network alone, then both together.
RANKINGS = (
  'query_to_bridge',
  'bridge_to_gallery',
  'one_hop',
  'no_diffusion',
  'cross_diffusion',
  'direct',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chain:
  """The sections of a chain's config.

  `seed` and `data` are what the recipe hands to all of its stages; the stages
  hold them too, and theirs count; see `tie`.
  """

  order: tuple[str, ...]
  stages: Mapping[str, Any]
  joint: Joint | None = None
  seed: int = 0
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One training.

  Attributes:
    name: in the config, and of its folder.
    workdir: of its run.
    config: its recipe, earlier stages named by their workdirs.
    checked: the same, checked.
    sources: the earlier stages that it starts or learns from.
  """

  name: str
  workdir: str
  config: Mapping[str, Any]
  checked: settings.Settings
  sources: tuple[str, ...]

  @property
  def method(self) -> Any:
    """The method, without the number of training places."""
    return experiment.make_method(self.checked)

  def open_split(self, name: str) -> stream.Split:
    """A split of the stage's own data."""
    return experiment.open_split(self.checked, (), name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a chain does.

  Attributes:
    workdir: of the chain.
    stages: in their order.
    joint: what follows; None for nothing.
  """

  workdir: str
  stages: tuple[Stage, ...]
  joint: Joint | None

  def stage(self, name: str) -> Stage:
    """A stage by its name."""
    return next(stage for stage in self.stages if stage.name == name)


def is_chain(config: Mapping[str, Any]) -> bool:
  """Whether a config is one of a chain, not of one run."""
  return 'stages' in config


def check(config: Mapping[str, Any], workdir: str) -> Plan:
  """Checks the config of a chain: all of its stages, no data.

  Raises:
    ValueError: names the key, what was expected, the valid list.
  """
  if not is_chain(config):
    raise ValueError(
      'config: there are no stages in it: a recipe of one run is trained by '
      '`main.py train`'
    )
  chain = strict.make(_Chain, config, 'config')
  for name in chain.stages:
    if not _NAME.fullmatch(name) or name in _TAKEN:
      raise ValueError(
        f'config.stages: {name!r} cannot be the name of a stage, which is the '
        f'name of its folder: letters, digits and _, and none of {_TAKEN}'
      )
  if not chain.order or sorted(chain.order) != sorted(chain.stages):
    raise ValueError(
      f'config.order: got {chain.order}, expected every stage once: '
      f'{sorted(chain.stages)}'
    )
  folders = {name: str(pathlib.Path(workdir) / name) for name in chain.order}
  stages = tuple(_stage(n, chain.stages[n], folders) for n in chain.order)
  plan = Plan(workdir=workdir, stages=stages, joint=chain.joint)
  if chain.joint is not None:
    _check_joint(plan)
  return plan


@contextlib.contextmanager
def of_stage(name: str) -> Iterator[None]:
  """In what is wrong with the config of a stage, names its keys as the chain's
  config does."""
  try:
    yield
  except (ValueError, FloatingPointError) as error:
    # Some kinds of ValueError, such as of JSON, cannot be made of a text alone.
    is_float = isinstance(error, FloatingPointError)
    kind = FloatingPointError if is_float else ValueError
    where = f'config.stages.{name}'
    text = re.sub(r'\bconfig\.(?!json\b)', f'{where}.', str(error))
    if not re.search(rf'{where}\b', text):
      text = f'{where}: {text}'
    raise kind(text) from error


def read_config(workdir: str) -> dict[str, Any] | None:
  """`config.json` of a workdir where it is one of a chain, else None."""
  if not (pathlib.Path(workdir) / 'config.json').exists():
    return None
  config = settings.load_config(workdir)
  return config if is_chain(config) else None


def tie(config: Any) -> None:
  """Lets the stages of a chain that was saved follow what they share again.

  config.json holds plain values; in a recipe, stages refer to those above them.
  A stage with another value was given its own, and keeps it.

  Args:
    config: ConfigDict; one of a single run stays as it is.
  """

  def follow(own: Any, shared: Any) -> None:
    for key in shared:
      if key not in own:
        continue  # config.order, ...: of the chain alone
      if hasattr(shared[key], 'get_ref'):
        follow(own[key], shared[key])
      elif own[key] == shared[key]:
        own[key] = shared.get_ref(key).identity()

  if is_chain(config):
    for stage in config.stages.values():
      follow(stage, config)


def same_folder(one: str, other: str) -> bool:
  """Whether two paths lead to the same folder, which need not exist."""
  return pathlib.Path(one).resolve() == pathlib.Path(other).resolve()


def digest_text(config: Any) -> str:
  """A config as text that is the same for equal configs."""
  return json.dumps(config, sort_keys=True, default=list)


def _stage(
  name: str, config: Mapping[str, Any], folders: Mapping[str, str]
) -> Stage:
  """A stage; `folders` are those of all stages, in their order."""
  where, names = f'config.stages.{name}', list(folders)
  before = names[: names.index(name)]
  sources = {}

  def resolve(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
      return {k: resolve(v, f'{where}.{k}') for k, v in value.items()}
    if not isinstance(value, str) or not value.startswith(PREFIX):
      return value
    source = value.removeprefix(PREFIX)
    if source not in before:
      raise ValueError(
        f'{where}: got {value!r}, but there is no stage {source!r} before '
        f'{name!r}; there are {before}'
      )
    sources[source] = None
    return folders[source]

  if not isinstance(config, Mapping):
    raise ValueError(f'{where}: got {config!r}, expected a recipe')
  config = resolve(config, where)
  with of_stage(name):
    checked = experiment.check(config)
  # A stage may also be named by its folder.
  for section in ('init', 'teacher'):
    workdir = getattr(checked, section).workdir
    for other, folder in folders.items() if workdir else ():
      if not same_folder(workdir, folder):
        continue
      if other not in before:
        raise ValueError(
          f'{where}.{section}.workdir: {workdir} is the folder of stage '
          f'{other!r}, which is not trained before {name!r}; there are {before}'
        )
      sources[other] = None
  return Stage(
    name=name,
    workdir=folders[name],
    config=config,
    checked=checked,
    sources=tuple(sources),
  )


def _check_joint(plan: Plan) -> None:
  joint, names = plan.joint, [stage.name for stage in plan.stages]
  for key in ('query_stage', 'gallery_stage', 'direct_stage'):
    named = getattr(joint, key)
    if named not in names and (named or key != 'direct_stage'):
      raise ValueError(
        f'config.joint.{key}: no stage {named!r}; there are {names}'
      )
  stage = plan.stage(joint.query_stage)
  if joint.diffusion.hiera and not hasattr(stage.method, 'embed_regions'):
    raise ValueError(
      f'config.joint.diffusion.hiera: got {joint.diffusion.hiera}, expected 0: '
      f'the method of stage {stage.name!r}, {stage.checked.method["name"]!r}, '
      'describes no regions of pictures'
    )
