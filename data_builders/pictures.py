"""What a picture file must be so that it is never read as wrong pixels.

The published code reads a picture by Pillow's `open(...).convert('RGB')`, and
so does cvgl_jax (cvgl_jax/data/transforms.py, by cv2 where that is the same).
Builders pass each file through `verified`:

| file | outcome |
|---|---|
| JPEG, PNG, WebP, BMP, TIFF, PPM of 8 bits: RGB, grey, palette, CMYK | kept |
| alpha channel | kept; ignored when read, as by convert('RGB') (note) |
| EXIF orientation | kept; ignored when read, as by convert('RGB') (note) |
| 16-bit colour | kept; read as its high byte (note) |
| 16-bit grey | stored as 8-bit PNG of the high byte: Pillow would clip to white |
| JPEG data that libjpeg complains about, yet decodes | kept (note) |
| empty, truncated, not a picture, 32 bits or float | damaged |
| more pixels than Pillow's limit against decompression bombs | damaged |

Kept means byte for byte. Damaged pictures make the builder refuse.
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np
from PIL import Image

from data_builders import records

# torchvision's list, as in the spec of University-1652; compared in lower case.
EXTENSIONS = frozenset(
  ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
)
MAX_PIXELS = 178_956_970  # where Pillow refuses, 512 MiB of RGB
ORIENTATION_TAG = 0x0112
JPEG_END = b'\xff\xd9'
TEST_FLAGS = cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION


def is_picture(name: str) -> bool:
  """By the extension; hidden files (such as macOS' `._x.jpg`) are none."""
  return (
    not name.startswith('.') and os.path.splitext(name)[1].lower() in EXTENSIONS
  )


def header(path: pathlib.Path) -> str:
  """'512x512 JPEG RGB' without decoding.

  Raises:
    OSError: it cannot be opened as a picture.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    with Image.open(path) as image:
      return f'{image.width}x{image.height} {image.format} {image.mode}'


def size(data: bytes) -> tuple[int, int]:
  """Width and height of an encoded picture, from its header."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(data)) as image:
      return image.width, image.height


def verified(
  files: Iterable[tuple[pathlib.Path, str]],
) -> list[tuple[str, bytes | None, list[records.Remark]]]:
  """Reads and verifies pictures.

  Args:
    files: (file, name in reports), in order.

  Returns:
    For each file: name, the bytes to store (None: damaged), remarks.
  """
  results = []
  with _decoder_messages() as message:
    for path, name in files:
      notes: list[tuple[str, str]] = []
      message()  # whatever the picture before has left
      try:
        data = _check(path.read_bytes(), notes, message)
      except (
        OSError,  # also what Pillow raises on most broken files
        SyntaxError,  # Pillow on broken PNG chunks
        ValueError,
        EOFError,
        cv2.error,
        Image.DecompressionBombError,
      ) as error:
        data, notes = None, [('damaged', _one_line(error))]
      remarks = [records.Remark(kind, name, text) for kind, text in notes]
      results.append((name, data, remarks))
  return results


def _check(
  data: bytes, notes: list[tuple[str, str]], message: Callable[[], str]
) -> bytes:
  """Returns the bytes to store; appends (kind, text); raises if damaged."""
  if not data:
    raise ValueError('empty file')
  with warnings.catch_warnings():
    # We refuse by MAX_PIXELS ourselves; other warnings are about metadata.
    warnings.simplefilter('ignore')
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
      raise ValueError(
        f'{image.width}x{image.height} pixels, more than {MAX_PIXELS}'
        ' (decompression bomb?)'
      )
    orientation = image.getexif().get(ORIENTATION_TAG, 1)
    if orientation != 1:
      notes.append(
        ('note', f'EXIF orientation {orientation} is ignored, as by Pillow')
      )
    if image.format in ('JPEG', 'MPO') and image.mode in ('L', 'RGB'):
      # One eighth of the size: every byte is parsed, few pixels are computed.
      read = cv2.imdecode(np.frombuffer(data, np.uint8), TEST_FLAGS)
      complaint = message()
      if complaint or read is None or not data.endswith(JPEG_END):
        image.load()  # raises where Pillow, and so the published code, would
        if complaint:
          notes.append(('note', f'the decoder says: {complaint}'))
      return data
    image.load()
    if image.format == 'PNG':
      # Decoding does not look at the checksums; `verify` ends the use of its
      # object.
      Image.open(io.BytesIO(data)).verify()
    return _eight_bits(data, image, notes)


def _eight_bits(
  data: bytes, image: Image.Image, notes: list[tuple[str, str]]
) -> bytes:
  """Returns what convert('RGB') reads without clipping; see `_check`."""
  mode = image.mode
  # Older versions of Pillow open a 16-bit grey PNG in mode I.
  if mode.startswith('I;16') or (mode == 'I' and image.format == 'PNG'):
    high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)  # [H, W]
    notes.append(
      ('converted', '16-bit grey is stored as 8-bit PNG of its high byte')
    )
    return cv2.imencode('.png', high)[1].tobytes()
  if mode in ('I', 'F'):
    raise ValueError(
      f'{image.format} of mode {mode} (32 bits a pixel): how its values map to'
      ' 8 bits is for you to decide; convert the file'
    )
  if mode.upper().endswith('A') or 'transparency' in image.info:
    notes.append(('note', 'the alpha channel is ignored'))
  if image.format == 'PNG' and data[24] == 16:  # bit depth in the header
    notes.append(('note', '16 bits a channel are read as their high byte'))
  return data


@contextlib.contextmanager
def _decoder_messages() -> Iterator[Callable[[], str]]:
  """Catches what C libraries write to standard error.

  libjpeg reports broken data there and nowhere else. Yields a function that
  returns the message since its last call, '' when there was none.
  """
  sys.stderr.flush()
  saved = os.dup(2)
  with tempfile.TemporaryFile() as file:
    seen = 0

    def message() -> str:
      nonlocal seen
      size = os.fstat(file.fileno()).st_size
      if size == seen:
        return ''
      lines = os.pread(file.fileno(), size - seen, seen).decode(
        errors='replace'
      )
      seen = size
      jpeg = [line for line in lines.splitlines() if 'JPEG' in line]
      return '; '.join(sorted(set(jpeg)))

    os.dup2(file.fileno(), 2)
    try:
      yield message
    finally:
      os.dup2(saved, 2)
      os.close(saved)


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  if 'cannot identify image file' in text:
    return 'not a picture that Pillow can read'
  return text
