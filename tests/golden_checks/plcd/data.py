"""PLCD: index files, the sampler's groups, transforms, test-time flip."""

import hashlib
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.data import augment, peer_batches, resizing
from cvgl_jax.models import layers, test_time
from data_builders import plcd_index
from data_builders.university1652 import release
from tests import golden_case
from tests.golden_case import Case

VIEWS_PER_PLACE = 54
EPOCHS = 60  # enough to draw every one of nine pictures of a group


def _tree(folders, streets, exceptions) -> dict[str, list[str]]:
  """Paths of the training pictures; `streets`: of each place."""
  paths = {'drone': [], 'satellite': [], 'street': []}
  for place, count in zip(folders, streets, strict=True):
    folder = f'{place:04d}'
    paths['drone'] += [
      f'train/drone/{folder}/image-{i + 1:02d}.jpeg'
      for i in range(VIEWS_PER_PLACE)
    ]
    paths['satellite'].append(f'train/satellite/{folder}/{folder}.jpg')
    names = exceptions.get(folder, [f'{i + 1}.jpg' for i in range(count)])
    assert len(names) == count, folder
    paths['street'] += [f'train/street/{folder}/{name}' for name in names]
  # The order of the index of a data set must not matter.
  rng = np.random.default_rng(0)
  return {view: rng.permutation(rows).tolist() for view, rows in paths.items()}


def _facts(path: pathlib.Path) -> dict:
  """The JSON file with the facts beside the arrays."""
  file = path.with_suffix('.json')
  delivered = golden_case.DEFAULT / path.parent.name / file.name
  return json.loads((file if file.exists() else delivered).read_text())


def check_index(case: Case) -> None:
  places = case['out/train_class_folder']
  streets = case['out/street_images_per_class']
  exceptions = _facts(case.path)['street_exceptions']
  files = plcd_index.index_files(_tree(places, streets, exceptions))
  for view in ('satellite', 'street'):
    lines = files[f'{view}_path.txt'].splitlines()
    found, counts = np.unique(
      [int(line.split('/')[2]) for line in lines], return_counts=True
    )
    case.equal('out/train_class_folder', found)
    if view == 'street':
      case.equal('out/street_images_per_class', counts)
  assert set(places.tolist()) == release.TRAIN


def check_index_bytes(path: pathlib.Path) -> None:
  facts = json.loads(path.read_text())
  arrays = path.with_suffix('.npz')
  if not arrays.exists():
    arrays = golden_case.DEFAULT / path.parent.name / arrays.name
  with np.load(arrays) as file:
    tree = _tree(
      file['out/train_class_folder'],
      file['out/street_images_per_class'],
      facts['street_exceptions'],
    )
  files = plcd_index.index_files(tree)
  assert set(files) == set(facts['files'])
  for name, expected in facts['files'].items():
    data = files[name].encode()
    assert data.count(b'\n') == expected['lines'], name
    assert len(data) == expected['bytes'], name
    assert hashlib.sha256(data).hexdigest() == expected['sha256'], name


def check_sampler(case: Case) -> None:
  streets = case['out/street_target']
  candidates = case['out/candidate_image_numbers']
  groups, size = candidates.shape
  classes = np.arange(streets.max() + 1)
  splits = {
    'street': types.SimpleNamespace(place=streets),
    'drone': types.SimpleNamespace(
      name='train_drone',
      place=np.repeat(classes, VIEWS_PER_PLACE),
      frame=np.tile(np.arange(VIEWS_PER_PLACE) + 1, len(classes)),
    ),
  }
  plan = peer_batches.PeerBatches(groups=groups)
  drawn = np.concatenate(
    [
      plan.rows(splits, batch_size=len(streets), seed=0, epoch=epoch)
      for epoch in range(EPOCHS)
    ]
  )  # [EPOCHS, batch, 1 + groups]
  for epoch in drawn:
    anchors, peers = epoch[:, 0], epoch[:, 1:]
    case.equal('out/street_target', streets[np.sort(anchors)])
    place = splits['drone'].place[peers]
    np.testing.assert_array_equal(place, place[:, :1].repeat(groups, axis=1))
    np.testing.assert_array_equal(place[:, 0], streets[anchors])
  numbers = splits['drone'].frame[drawn[..., 1:]].reshape(-1, groups)
  seen = [np.unique(numbers[:, group]) for group in range(groups)]
  assert [len(one) for one in seen] == [size] * groups
  case.equal('out/candidate_image_numbers', seen)
  published = case['out/image_number']
  for group in range(groups):
    assert np.isin(published[:, group], seen[group]).all()
  assert np.isin(case['in/target'], classes).all()
  case.ignore('in/python_random_seed', 'our random numbers are others')


def check_transforms(case: Case) -> None:
  image = case['in/image_hwc_uint8'].astype(np.uint8)
  size_hw = (case.scalar('in/h'), case.scalar('in/w'))
  pad = case.scalar('in/pad')
  resized = resizing.resize_pillow(image, size_hw, 'bicubic')
  case.equal('out/resized_hwc_uint8', resized)
  chw = lambda images: layers.normalize_image(images).transpose(0, 3, 1, 2)
  case.close('out/test_chw', chw(jnp.asarray(resized)[None])[0], rtol=1e-6)
  coefficients = augment.affine_coefficients(
    jnp.float32(0),
    jnp.float32(1),
    size_hw=(size_hw[0] + 2 * pad, size_hw[1] + 2 * pad),
  )
  images = [
    augment.warp(
      jnp.asarray(resized),
      coefficients,
      pad=pad,
      top=top,
      left=left,
      flip=bool(flip),
      size_hw=size_hw,
    )
    for (top, left), flip in zip(
      case['in/crop_top_left'].tolist(), case['in/flip'].tolist(), strict=True
    )
  ]
  case.close('out/train_chw', chw(jnp.stack(images)), rtol=1e-6)
  recipe = augment.UniversityTrain(pad=pad, rotate_satellite_deg=0.0)
  _check_recipe(recipe, resized)


def _check_recipe(recipe: augment.UniversityTrain, picture: np.ndarray) -> None:
  """What training draws are crops of the padded picture, mirrored or not."""
  pad, (height, width, _) = recipe.pad, picture.shape
  padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
  possible = {
    crop.tobytes()
    for top in range(2 * pad + 1)
    for left in range(2 * pad + 1)
    for crop in (
      padded[top : top + height, left : left + width],
      padded[top : top + height, left : left + width][:, ::-1],
    )
  }
  for view in ('street', 'drone', 'satellite'):
    drawn = recipe(
      jax.random.key(0), jnp.asarray(np.stack([picture] * 8)), view
    )
    crops = {one.tobytes() for one in np.asarray(drawn).astype(np.uint8)}
    assert crops <= possible and len(crops) > 1, view


def check_extraction(case: Case) -> None:
  """The stub network of the README: weights of its branches from a seed."""
  rng = np.random.default_rng(case.scalar('in/seed'))
  branches = [
    rng.standard_normal((512, 48)).astype(np.float32) for _ in range(2)
  ]
  # G2D: anchors (street) are the queries; D2S: anchors (satellite) the gallery.
  sides = (
    ('query', 'gallery') if case.scalar('in/is_g2d') else ('gallery', 'query')
  )
  for side, weight in zip(sides, branches, strict=True):

    def network(images, weight=weight):
      corner = images[:, :4, :4].transpose(0, 3, 1, 2)  # torch's layout
      out = corner.reshape(len(images), -1) @ weight.T
      return out / jnp.linalg.norm(out, axis=1, keepdims=True)

    total = test_time.feature_sum(
      network,
      jnp.asarray(case[f'in/{side}_images'].transpose(0, 2, 3, 1)),
      flip=True,
      scales=golden_case.decimals(case['in/ms']),
      cumulative=True,
    )
    feature = total / jnp.linalg.norm(total, axis=1, keepdims=True)
    case.close(f'out/{side}_feature', feature, rtol=1e-6)


CHECKS = {
  'index_facts': check_index,
  'sampler_views': check_sampler,
  'transforms': check_transforms,
  'extract_flip_': check_extraction,
}
JSON_CHECKS = {'index_facts': check_index_bytes}
