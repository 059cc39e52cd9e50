"""AutoAugment policies on 8-bit pictures of any size, on the CPU.

A sub-policy is drawn uniformly; its two operations are applied one after the
other, each with its own probability and magnitude index 0 ... 9. Pillow does
the pixel arithmetic, as in the published code, so results agree bit for bit.

Source: layumi/University1652-Baseline `autoaugment.py` (`ImageNetPolicy`,
`ReIDPolicy`), after Cubuk et al., AutoAugment, CVPR 2019. As there, rotation
has no random sign (always counter-clockwise).
Differs: the CIFAR-10 and SVHN policies, never used there, are left out.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# (probability, operation, magnitude index) twice a sub-policy.
SubPolicy = tuple[tuple[float, str, int], tuple[float, str, int]]

IMAGENET: tuple[SubPolicy, ...] = (
  ((0.4, 'posterize', 8), (0.6, 'rotate', 9)),
  ((0.6, 'solarize', 5), (0.6, 'autocontrast', 5)),
  ((0.8, 'equalize', 8), (0.6, 'equalize', 3)),
  ((0.6, 'posterize', 7), (0.6, 'posterize', 6)),
  ((0.4, 'equalize', 7), (0.2, 'solarize', 4)),
  ((0.4, 'equalize', 4), (0.8, 'rotate', 8)),
  ((0.6, 'solarize', 3), (0.6, 'equalize', 7)),
  ((0.8, 'posterize', 5), (1.0, 'equalize', 2)),
  ((0.2, 'rotate', 3), (0.6, 'solarize', 8)),
  ((0.6, 'equalize', 8), (0.4, 'posterize', 6)),
  ((0.8, 'rotate', 8), (0.4, 'color', 0)),
  ((0.4, 'rotate', 9), (0.6, 'equalize', 2)),
  ((0.0, 'equalize', 7), (0.8, 'equalize', 8)),
  ((0.6, 'invert', 4), (1.0, 'equalize', 8)),
  ((0.6, 'color', 4), (1.0, 'contrast', 8)),
  ((0.8, 'rotate', 8), (1.0, 'color', 2)),
  ((0.8, 'color', 8), (0.8, 'solarize', 7)),
  ((0.4, 'sharpness', 7), (0.6, 'invert', 8)),
  ((0.6, 'shearX', 5), (1.0, 'equalize', 9)),
  ((0.4, 'color', 0), (0.6, 'equalize', 3)),
  # The published list ends with five of the entries above once more.
  ((0.4, 'equalize', 7), (0.2, 'solarize', 4)),
  ((0.6, 'solarize', 5), (0.6, 'autocontrast', 5)),
  ((0.6, 'invert', 4), (1.0, 'equalize', 8)),
  ((0.6, 'color', 4), (1.0, 'contrast', 8)),
  ((0.8, 'equalize', 8), (0.6, 'equalize', 3)),
)

REID: tuple[SubPolicy, ...] = (
  ((0.8, 'equalize', 8), (0.6, 'equalize', 3)),
  ((0.6, 'posterize', 7), (0.6, 'posterize', 6)),
  ((0.8, 'posterize', 5), (1.0, 'equalize', 2)),
  ((0.6, 'equalize', 8), (0.4, 'posterize', 6)),
  ((0.0, 'equalize', 7), (0.8, 'equalize', 8)),
  ((0.6, 'color', 4), (1.0, 'contrast', 8)),
  ((0.6, 'shearX', 5), (1.0, 'equalize', 9)),
  ((0.4, 'color', 0), (0.6, 'equalize', 3)),
  ((0.6, 'solarize', 5), (0.6, 'autocontrast', 5)),
  ((0.6, 'color', 4), (1.0, 'contrast', 8)),
  ((0.8, 'equalize', 8), (0.6, 'equalize', 3)),
)

POLICIES = {'imagenet': IMAGENET, 'reid': REID}

# Magnitude index -> value. Not listed: autocontrast, equalize and invert.
_MAGNITUDES = {
  'shearX': np.linspace(0, 0.3, 10),
  'shearY': np.linspace(0, 0.3, 10),
  'translateX': np.linspace(0, 150 / 331, 10),
  'translateY': np.linspace(0, 150 / 331, 10),
  'rotate': np.linspace(0, 30, 10),  # degrees
  'color': np.linspace(0, 0.9, 10),
  'contrast': np.linspace(0, 0.9, 10),
  'sharpness': np.linspace(0, 0.9, 10),
  'brightness': np.linspace(0, 0.9, 10),
  'posterize': np.round(np.linspace(8, 4, 10)),  # bits kept
  'solarize': np.linspace(256, 0, 10),
}
_ENHANCERS = {
  'color': ImageEnhance.Color,
  'contrast': ImageEnhance.Contrast,
  'sharpness': ImageEnhance.Sharpness,
  'brightness': ImageEnhance.Brightness,
}
_GREY = (128, 128, 128)

OPERATIONS = (*_MAGNITUDES, 'autocontrast', 'equalize', 'invert')


def apply(
  image: np.ndarray, rng: np.random.Generator, *, policy: str
) -> np.ndarray:
  """Applies one randomly drawn sub-policy.

  Args:
    image: uint8 [H, W, 3].
    rng: the sample's own generator.
    policy: 'imagenet' or 'reid'.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: unknown policy.
  """
  if policy not in POLICIES:
    raise ValueError(f'policy {policy!r}; expected one of {list(POLICIES)}')
  sub_policies = POLICIES[policy]
  picture = Image.fromarray(image)
  for probability, name, index in sub_policies[rng.integers(len(sub_policies))]:
    if rng.random() < probability:
      sign = 1 if rng.random() < 0.5 else -1
      picture = _operate(picture, name, index, sign=sign)
  return np.array(picture)


def operation(
  image: np.ndarray, name: str, *, index: int, sign: int = 1
) -> np.ndarray:
  """Applies one operation at a given strength.

  Args:
    image: uint8 [H, W, 3].
    name: one of `OPERATIONS`.
    index: magnitude 0 ... 9.
    sign: 1 or -1; direction of shear and translate, more or less for the four
      enhancements; other operations ignore it.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: unknown operation or magnitude.
  """
  if name not in OPERATIONS:
    raise ValueError(f'operation {name!r}; expected one of {list(OPERATIONS)}')
  if not 0 <= index <= 9:
    raise ValueError(f'magnitude index {index}; expected 0 to 9')
  return np.array(_operate(Image.fromarray(image), name, index, sign=sign))


def _operate(
  picture: Image.Image, name: str, index: int, *, sign: int
) -> Image.Image:
  if name == 'autocontrast':
    return ImageOps.autocontrast(picture)
  if name == 'equalize':
    return ImageOps.equalize(picture)
  if name == 'invert':
    return ImageOps.invert(picture)
  magnitude = float(_MAGNITUDES[name][index])
  width, height = picture.size
  if name in _ENHANCERS:
    return _ENHANCERS[name](picture).enhance(1 + sign * magnitude)
  if name == 'posterize':
    return ImageOps.posterize(picture, int(magnitude))
  if name == 'solarize':
    return ImageOps.solarize(picture, magnitude)
  if name == 'rotate':
    return picture.rotate(magnitude, fillcolor=_GREY)
  shift = sign * magnitude
  matrix = {
    'shearX': (1, shift, 0, 0, 1, 0),
    'shearY': (1, 0, 0, shift, 1, 0),
    'translateX': (1, 0, shift * width, 0, 1, 0),
    'translateY': (1, 0, 0, 0, 1, shift * height),
  }[name]
  is_shear = name.startswith('shear')
  filter_ = Image.Resampling.BICUBIC if is_shear else Image.Resampling.NEAREST
  return picture.transform(
    picture.size, Image.Transform.AFFINE, matrix, filter_, fillcolor=_GREY
  )
