"""Splits of plain-coloured pictures and a method that sees their colour."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import PIL.Image


@dataclasses.dataclass
class ColourSplit:
  """One picture a row; `colour` is [N, 3] in 0..255."""

  name: str
  place: np.ndarray
  colour: np.ndarray
  prefix: str = 'set'
  mirror: bool = False

  def __post_init__(self):
    self.place = np.asarray(self.place, np.int64)
    self.reads = 0

  @property
  def view(self):
    return self.name.rsplit('_', 1)[-1]

  @property
  def path(self):
    return np.array(
      [
        f'{self.prefix}/{self.name}/{p}/{i}.png'
        for i, p in enumerate(self.place)
      ]
    )

  def __len__(self):
    return len(self.place)

  def image_bytes(self, row):
    self.reads += 1
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, :8] = self.colour[row]
    image = image[:, ::-1] if self.mirror else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, 'png')
    return buffer.getvalue()


class ColourMethod:
  """Mean colours of the left and the right half, through a square matrix."""

  def embed_raw(self, variables, images, view):
    images = images.astype(jnp.float32) / 255
    half = images.shape[2] // 2
    left = images[:, :, :half].mean(axis=(1, 2))
    right = images[:, :, half:].mean(axis=(1, 2))
    feature = jnp.concatenate([left, right], axis=1)
    return feature @ variables['params'][view]

  def variables(self, *views):
    return {'params': {view: np.eye(6, dtype=np.float32) for view in views}}


def colours(places, seed=0):
  """Colours [N, 3] that are the same for the same place but for noise."""
  rng = np.random.default_rng(seed)
  base = np.random.default_rng(99).uniform(0, 220, (1000, 3))
  return base[np.asarray(places)] + rng.uniform(0, 3, (len(places), 3))
