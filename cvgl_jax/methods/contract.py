"""What the loop and the evaluators expect of a method, and what they get back.

A method is a frozen keyword-only dataclass `Method` in `methods/<name>.py`; its
fields are hyper-parameters, its functions the whole interface:

  init(rng, batch) -> variables {'params', 'batch_stats', ...}
  loss(params, mutable, batch, rng, step) -> (scalar, Aux)
  embed(variables, images, view) -> [B, D] float32, unit norm
  embed_raw(variables, images, view) -> [B, D] float32, before normalisation
  label(path) -> name of the optimiser group of a parameter

and, where the loss acts on features that can be computed in micro-batches (then
`FromFeatures` has `loss` and `embed`),

  features(params, mutable, batch, rng) -> (features, mutable)
  loss_from_features(params, features, batch, step) -> (scalar, metrics)

and, where a stage continues a run of other shapes than its own,

  variables_from_run(variables, source, where) -> variables

and, where not every kind of pictures suits it (`experiment.check` asks),

  check_pictures(sizes, polar) raises ValueError; sizes: view -> (height, width)
    that the network sees; polar: satellite pictures are laid out as panoramas

and, where the loss learns from another network of the same shape,

  needs_teacher: whether `mutable` must hold its variables under 'teacher' in
    training (the loop puts them there, see `cvgl_jax/teacher.py`)

and, where regions of a picture can be embedded too (the chain's diffusion),

  embed_regions(variables, images, view, regions) -> [B, 1 + regions, D]
    float32, unit norm, the whole picture first

and, for the report, where the descriptor has parts that belong to regions of a
picture,

  layout(view, picture_hw) -> int [h, w], the part of every cell from 1, 0 none;
    equal numbers of two views are compared; None: no parts

A batch is {view: {'image': [B, H, W, 3] in 0..255, 'label': int32 [B],
'place': int32 [B]}}. `variables` is `params` under 'params' beside the
collections of `mutable`. A method that takes published weights has
`variables_from_torch(variables, source, where)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax

from cvgl_jax.losses import pairs
from cvgl_jax.models import layers, torch_file, view_weights


class Aux(NamedTuple):
  """What a loss returns beside its value.

  Attributes:
    mutable: the collections other than 'params' after this pass.
    metrics: name -> scalar, for the log.
    embeddings: view -> [B, D] unit norm, without gradient, for mining.
  """

  mutable: Mapping[str, Any]
  metrics: dict[str, jax.Array]
  embeddings: dict[str, jax.Array]


def pictures(batch: Mapping[str, Any], view: str) -> jax.Array:
  """The normalised pictures of a view of a batch, [B, H, W, 3].

  Raises:
    ValueError: the batch does not have the view.
  """
  if view not in batch:
    raise ValueError(
      f'config.method.views: {view!r} is not in the batch, which has '
      f'{sorted(batch)}; let the plan provide it'
    )
  return layers.normalize_image(batch[view]['image'])


def embeddings(features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """`Aux.embeddings` of the features of every view."""
  return {
    view: jax.lax.stop_gradient(pairs.l2_normalize(x))
    for view, x in features.items()
  }


def choose(networks: Mapping[str, str], view: str) -> str:
  """The network of a view.

  Raises:
    ValueError: the view has none; lists those that have.
  """
  if view not in networks:
    raise ValueError(
      f'no network for view {view!r}: the method embeds {tuple(networks)}'
    )
  return networks[view]


def check_choices(method: Any, **choices: tuple[Any, ...]) -> None:
  """Raises ValueError if a field of a method is none of its choices."""
  for field, known in choices.items():
    if getattr(method, field) not in known:
      raise ValueError(
        f'{field}: got {getattr(method, field)!r}, expected one of {known}'
      )


class FromFeatures:
  """`loss` and `embed` of a method that defines `features`,
  `loss_from_features` and `embed_raw`."""

  def loss(
    self,
    params: Any,
    mutable: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
    step: jax.Array,
  ) -> tuple[jax.Array, Aux]:
    """The training loss of one batch; the formula is in the method's module."""
    features, mutable = self.features(params, mutable, batch, rng)
    loss, metrics = self.loss_from_features(params, features, batch, step)
    views = {view: features[view] for view in self.views}
    return loss, Aux(mutable, metrics, embeddings(views))

  def embed(
    self, variables: Mapping[str, Any], images: jax.Array, view: str
  ) -> jax.Array:
    """As `embed_raw`, scaled to unit norm."""
    return pairs.l2_normalize(self.embed_raw(variables, images, view))


class WithClassifier:
  """Torch weights of a method that has a trunk a view and one classifier.

  It has `num_classes` and `trunks` (view -> trunk), and says in
  `published_trunks` the trunk of each view in the reference, whose checkpoints
  have all of them; `absent_in_torch` are variables that no torch file has.
  """

  absent_in_torch: ClassVar[tuple[str, ...]] = ()

  def variables_from_torch(
    self, variables: Mapping[str, Any], source: Mapping[str, Any], *, where: str
  ) -> dict[str, Any]:
    """Takes a published checkpoint or ImageNet weights; see `view_weights`.

    Args:
      variables: of `init`.
      source: torch state dict as arrays, in its names or torchvision's.
      where: the file, for messages.

    Raises:
      ValueError: it does not fit; the message says what to change.
    """
    return view_weights.fill(
      variables,
      source,
      trunks=self.trunks,
      published_trunks=self.published_trunks,
      num_classes=self.num_classes,
      where=where,
      allowed_missing=self.absent_in_torch,
    )

  def num_classes_of(self, source: Mapping[str, Any]) -> int:
    """Training places that a state dict classifies; 0 if it has no classifier."""
    return view_weights.num_classes_of(source)


def load_pretrained(
  method: Any, variables: Mapping[str, Any], path: str
) -> dict[str, Any]:
  """Puts the weights of a torch file into a method's variables.

  Args:
    method: has `variables_from_torch`.
    variables: of `method.init`; entries that the file legitimately lacks (a
      new head on ImageNet weights) keep these values.
    path: `.safetensors`, `.pth` or `.pt`, or 'hf:owner/repository/file'.

  Returns:
    Variables of the same structure, shapes and types, as NumPy arrays where
    they come from the file.

  Raises:
    ValueError: the method takes no torch weights, the file cannot be read or
      does not fit; the message lists what is missing, extra or mis-shaped.
  """
  if not hasattr(method, 'variables_from_torch'):
    raise ValueError(
      f'{path}: {type(method).__module__} does not read torch weights'
    )
  source = torch_file.read(torch_file.fetch(path))
  return method.variables_from_torch(variables, source, where=path)


def without_training_data(method: Any, weights: str) -> Any:
  """The method for embedding alone, where nothing says how many classes.

  Takes the number of classes of a published checkpoint; without one any number
  does, since embedding does not use the classifier.

  Args:
    method: may have `num_classes` (0: not known) and `num_classes_of(source)`.
    weights: torch file as in `load_pretrained`, or ''.
  """
  if getattr(method, 'num_classes', None) != 0:
    return method
  count = 0
  if weights and hasattr(method, 'num_classes_of'):
    count = method.num_classes_of(torch_file.read(torch_file.fetch(weights)))
  return dataclasses.replace(method, num_classes=count or 1)
