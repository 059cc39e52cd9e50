"""The last step before the network, on the device, in training and evaluation.

`Prepare` lays satellite pictures out as panoramas and hides from the network
what a panorama of unknown orientation or of a limited field of view does not
show (`panorama`). Training draws a new orientation at every access; in evaluation
the orientation of a query is a fixed function of (seed, row), so that numbers
can be repeated and compared. `Chain` is the augmentation followed by it, one
callable for the train step.

Source: zqwlearning/FRGeo-Code and Jeff-Zilence/TransGeo2022, `LimitedFoV` in
`dataset/*.py`. Differs: there the orientation
of a query changes from evaluation to evaluation.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cvgl_jax.data import augment, panorama

_KEY = 0x0F0F  # tells these draws from those of the augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
  """Polar transform of satellite pictures, limited view of panoramas.

  Views are known by the first word of their names, 'satellite' and 'panorama';
  pictures of other views pass unchanged.

  Attributes:
    polar_size: (height, width) of the polar transform; () for none.
    fov_deg: field of view in degrees that is left of a panorama, which is first
      rolled by an unknown angle; 360: only rolled; 0: off.
    fov_seed: of the angles in evaluation.
  """

  polar_size: tuple[int, ...] = ()
  fov_deg: float = 0.0
  fov_seed: int = 0

  def __post_init__(self):
    if self.polar_size and (
      len(self.polar_size) != 2 or min(self.polar_size) < 1
    ):
      raise ValueError(
        f'polar_size {self.polar_size}; expected (height, width), or () for no '
        'polar transform'
      )
    if not 0 <= self.fov_deg <= 360:
      raise ValueError(f'fov_deg is {self.fov_deg}; expected 0 (off) to 360')
    if self.fov_seed < 0:
      raise ValueError(f'fov_seed is {self.fov_seed}; expected >= 0')

  def size(self, view: str, size_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the pictures of a view after this step.

    Args:
      view: of the pictures.
      size_hw: (height, width) before it.

    Raises:
      ValueError: a satellite picture is not square, or nothing would be left of
        a panorama.
    """
    height, width = size_hw
    if self.polar_size and augment.first_word(view) == 'satellite':
      if height != width:
        raise ValueError(
          f'polar_size: pictures of view {view!r} are {height}x{width} pixels; '
          'the polar transform takes square ones'
        )
      return self.polar_size
    if self._hides(view):
      kept = int(self.fov_deg / 360 * width)
      if not kept:
        raise ValueError(
          f'fov_deg: {self.fov_deg:g} degrees of {width} columns are no column'
        )
      return height, kept
    return height, width

  def random(self, key: jax.Array, images: jax.Array, view: str) -> jax.Array:
    """For training: every picture gets an orientation of its own.

    Args:
      key: of the step.
      images: [B, H, W, C].
      view: of the pictures.

    Returns:
      [B, h, w, C] with (h, w) as `size` says; float32 after a polar transform,
      else of the same type.
    """
    angles = None
    if self._hides(view):
      key = jax.random.fold_in(key, _KEY)
      angles = jax.random.randint(key, (len(images),), 0, panorama.ANGLES)
    return self._apply(images, view, angles)

  def fixed(self, images: jax.Array, view: str, rows: jax.Array) -> jax.Array:
    """For evaluation: the orientation is a function of (`fov_seed`, row).

    Args:
      images: [B, H, W, C].
      view: of the pictures.
      rows: int32 [B], of the split; padding may have any number.

    Returns:
      As `random`.
    """
    angles = self.angles_of(rows) if self._hides(view) else None
    return self._apply(images, view, angles)

  def angles_of(self, rows: jax.Array) -> jax.Array:
    """The angles of rows of a split in evaluation, int32 [B], 0 ... 359."""
    seed = jax.random.key(self.fov_seed)
    # Plain bits, which other versions of jax give too.
    draw = lambda row: jax.random.bits(jax.random.fold_in(seed, row))
    return (jax.vmap(draw)(rows) % panorama.ANGLES).astype(jnp.int32)

  def _hides(self, view: str) -> bool:
    return self.fov_deg > 0 and augment.first_word(view) == 'panorama'

  def _apply(
    self, images: jax.Array, view: str, angles: jax.Array | None
  ) -> jax.Array:
    size_hw = self.size(view, images.shape[1:3])
    if angles is not None:
      return panorama.limit_view(images, angles, size_hw[1])
    if self.polar_size and augment.first_word(view) == 'satellite':
      return panorama.polar_transform(images, size_hw)
    return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
  """Augmentation, then `Prepare`: what the train step does to pictures.

  Attributes:
    augment: (key, uint8 [B, H, W, 3], view) -> float32 [B, H, W, 3].
    prepare: see there.
  """

  augment: Callable[[jax.Array, jax.Array, str], jax.Array]
  prepare: Prepare

  def __call__(self, key: jax.Array, images: jax.Array, view: str) -> jax.Array:
    """uint8 [B, H, W, 3] -> float32 [B, h, w, 3], see `Prepare.size`."""
    return self.prepare.random(key, self.augment(key, images, view), view)
