"""Pixels on the CPU: file bytes to a picture of the size that the net takes.

`decode` gives exactly what Pillow's `Image.open(file).convert('RGB')` gives,
on which all published systems were trained, or refuses. `resize_pillow` is
Pillow's own antialiased filter (test time, exact); `resize_area` is faster
(training). `Loader` is the recipe that `stream` calls for each picture. What
can run in the jitted step is in `augment`.
"""

import dataclasses
import io
import re
import struct
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from cvgl_jax.data import autoaugment as autoaugment_lib

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
_FILTERS = {
  'bicubic': Image.Resampling.BICUBIC,
  'bilinear': Image.Resampling.BILINEAR,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """File bytes to the 8-bit picture that goes to the device.

  Attributes:
    image_size: (height, width) in pixels; the aspect ratio is not kept.
    resize: 'pillow_bicubic' is what the references do, bit for bit; 'area' is
      two to three times faster with the decoding, for training.
    autoaugment: policy on the picture before the resize; 'none', 'imagenet'
      (train.py --DA) or 'reid' (train_no_street.py).
    autoaugment_views: views that the policy applies to (never satellite in
      the reference).
    max_pixels: larger pictures are refused before they are decoded.
  """

  image_size: tuple[int, int]
  resize: Literal['pillow_bicubic', 'area'] = 'pillow_bicubic'
  autoaugment: Literal['none', 'imagenet', 'reid'] = 'none'
  autoaugment_views: tuple[str, ...] = ('street', 'drone', 'google')
  max_pixels: int = MAX_PIXELS

  def __post_init__(self):
    if len(self.image_size) != 2 or min(self.image_size) < 1:
      raise ValueError(
        f'image_size {self.image_size}; expected (height, width) in pixels'
      )
    if self.resize not in ('pillow_bicubic', 'area'):
      raise ValueError(
        f"resize {self.resize!r}; expected 'pillow_bicubic' or 'area'"
      )
    if self.autoaugment not in ('none', *autoaugment_lib.POLICIES):
      raise ValueError(
        f'autoaugment {self.autoaugment!r}; expected one of '
        f'{["none", *autoaugment_lib.POLICIES]}'
      )

  def __call__(
    self,
    data: bytes,
    rng: np.random.Generator | None,
    view: str,
    where: str,
  ) -> np.ndarray:
    """Decodes, augments where asked, resizes.

    Args:
      data: the bytes of a picture file.
      rng: the sample's own generator; None when `autoaugment` is 'none'.
      view: of the picture.
      where: names the picture in errors.

    Returns:
      uint8 [h, w, 3], RGB.

    Raises:
      ValueError: the picture cannot be decoded faithfully (see `decode`).
    """
    height, width = self.image_size
    if self.autoaugment != 'none' and view in self.autoaugment_views:
      if rng is None:
        raise ValueError(
          f'{where}: autoaugment {self.autoaugment!r} needs a random '
          "generator; embed with a Loader whose autoaugment is 'none'"
        )
      image = decode(data, where, max_pixels=self.max_pixels)
      image = autoaugment_lib.apply(image, rng, policy=self.autoaugment)
    elif self.resize == 'area':
      image = decode(
        data, where, max_pixels=self.max_pixels, at_least=(height, width)
      )
    else:
      image = decode(data, where, max_pixels=self.max_pixels)
    if self.resize == 'area':
      return resize_area(image, (height, width))
    return resize_pillow(image, (height, width), 'bicubic')


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
      a following `resize_area` hides the difference.

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


def resize_pillow(
  image: np.ndarray, size_hw: tuple[int, int], method: str = 'bicubic'
) -> np.ndarray:
  """Resizes with Pillow's antialiased filter, exactly as torchvision on PIL.

  Args:
    image: uint8 [H, W, 3].
    size_hw: (height, width) of the result.
    method: 'bicubic' or 'bilinear'.

  Returns:
    uint8 [h, w, 3].

  Raises:
    ValueError: unknown method.
  """
  if method not in _FILTERS:
    raise ValueError(f'method {method!r}; expected one of {list(_FILTERS)}')
  height, width = size_hw
  if image.shape[:2] == (height, width):
    return image
  picture = Image.fromarray(image)
  return np.array(picture.resize((width, height), _FILTERS[method]))


def resize_area(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
  """Resizes by averaging the covered source pixels (bilinear when enlarging).

  About thirty times faster than Pillow's bicubic filter; on photographs the two
  differ by less than one grey level on average, more at sharp edges.

  Args:
    image: uint8 [H, W, 3].
    size_hw: (height, width) of the result.

  Returns:
    uint8 [h, w, 3].
  """
  height, width = size_hw
  if image.shape[:2] == (height, width):
    return image
  shrinks = height <= image.shape[0] and width <= image.shape[1]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(image, (width, height), interpolation=method)


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
