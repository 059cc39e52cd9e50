"""Pixels on the CPU: file bytes to a picture of the size that the net takes.

`decode` gives exactly what Pillow's `Image.open(file).convert('RGB')` gives,
on which all published systems were trained, or refuses. `Loader` is the recipe
that `stream` calls for each picture; it resizes by `resizing`. What can run in
the jitted step is in `augment` and `prepare`.
"""

import dataclasses
import io
import re
import struct
from collections.abc import Collection, Mapping
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from cvgl_jax.data import autoaugment as autoaugment_lib
from cvgl_jax.data import resizing

# The pipeline has its own threads; OpenCV's would only compete with them.
cv2.setNumThreads(0)

# Pillow's own limit of refusal (twice Image.MAX_IMAGE_PIXELS).
MAX_PIXELS = 178_956_970

# Modes of which Pillow's convert('RGB') keeps the picture. Not here: I;16, I
# and F, whose values above 255 it would clip to white.
_MODES = re.compile('1|L[Aa]?|PA?|RGB[AaX]?|CMYK|YCbCr')
# In the data of a scan: anything but a stuffed byte or a restart marker.
_UNUSUAL_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7]')
_REDUCED = (
  (8, cv2.IMREAD_REDUCED_COLOR_8),
  (4, cv2.IMREAD_REDUCED_COLOR_4),
  (2, cv2.IMREAD_REDUCED_COLOR_2),
)
ASPECT_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """File bytes to the 8-bit picture that goes to the device.

  Order: decode, check the aspect ratio, cut rows, AutoAugment, JPEG, resize.

  Attributes:
    image_size: (height, width) in pixels; the aspect ratio is not kept.
    view_sizes: view -> (height, width) instead of `image_size`.
    resize: 'pillow_bicubic', 'pillow_bilinear' and 'opencv_linear' are what
      references do, bit for bit; 'area' is two to three times faster with the
      decoding, for training.
    view_aspects: view -> width / height of its stored pictures; one that is off
      by more than a tenth is refused. 0: any.
    middle_half: views of which the rows H//4 : 3 (H//4) are used.
    cut_rows: view -> pixels cut off at the top and at the bottom.
    autoaugment: policy on the picture before the resize; 'none', 'imagenet'
      (train.py --DA) or 'reid' (train_no_street.py).
    autoaugment_views: views that the policy applies to (never satellite in
      the reference).
    jpeg_p: probability that a picture is compressed and read again.
    jpeg_quality: (least, most) quality of that, both possible.
    max_pixels: larger pictures are refused before they are decoded.
  """

  image_size: tuple[int, int]
  view_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  resize: Literal[
    'pillow_bicubic', 'pillow_bilinear', 'opencv_linear', 'area'
  ] = 'pillow_bicubic'
  view_aspects: Mapping[str, float] = dataclasses.field(default_factory=dict)
  middle_half: tuple[str, ...] = ()
  cut_rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  autoaugment: Literal['none', 'imagenet', 'reid'] = 'none'
  autoaugment_views: tuple[str, ...] = ('street', 'drone', 'google')
  jpeg_p: float = 0.0
  jpeg_quality: tuple[int, int] = (90, 100)
  max_pixels: int = MAX_PIXELS

  def __post_init__(self):
    _check_image_size('image_size', self.image_size)
    for view, size_hw in self.view_sizes.items():
      _check_image_size(f'view_sizes.{view}', size_hw)
    for name, kinds in (('view_aspects', int | float), ('cut_rows', int)):
      for view, value in getattr(self, name).items():
        if not isinstance(value, kinds) or value < 0:
          raise ValueError(
            f'{name}.{view}: got {value!r}, expected a number >= 0'
            + (' of rows' if name == 'cut_rows' else ' (width / height)')
          )
    if self.resize not in resizing.METHODS:
      raise ValueError(
        f'resize {self.resize!r}; expected one of {resizing.METHODS}'
      )
    if self.autoaugment not in ('none', *autoaugment_lib.POLICIES):
      raise ValueError(
        f'autoaugment {self.autoaugment!r}; expected one of '
        f'{["none", *autoaugment_lib.POLICIES]}'
      )
    if not 0 <= self.jpeg_p <= 1:
      raise ValueError(f'jpeg_p is {self.jpeg_p}; expected 0 to 1')
    least, most = self.jpeg_quality
    if not 1 <= least <= most <= 100:
      raise ValueError(
        f'jpeg_quality {self.jpeg_quality}; expected 1 <= least <= most <= 100'
      )

  def size(self, view: str) -> tuple[int, int]:
    """(height, width) of the pictures of a view."""
    return tuple(self.view_sizes.get(view, self.image_size))

  def for_view(self, view: str) -> 'Loader':
    """The same for pictures of one view alone: `image_size` is theirs."""
    return dataclasses.replace(self, image_size=self.size(view), view_sizes={})

  def __call__(
    self,
    data: bytes,
    rng: np.random.Generator | None,
    view: str,
    where: str,
  ) -> np.ndarray:
    """Decodes, cuts, augments where asked, resizes.

    Args:
      data: the bytes of a picture file.
      rng: the sample's own generator; None when `autoaugment` is 'none' and
        `jpeg_p` is 0.
      view: of the picture.
      where: names the picture in errors.

    Returns:
      uint8 [h, w, 3], RGB.

    Raises:
      ValueError: the picture cannot be decoded faithfully (see `decode`), has
        not the shape that the recipe needs, or is lower than what is cut off.
    """
    size_hw = self.size(view)
    augments = self.autoaugment != 'none' and view in self.autoaugment_views
    if rng is None and (augments or self.jpeg_p):
      option = (
        f'autoaugment {self.autoaugment!r}' if augments else 'JPEG compression'
      )
      raise ValueError(
        f'{where}: {option} needs a random generator; embed with a Loader '
        'without it'
      )
    rows = self.cut_rows.get(view, 0)
    cuts = view in self.middle_half or rows > 0
    # A smaller decoding must be hidden by what follows, see `decode`.
    hidden = self.resize == 'area' and not (cuts or augments or self.jpeg_p)
    image = decode(
      data,
      where,
      max_pixels=self.max_pixels,
      at_least=size_hw if hidden else None,
    )
    self._check_aspect(image, view, where)
    if cuts:
      image = cut(
        image, view, middle_half=self.middle_half, rows=rows, where=where
      )
    if augments:
      image = autoaugment_lib.apply(image, rng, policy=self.autoaugment)
    if self.jpeg_p and rng.random() < self.jpeg_p:
      least, most = self.jpeg_quality
      image = jpeg(image, int(rng.integers(least, most, endpoint=True)))
    return resizing.resize(image, size_hw, self.resize)

  def _check_aspect(self, image: np.ndarray, view: str, where: str) -> None:
    wanted = self.view_aspects.get(view, 0)
    height, width = image.shape[:2]
    if wanted and abs(width / height / wanted - 1) > ASPECT_TOLERANCE:
      raise ValueError(
        f'{where}: width / height is {width / height:.2f} ({width}x{height} '
        f'pixels), expected about {wanted:g} (config.data.view_aspects.{view}): '
        'the recipe relies on what lies where in a whole picture. Correct or '
        'leave out the picture, or set that key to 0'
      )


def cut(
  image: np.ndarray,
  view: str,
  *,
  middle_half: Collection[str],
  rows: int,
  where: str,
) -> np.ndarray:
  """What a recipe uses of a picture.

  Args:
    image: [H, W, 3].
    view: of the picture.
    middle_half: views without the upper and the lower quarter.
    rows: then without so many at the top and at the bottom.
    where: names the picture in errors.

  Returns:
    [h, W, 3].

  Raises:
    ValueError: nothing is left.
  """
  if view in middle_half:
    quarter = len(image) // 4
    image = image[quarter : quarter * 3]
  if len(image) <= 2 * rows:
    raise ValueError(
      f'{where}: nothing is left of {len(image)} rows without {rows} at the top '
      f'and at the bottom (config.data.cut_rows.{view}, middle_half)'
    )
  return image[rows : len(image) - rows]


def decode(
  data: bytes,
  where: str,
  *,
  max_pixels: int = MAX_PIXELS,
  at_least: tuple[int, int] | None = None,
) -> np.ndarray:
  """Decodes a picture file as Pillow's `Image.open(...).convert('RGB')` does.

  Grey becomes three equal channels; palettes are resolved; alpha is dropped,
  not composited; CMYK is converted by Pillow's rule; 16-bit colour keeps the
  high byte; of animations and multi-page files the first picture counts; the
  EXIF orientation is ignored, as the references ignore it, so that a picture
  keeps the orientation of its stored pixels. Sound 8-bit JPEG files of one scan
  take OpenCV (same library and pixels, less time), everything else Pillow.

  Args:
    data: the bytes of the file.
    where: names the picture in errors.
    max_pixels: larger pictures are refused unread (decompression bombs).
    at_least: (height, width); allows a JPEG to be decoded at 1/2, 1/4 or 1/8
      of its size as long as both sides stay at least twice this large, where
      a following `resizing.resize_area` hides the difference.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    ValueError: not a picture, truncated, damaged, too large, or of a kind
      (16-bit grey, 32-bit, floating point) whose conversion to 8 bits Pillow
      would do by clipping.
  """
  header = _jpeg_header(data)
  if header is not None:
    height, width = header
    _check_size(height, width, where=where, max_pixels=max_pixels)
    reduction = 1
    if at_least is not None:
      reduction = min(height // at_least[0], width // at_least[1]) // 2
    image = _decode_opencv(data, reduction)
    if image is not None:
      return image
  return _decode_pillow(data, where, max_pixels=max_pixels)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
  """What is left of a picture after compression as JPEG.

  Args:
    image: uint8 [H, W, 3].
    quality: 1 ... 100.

  Returns:
    uint8 [H, W, 3].

  Source: albumentations 1.3 `ImageCompression`: red and blue change places in
  the codec, as there, so that the luminance weighs blue more than red.
  """
  data = cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
  return cv2.imdecode(data, cv2.IMREAD_COLOR)


def _decode_pillow(data: bytes, where: str, *, max_pixels: int) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data)) as picture:
      _check_size(
        picture.height, picture.width, where=where, max_pixels=max_pixels
      )
      if not _MODES.fullmatch(picture.mode):
        raise ValueError(
          f'{where}: pixels of mode {picture.mode!r} ({picture.format}) do not '
          'fit 8 bits without a choice of range; convert the file to 8-bit RGB'
        )
      return np.array(picture.convert('RGB'))
  except Image.DecompressionBombError as error:
    raise ValueError(f'{where}: {error}') from error
  except (OSError, SyntaxError, EOFError, struct.error) as error:
    raise ValueError(
      f'{where}: cannot decode the picture ({len(data)} bytes): {error}; '
      'the file is truncated, damaged or not a picture'
    ) from error


def _check_image_size(name: str, size_hw: tuple[int, int]) -> None:
  whole = isinstance(size_hw, tuple | list) and len(size_hw) == 2
  if not whole or not all(isinstance(n, int) and n > 0 for n in size_hw):
    raise ValueError(f'{name} {size_hw!r}; expected (height, width) in pixels')


def _check_size(
  height: int, width: int, *, where: str, max_pixels: int
) -> None:
  if height * width > max_pixels:
    raise ValueError(
      f'{where}: {width}x{height} pixels are more than the limit of '
      f'{max_pixels}; shrink the picture or raise max_pixels'
    )


def _decode_opencv(data: bytes, reduction: int) -> np.ndarray | None:
  """Decodes at 1/8, 1/4, 1/2 or 1/1 of the size, at least 1/`reduction`."""
  buffer = np.frombuffer(data, np.uint8)
  if reduction < 2:
    flag = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(buffer, flag)
  flag = next(flag for least, flag in _REDUCED if reduction >= least)
  image = cv2.imdecode(buffer, flag | cv2.IMREAD_IGNORE_ORIENTATION)
  return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_header(data: bytes) -> tuple[int, int] | None:
  """(height, width) of a sound 8-bit grey or YCbCr JPEG of one scan, else None.

  Sound means that nothing but restart markers comes between the start of the
  scan and the end marker: OpenCV paints what is missing of a truncated or
  damaged file grey and goes on, Pillow refuses such a file.
  """
  if data[:2] != b'\xff\xd8':
    return None
  size = None
  at = 2
  while at + 4 <= len(data):
    if data[at] != 0xFF:
      return None
    marker = data[at + 1]
    if marker == 0xFF:  # fill byte
      at += 1
      continue
    if marker == 0xDA:  # start of scan
      after = _UNUSUAL_MARKER.search(data, at + 4)
      return size if after is not None and after[0] == b'\xff\xd9' else None
    length = int.from_bytes(data[at + 2 : at + 4], 'big')
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      segment = data[at + 4 : at + 2 + length]
      plain = marker in (0xC0, 0xC1) and len(segment) >= 6
      if not plain or segment[0] != 8 or segment[5] not in (1, 3):
        return None
      size = struct.unpack('>HH', segment[1:5])
      if 0 in size:
        return None
    at += 2 + length
  return None
