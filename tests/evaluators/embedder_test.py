import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import sharding
from cvgl_jax.data import prepare, transforms
from cvgl_jax.evaluators import embedder
from tests.evaluators import pictures

LOAD = transforms.Loader(image_size=(8, 8))


def make(variables=None, *, devices=None, batch_size=8, method=None):
  method = method or pictures.ColourMethod()
  return embedder.Embedder(
    method,
    variables or method.variables('drone', 'satellite'),
    load=LOAD,
    batch_size=batch_size,
    mesh=sharding.make_mesh(devices),
    threads=2,
  )


def split(name='test_query_drone', count=13, **changes):
  place = np.arange(count)
  return pictures.ColourSplit(
    name=name, place=place, colour=pictures.colours(place), **changes
  )


def test_features_are_unit_norm_and_in_the_order_of_the_split():
  pictured = split()
  features = make()(pictured, flip=False)
  assert features.shape == (13, 6)
  assert features.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
  expected = np.floor(pictured.colour)
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  # The right half is black but for the edge of the resize.
  np.testing.assert_allclose(features[:, :3], expected, atol=0.05)


def test_eight_devices_give_the_features_of_one():
  assert jax.device_count() == 8
  many = make()(split())
  one = make(devices=jax.devices()[:1])(split())
  np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('batch_size', [1, 8, 100])
def test_the_batch_size_does_not_matter(batch_size):
  np.testing.assert_allclose(
    make(batch_size=batch_size)(split()), make()(split()), rtol=1e-6, atol=1e-7
  )


def test_flipped_views_are_summed_before_the_norm():
  features = make()(split(), flip=True)
  np.testing.assert_allclose(features[:, :3], features[:, 3:], rtol=1e-5)


def test_a_second_call_reads_no_picture_again():
  embed, pictured = make(), split()
  first = embed(pictured)
  reads = pictured.reads
  again = embed(split())  # the same pictures, another object
  assert again is first
  embed(pictured)
  assert pictured.reads - reads <= 3  # the fingerprint's
  assert embed(pictured, flip=False) is not first


def test_other_pictures_of_the_same_name_are_embedded_anew():
  embed = make()
  first = embed(split())
  other = split()
  other.colour = pictures.colours(other.place + 1)
  assert not np.allclose(embed(other), first)


def test_new_variables_give_new_features_without_compiling_again():
  method = pictures.ColourMethod()
  embed = make(method=method)
  first = embed(split())
  compiled = embed._embed._cache_size()
  variables = method.variables('drone', 'satellite')
  variables['params']['drone'] = np.roll(np.eye(6, dtype=np.float32), 1, axis=1)
  renewed = embed.with_variables(variables)
  np.testing.assert_allclose(
    renewed(split()), np.roll(first, 1, axis=1), rtol=1e-6
  )
  assert renewed._embed._cache_size() == compiled
  assert embed(split()) is first


def test_the_view_can_be_another_branch_than_the_split_says():
  variables = pictures.ColourMethod().variables('drone', 'satellite')
  variables['params']['satellite'] = np.roll(
    np.eye(6, dtype=np.float32), 1, axis=1
  )
  embed = make(variables)
  np.testing.assert_allclose(
    embed(split(), view='satellite'),
    np.roll(embed(split()), 1, axis=1),
    rtol=1e-6,
  )


def test_features_that_are_not_numbers_name_split_and_picture():
  variables = pictures.ColourMethod().variables('drone', 'satellite')
  variables['params']['drone'][0, 0] = np.nan
  with pytest.raises(ValueError, match=r'test_query_drone.*13 of 13') as error:
    make(variables)(split())
  assert 'set/test_query_drone/0/0.png' in str(error.value)


def test_all_zero_features_are_an_error():
  black = split()
  black.colour = black.colour.copy()
  black.colour[3] = 0
  with pytest.raises(ValueError, match=r'1 of 13 .*zero.*drone/3/3.png'):
    make()(black)


def test_an_empty_split_is_an_error():
  with pytest.raises(ValueError, match='test_query_drone has no pictures'):
    make()(split(count=0))


def test_batch_size_zero_is_an_error():
  with pytest.raises(ValueError, match='batch_size 0'):
    make(batch_size=0)


class RegionMethod(pictures.ColourMethod):
  """Regions by their number of 1s after the whole picture's colours."""

  def embed_regions(self, variables, images, view, *, regions):
    whole = self.embed_raw(variables, images, view)
    parts = [whole * (jnp.arange(6) <= i)[None] for i in range(regions)]
    described = jnp.stack([whole, *parts], axis=1)
    return described / jnp.linalg.norm(described, axis=2, keepdims=True)


def test_regions_follow_their_picture():
  embed, pictured = make(method=RegionMethod()), split()
  features = embed(pictured, flip=False, regions=3)
  assert features.shape == (13 * 4, 6) and features.dtype == np.float32
  whole = embed(pictured, flip=False)
  assert whole.shape == (13, 6)
  by_picture = features.reshape(13, 4, 6)
  np.testing.assert_allclose(by_picture[:, 0], whole, rtol=1e-5, atol=1e-7)
  for i in range(3):
    part = whole * (np.arange(6) <= i)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
    np.testing.assert_allclose(by_picture[:, 1 + i], part, rtol=1e-5, atol=1e-6)
  few = embed(pictured, flip=False, regions=1).reshape(13, 2, 6)
  np.testing.assert_array_equal(few, by_picture[:, :2])


def test_every_region_is_averaged_over_the_test_time_views():
  embed, pictured = make(method=RegionMethod()), split()
  once = embed(pictured, flip=False, regions=2)
  mirrored = split()
  mirrored.mirror = True
  again = embed(mirrored, flip=False, regions=2)
  total = once + again
  total /= np.linalg.norm(total, axis=1, keepdims=True)
  np.testing.assert_allclose(
    embed(pictured, flip=True, regions=2), total, rtol=1e-5, atol=1e-6
  )
  assert not np.allclose(once, total, atol=0.01)


def test_regions_of_a_method_without_them_are_refused():
  with pytest.raises(ValueError, match='2 regions of test_query_drone'):
    make()(split(), regions=2)


def test_a_region_that_is_not_a_number_names_its_picture():
  black = split()
  black.colour = black.colour.copy()
  black.colour[3, 0] = 0  # the first region of it is 0
  with pytest.raises(ValueError, match=r'1 of 13 .*drone/3/3.png'):
    make(method=RegionMethod())(black, flip=False, regions=1)


class SizeMethod(pictures.ColourMethod):
  """The size of the pictures that come to the network, and their mean."""

  def embed_raw(self, variables, images, view):
    mean = images.astype(jnp.float32).mean((1, 2)) / 255
    size = jnp.array([[images.shape[1], images.shape[2]]], jnp.float32)
    return jnp.concatenate(
      [mean, jnp.broadcast_to(size, (len(images), 2))], axis=1
    )


def prepared(method, *, batch_size=8, **options):
  return embedder.Embedder(
    method,
    {},
    load=transforms.Loader(image_size=(8, 8), view_sizes={'panorama': (4, 36)}),
    batch_size=batch_size,
    mesh=sharding.make_mesh(),
    threads=2,
    prepare=prepare.Prepare(**options),
  )


@pytest.mark.parametrize(
  ('name', 'options', 'size'),
  [
    ('test_query_panorama', {}, (4, 36)),
    ('test_gallery_satellite', {}, (8, 8)),
    ('test_query_panorama', {'fov_deg': 90.0}, (4, 9)),
    ('test_gallery_satellite', {'polar_size': (5, 20)}, (5, 20)),
  ],
)
def test_pictures_come_to_the_network_in_the_size_of_their_view(
  name, options, size
):
  features = prepared(SizeMethod(), **options)(split(name), flip=False)
  ratio = features[:, 3] / features[:, 4]
  np.testing.assert_allclose(ratio, size[0] / size[1], rtol=1e-5)


def test_the_view_of_a_query_is_limited_the_same_in_every_batch():
  queries = split('test_query_panorama', 21)
  whole = prepared(SizeMethod())(queries, flip=False)
  limited = {'fov_deg': 90.0}
  first = prepared(SizeMethod(), **limited)(queries, flip=False)
  other_batches = prepared(SizeMethod(), batch_size=16, **limited)
  np.testing.assert_array_equal(other_batches(queries, flip=False), first)
  other_seed = prepared(SizeMethod(), **limited, fov_seed=1)
  assert not np.allclose(other_seed(queries, flip=False), first)
  # Pictures are half black: a quarter of them shows another mean.
  assert not np.allclose(first[:, :3], whole[:, :3], atol=0.01)
  same = split('test_query_panorama', 21)
  same.colour = np.full((21, 3), 200.0)
  seen = prepared(SizeMethod(), **limited)(same, flip=False)
  assert len(np.unique(seen[:, 0].round(4))) > 3


def test_pictures_are_prepared_as_what_they_show_whatever_the_branch():
  made = prepared(SizeMethod(), polar_size=(5, 20))
  features = made(split('test_query_drone'), view='satellite', flip=False)
  np.testing.assert_allclose(features[:, 3], features[:, 4], rtol=1e-6)
