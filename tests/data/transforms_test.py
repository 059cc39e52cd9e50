"""Decoding as Pillow, resizing as Pillow, refusals that name the file."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cvgl_jax.data import transforms


def picture(height=61, width=83, seed=0):
  """Smooth blobs with noise, uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  smooth = np.asarray(Image.fromarray(coarse).resize((width, height), 3), float)
  noisy = smooth + rng.normal(0, 6, smooth.shape)
  return np.clip(noisy, 0, 255).astype(np.uint8)


def encode(image, kind, **options):
  file = io.BytesIO()
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  image.save(file, kind, **options)
  return file.getvalue()


def with_alpha():
  image = Image.fromarray(picture()).convert('RGBA')
  alpha = np.random.default_rng(1).integers(0, 256, (61, 83), dtype=np.uint8)
  image.putalpha(Image.fromarray(alpha))
  return image


def rotated_exif():
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def deep_png(values):
  return cv2.imencode('.png', values)[1].tobytes()


RGB = Image.fromarray(picture())
FILES = {
  'jpeg 4:2:0': encode(RGB, 'JPEG'),
  'jpeg 4:2:2': encode(RGB, 'JPEG', subsampling=1, quality=95),
  'jpeg 4:4:4': encode(RGB, 'JPEG', subsampling=0, quality=30),
  'jpeg progressive': encode(RGB, 'JPEG', progressive=True),
  'jpeg with restart markers': encode(RGB, 'JPEG', restart_marker_rows=1),
  'jpeg grey': encode(RGB.convert('L'), 'JPEG'),
  'jpeg cmyk': encode(RGB.convert('CMYK'), 'JPEG'),
  'jpeg rgb': encode(RGB, 'JPEG', keep_rgb=True),
  'jpeg rotated by exif': encode(RGB, 'JPEG', exif=rotated_exif()),
  'jpeg of two pictures': encode(
    RGB, 'MPO', save_all=True, append_images=[RGB.rotate(90)]
  ),
  'jpeg with bytes behind it': encode(RGB, 'JPEG') + b'trailer',
  'png': encode(RGB, 'PNG'),
  'png grey': encode(RGB.convert('L'), 'PNG'),
  'png alpha': encode(with_alpha(), 'PNG'),
  'png grey alpha': encode(with_alpha().convert('LA'), 'PNG'),
  'png palette': encode(RGB.convert('P'), 'PNG'),
  'png transparent palette': encode(RGB.convert('P'), 'PNG', transparency=3),
  'png bilevel': encode(RGB.convert('1'), 'PNG'),
  'png 16-bit colour': deep_png(picture().astype(np.uint16) * 257),
  'webp': encode(RGB, 'WEBP'),
  'bmp': encode(RGB, 'BMP'),
  'gif animation': encode(
    RGB, 'GIF', save_all=True, append_images=[RGB.rotate(180)]
  ),
  'tiff': encode(RGB, 'TIFF', compression='tiff_lzw'),
}


@pytest.mark.parametrize('kind', FILES)
def test_decode_equals_pillow(kind):
  expected = np.array(Image.open(io.BytesIO(FILES[kind])).convert('RGB'))
  ours = transforms.decode(FILES[kind], kind)
  assert ours.dtype == np.uint8
  assert ours.flags.writeable
  np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
  ('name', 'data'),
  [
    ('truncated', FILES['jpeg 4:2:0'][:1000]),
    ('without its end', FILES['jpeg 4:2:0'][:-2]),
    ('cut in the header', FILES['jpeg 4:2:0'][:30]),
    ('truncated png', FILES['png'][:800]),
    ('truncated progressive', FILES['jpeg progressive'][:-200]),
    ('empty', b''),
    ('text', b'this is not a picture'),
  ],
)
def test_decode_refuses_damaged_files_by_name(name, data):
  with pytest.raises(ValueError, match=rf'x/{name}.*{len(data)} bytes'):
    transforms.decode(data, f'x/{name}.jpg')


def test_decode_refuses_a_marker_inside_the_scan_as_pillow_does():
  data = bytearray(encode(picture(200, 200), 'JPEG', quality=95))
  data[len(data) // 2 : len(data) // 2 + 2] = b'\xff\xc4'
  with pytest.raises(ValueError, match='damaged'):
    transforms.decode(bytes(data), 'spoilt.jpg')


@pytest.mark.parametrize(
  ('mode', 'data'),
  [
    ('I;16', deep_png(picture()[..., 0].astype(np.uint16) * 16)),
    ('F', encode(picture()[..., 0].astype(np.float32), 'TIFF')),
  ],
)
def test_decode_refuses_what_pillow_would_clip(mode, data):
  with pytest.raises(ValueError, match=rf"deep: pixels of mode '{mode}'"):
    transforms.decode(data, 'deep')


@pytest.mark.parametrize('kind', ['jpeg 4:2:0', 'png'])
def test_decode_refuses_pictures_over_the_limit(kind):
  with pytest.raises(ValueError, match=r'big: 83x61 pixels .* limit of 5000'):
    transforms.decode(FILES[kind], 'big', max_pixels=5000)


def test_decode_refuses_a_decompression_bomb_unread():
  def chunk(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', crc)

  header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
  bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
  bomb += chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
  with pytest.raises(ValueError, match=r'bomb\.png'):
    transforms.decode(bomb, 'bomb.png')


def test_decode_at_reduced_size_is_only_a_shortcut_for_area():
  data = encode(picture(480, 400), 'JPEG', quality=95)
  reduced = transforms.decode(data, 'x', at_least=(100, 100))
  assert reduced.shape == (240, 200, 3)
  full = transforms.decode(data, 'x')
  difference = np.abs(
    transforms.resize_area(reduced, (100, 100)).astype(int)
    - transforms.resize_area(full, (100, 100))
  )
  assert difference.mean() < 0.5
  assert transforms.decode(data, 'x', at_least=(121, 100)).shape == full.shape
  assert transforms.decode(data, 'x', at_least=(60, 50)).shape == (120, 100, 3)


@pytest.mark.parametrize('size_hw', [(24, 24), (64, 48), (61, 40), (130, 200)])
@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
def test_resize_pillow_is_pillow(size_hw, method):
  filter_ = Image.Resampling[method.upper()]
  expected = Image.fromarray(picture()).resize(size_hw[::-1], filter_)
  ours = transforms.resize_pillow(picture(), size_hw, method)
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_resize_area_averages_blocks():
  image = picture(60, 80)
  means = image.reshape(30, 2, 40, 2, 3).astype(float).mean((1, 3))
  ours = transforms.resize_area(image, (30, 40))
  np.testing.assert_allclose(ours, means, rtol=0, atol=0.51)
  assert transforms.resize_area(image, (90, 200)).shape == (90, 200, 3)


def test_loader_decodes_and_resizes():
  load = transforms.Loader(image_size=(24, 32))
  ours = load(FILES['jpeg 4:2:0'], None, 'drone', 'x')
  image = Image.open(io.BytesIO(FILES['jpeg 4:2:0']))
  expected = image.resize((32, 24), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_loader_by_area_stays_close_to_the_reference():
  data = encode(picture(512, 512), 'JPEG', quality=90)
  fast = transforms.Loader(image_size=(256, 256), resize='area')
  exact = transforms.Loader(image_size=(256, 256))
  a, b = (load(data, None, 'drone', 'x').astype(int) for load in (fast, exact))
  assert np.abs(a - b).mean() < 2


def test_loader_augments_the_views_of_the_policy_only():
  load = transforms.Loader(image_size=(61, 83), autoaugment='imagenet')
  plain = transforms.decode(FILES['png'], 'x')

  def changed(view, seed):
    rng = np.random.default_rng(seed)
    return not np.array_equal(load(FILES['png'], rng, view, 'x'), plain)

  assert any(changed('drone', seed) for seed in range(5))
  assert not any(changed('satellite', seed) for seed in range(5))


def test_loader_is_a_function_of_its_generator():
  load = transforms.Loader(image_size=(30, 30), autoaugment='reid')
  first, second = (
    load(FILES['png'], np.random.default_rng(3), 'street', 'x')
    for _ in range(2)
  )
  np.testing.assert_array_equal(first, second)


def test_loader_wants_a_generator_for_autoaugment():
  load = transforms.Loader(image_size=(30, 30), autoaugment='reid')
  with pytest.raises(ValueError, match="x: autoaugment 'reid' needs a random"):
    load(FILES['png'], None, 'street', 'x')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'image_size': (0, 5)}, 'image_size'),
    ({'image_size': (5, 5), 'resize': 'cubic'}, "resize 'cubic'"),
    ({'image_size': (5, 5), 'autoaugment': 'cifar'}, "autoaugment 'cifar'"),
  ],
)
def test_loader_refuses_unknown_options(options, message):
  with pytest.raises(ValueError, match=message):
    transforms.Loader(**options)
