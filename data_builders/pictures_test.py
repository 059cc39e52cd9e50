"""Every kind of picture file is kept, converted or refused; never misread."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_builders import pictures
from tests import fake_university

PIXELS = fake_university.picture(3, size_px=48)


def encoded(image, kind, **kwargs):
  """A Pillow image or an array [H, W(, C)] as the bytes of a file."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  buffer = io.BytesIO()
  image.save(buffer, kind, **kwargs)
  return buffer.getvalue()


def verify(tmp_path, data):
  """Returns the bytes to store and (kind, text) of the remarks."""
  path = tmp_path / 'picture.bin'
  path.write_bytes(data)
  [(name, kept, remarks)] = pictures.verified([(path, 'train/x.jpg')])
  assert name == 'train/x.jpg'
  assert all(remark.path == name for remark in remarks)
  return kept, [(remark.kind, remark.text) for remark in remarks]


RGB = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
  ('image', 'kind'),
  [
    (RGB, 'JPEG'),
    (RGB.convert('L'), 'JPEG'),
    (RGB.convert('CMYK'), 'JPEG'),
    (RGB, 'PNG'),
    (RGB.convert('P'), 'PNG'),
    (RGB.convert('1'), 'PNG'),
    (RGB, 'WEBP'),
    (RGB, 'BMP'),
    (RGB, 'TIFF'),
    (RGB, 'PPM'),
  ],
  ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_ordinary_files_are_kept_byte_for_byte(tmp_path, image, kind):
  data = encoded(image, kind)
  assert verify(tmp_path, data) == (data, [])


def test_progressive_jpeg_is_kept(tmp_path):
  data = encoded(RGB, 'JPEG', progressive=True)
  assert verify(tmp_path, data) == (data, [])


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_alpha_is_kept_and_noted(tmp_path, mode):
  data = encoded(RGB.convert(mode), 'PNG')
  kept, remarks = verify(tmp_path, data)
  assert kept == data
  assert remarks == [('note', 'the alpha channel is ignored')]


def test_exif_orientation_is_kept_and_noted(tmp_path):
  exif = Image.Exif()
  exif[pictures.ORIENTATION_TAG] = 6
  data = encoded(RGB, 'JPEG', exif=exif)
  kept, remarks = verify(tmp_path, data)
  assert kept == data
  assert remarks == [('note', 'EXIF orientation 6 is ignored, as by Pillow')]


def test_grey_of_16_bits_becomes_8_bits_of_the_high_byte(tmp_path):
  deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16  # 0..65520
  data = cv2.imencode('.png', deep)[1].tobytes()
  kept, remarks = verify(tmp_path, data)
  assert remarks[0][0] == 'converted'
  read = np.asarray(Image.open(io.BytesIO(kept)).convert('RGB'))
  np.testing.assert_array_equal(read[..., 1], deep >> 8)


def test_colour_of_16_bits_is_kept_and_read_as_the_high_byte(tmp_path):
  deep = PIXELS.astype(np.uint16) * 256 + 77
  data = cv2.imencode('.png', deep)[1].tobytes()
  kept, remarks = verify(tmp_path, data)
  assert kept == data
  assert remarks == [('note', '16 bits a channel are read as their high byte')]
  read = np.asarray(Image.open(io.BytesIO(kept)).convert('RGB'))
  np.testing.assert_array_equal(read[..., ::-1], PIXELS)


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_32_bits_a_pixel_are_refused(tmp_path, dtype):
  data = encoded(PIXELS[..., 0].astype(dtype), 'TIFF')
  kept, remarks = verify(tmp_path, data)
  assert kept is None
  assert remarks[0][0] == 'damaged' and '32 bits a pixel' in remarks[0][1]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'PPM'])
def test_truncated_files_are_damaged(tmp_path, kind):
  data = encoded(RGB, kind)
  for length in (len(data) * 2 // 3, len(data) // 4, 20):
    kept, remarks = verify(tmp_path, data[:length])
    assert kept is None, length
    assert [kind for kind, _ in remarks] == ['damaged']


def test_a_flipped_bit_in_a_png_is_damaged(tmp_path):
  data = bytearray(encoded(RGB, 'PNG'))
  data[len(data) // 2] ^= 1
  assert verify(tmp_path, bytes(data))[0] is None


def test_empty_and_foreign_files_are_damaged(tmp_path):
  assert verify(tmp_path, b'') == (None, [('damaged', 'empty file')])
  for data in (b'<html>404</html>', b'version https://git-lfs', bytes(5000)):
    kept, remarks = verify(tmp_path, data)
    assert kept is None
    assert remarks == [('damaged', 'not a picture that Pillow can read')]


def test_a_missing_file_is_damaged(tmp_path):
  [(_, kept, remarks)] = pictures.verified([(tmp_path / 'no.jpg', 'no.jpg')])
  assert kept is None and 'No such file' in remarks[0].text


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
  data = bytearray(encoded(RGB, 'BMP'))
  for side in (15_000, 60_000):  # beyond our limit; beyond Pillow's
    data[18:26] = side.to_bytes(4, 'little') * 2
    kept, remarks = verify(tmp_path, bytes(data))
    assert kept is None
    assert remarks[0][0] == 'damaged' and 'bomb' in remarks[0][1]


def test_jpeg_data_that_the_decoder_complains_about_is_noted(tmp_path, capfd):
  image = fake_university.picture(1, size_px=256)
  data = bytearray(encoded(image, 'JPEG', quality=95))
  for i in range(len(data) // 2, len(data) // 2 + 30):
    data[i] = (i * 37) % 251
  kept, remarks = verify(tmp_path, bytes(data))
  assert kept == bytes(data)
  assert remarks[0][0] == 'note' and 'Corrupt JPEG data' in remarks[0][1]
  assert 'Corrupt' not in capfd.readouterr().err
  # The next picture is not blamed for it.
  assert verify(tmp_path, encoded(RGB, 'JPEG'))[1] == []


def test_hidden_files_are_no_pictures():
  assert pictures.is_picture('a.JpEg') and pictures.is_picture('b.webp')
  assert not pictures.is_picture('._a.jpg')
  assert not pictures.is_picture('a.jpg.txt')
