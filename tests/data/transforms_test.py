"""Decoding as Pillow, resizing as Pillow, refusals that name the file."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cvgl_jax.data import resizing, transforms


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
    resizing.resize_area(reduced, (100, 100)).astype(int)
    - resizing.resize_area(full, (100, 100))
  )
  assert difference.mean() < 0.5
  assert transforms.decode(data, 'x', at_least=(121, 100)).shape == full.shape
  assert transforms.decode(data, 'x', at_least=(60, 50)).shape == (120, 100, 3)


@pytest.mark.parametrize('size_hw', [(24, 24), (64, 48), (61, 40), (130, 200)])
@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
def test_resize_pillow_is_pillow(size_hw, method):
  filter_ = Image.Resampling[method.upper()]
  expected = Image.fromarray(picture()).resize(size_hw[::-1], filter_)
  ours = resizing.resize_pillow(picture(), size_hw, method)
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_resize_area_averages_blocks():
  image = picture(60, 80)
  means = image.reshape(30, 2, 40, 2, 3).astype(float).mean((1, 3))
  ours = resizing.resize_area(image, (30, 40))
  np.testing.assert_allclose(ours, means, rtol=0, atol=0.51)
  assert resizing.resize_area(image, (90, 200)).shape == (90, 200, 3)


@pytest.mark.parametrize('size_hw', [(24, 24), (64, 48), (61, 40), (130, 200)])
def test_resize_opencv_is_bilinear_in_256ths(size_hw):
  def axis(image, size):
    """[n, ...] -> [m, ...], half-pixel centres, edges repeated."""
    n = len(image)
    at = (np.arange(size) + 0.5) * n / size - 0.5
    weight = np.floor((at - np.floor(at)) * 256 + 0.5) / 256
    low = np.floor(at).astype(int)
    a, b = (image[np.clip(x, 0, n - 1)] for x in (low, low + 1))
    weight = weight[:, None, None]
    return a * (1 - weight) + b * weight

  image = picture().astype(np.float64)
  rows = axis(image, size_hw[0]).swapaxes(0, 1)
  expected = axis(rows, size_hw[1]).swapaxes(0, 1)
  ours = resizing.resize(picture(), size_hw, 'opencv_linear')
  np.testing.assert_array_equal(ours, np.floor(expected + 0.5))


@pytest.mark.parametrize('method', resizing.METHODS)
def test_every_method_gives_the_size_and_keeps_an_even_surface(method):
  grey = np.full((30, 50, 3), 77, np.uint8)
  assert (resizing.resize(grey, (20, 64), method) == 77).all()
  assert resizing.resize(grey, (20, 64), method).shape == (20, 64, 3)
  np.testing.assert_array_equal(
    resizing.resize(picture(), (61, 83), method), picture()
  )


def test_loader_gives_every_view_its_size():
  load = transforms.Loader(
    image_size=(24, 32),
    view_sizes={'panorama': (10, 80)},
    resize='pillow_bilinear',
  )
  for view, size_hw in (('panorama', (10, 80)), ('satellite', (24, 32))):
    assert load.size(view) == size_hw
    ours = load(FILES['png'], None, view, 'x')
    expected = resizing.resize_pillow(picture(), size_hw, 'bilinear')
    np.testing.assert_array_equal(ours, expected)
    alone = load.for_view(view)
    assert alone.image_size == size_hw
    np.testing.assert_array_equal(alone(FILES['png'], None, view, 'x'), ours)


def test_loader_cuts_the_middle_half_of_the_views_meant():
  load = transforms.Loader(image_size=(30, 83), middle_half=('panorama',))
  # 61 rows: 61 // 4 = 15, so rows 15 to 44.
  np.testing.assert_array_equal(
    load(FILES['png'], None, 'panorama', 'x'), picture()[15:45]
  )
  whole = load(FILES['png'], None, 'satellite', 'x')
  expected = resizing.resize_pillow(picture(), (30, 83))
  np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize('resize', ['pillow_bicubic', 'area'])
def test_loader_cuts_rows_of_the_stored_picture(resize):
  load = transforms.Loader(
    image_size=(41, 83), cut_rows={'panorama': 10}, resize=resize
  )
  np.testing.assert_array_equal(
    load(FILES['png'], None, 'panorama', 'x'), picture()[10:51]
  )


@pytest.mark.parametrize('resize', resizing.METHODS)
def test_loader_never_cuts_or_compresses_a_picture_decoded_smaller(resize):
  """Only 'area' alone hides that."""
  data = encode(picture(480, 400), 'JPEG', quality=95)
  image = transforms.decode(data, 'x')
  load = transforms.Loader(
    image_size=(40, 40), cut_rows={'panorama': 100}, resize=resize
  )
  expected = resizing.resize(image[100:380], (40, 40), resize)
  np.testing.assert_array_equal(load(data, None, 'panorama', 'x'), expected)
  load = transforms.Loader(
    image_size=(40, 40), jpeg_p=1.0, jpeg_quality=(30, 30), resize=resize
  )
  expected = resizing.resize(transforms.jpeg(image, 30), (40, 40), resize)
  ours = load(data, np.random.default_rng(0), 'panorama', 'x')
  np.testing.assert_array_equal(ours, expected)
  load = transforms.Loader(image_size=(40, 40), resize=resize)
  if resize != 'area':
    expected = resizing.resize(image, (40, 40), resize)
    np.testing.assert_array_equal(load(data, None, 'panorama', 'x'), expected)


def test_loader_refuses_to_cut_everything():
  load = transforms.Loader(
    image_size=(8, 8), middle_half=('panorama',), cut_rows={'panorama': 15}
  )
  with pytest.raises(ValueError, match=r'y\.jpg: nothing is left of 30 rows'):
    load(FILES['png'], None, 'panorama', 'y.jpg')


def test_loader_refuses_a_picture_that_is_no_whole_panorama():
  load = transforms.Loader(image_size=(8, 8), view_aspects={'panorama': 2.0})
  with pytest.raises(
    ValueError, match=r'y\.jpg: .* 1\.36 \(83x61 .* about 2 \(config.*panorama'
  ):
    load(FILES['png'], None, 'panorama', 'y.jpg')
  assert load(FILES['png'], None, 'satellite', 'x').shape == (8, 8, 3)
  near = transforms.Loader(image_size=(8, 8), view_aspects={'panorama': 1.3})
  assert near(FILES['png'], None, 'panorama', 'x').shape == (8, 8, 3)


def test_loader_compresses_as_often_as_asked():
  load = transforms.Loader(image_size=(61, 83), jpeg_p=0.5)
  ours = [
    load(FILES['png'], np.random.default_rng(seed), 'satellite', 'x')
    for seed in range(40)
  ]
  differences = np.array(
    [np.abs(x.astype(int) - picture()).mean() for x in ours]
  )
  assert 10 < (differences == 0).sum() < 30
  assert (differences < 6).all()
  assert len({x.tobytes() for x in ours}) > 8  # of different quality


def test_jpeg_is_that_of_albumentations():
  """Which gives the codec red for blue."""
  quality = 90
  encoded = cv2.imencode('.jpg', picture(), (cv2.IMWRITE_JPEG_QUALITY, quality))
  expected = cv2.imdecode(encoded[1], cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(transforms.jpeg(picture(), quality), expected)


def test_loader_wants_a_generator_for_jpeg():
  load = transforms.Loader(image_size=(30, 30), jpeg_p=0.5)
  with pytest.raises(ValueError, match='x: JPEG compression needs a random'):
    load(FILES['png'], None, 'satellite', 'x')


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
    ({'image_size': (5, 5.5)}, 'image_size'),
    ({'image_size': (5, 5), 'view_sizes': {'a': (5,)}}, r'view_sizes\.a'),
    ({'image_size': (5, 5), 'view_sizes': {'a': 'b'}}, r'view_sizes\.a'),
    ({'image_size': (5, 5), 'view_aspects': {'a': -1}}, r'view_aspects\.a'),
    ({'image_size': (5, 5), 'cut_rows': {'a': '5'}}, r'cut_rows\.a'),
    ({'image_size': (5, 5), 'cut_rows': {'a': 0.5}}, r'cut_rows\.a'),
    ({'image_size': (5, 5), 'jpeg_p': 2.0}, 'jpeg_p'),
    ({'image_size': (5, 5), 'jpeg_quality': (95, 90)}, 'jpeg_quality'),
  ],
)
def test_loader_refuses_unknown_options(options, message):
  with pytest.raises(ValueError, match=message):
    transforms.Loader(**options)
