"""Transforms: resize, pad/rotate/crop/flip, colour jitter, AutoAugment ops,
random erasing. All bit-exact, with the functions that training runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.data import augment, autoaugment, resizing
from cvgl_jax.models import layers
from tests import golden_case


def check_resize_normalize(case):
  image = case['in/image_hwc_uint8'].astype(np.uint8)
  for height, width in case['in/sizes']:
    ours = resizing.resize_pillow(image, (int(height), int(width)), 'bicubic')
    case.equal(f'out/resize_bicubic_{height}x{width}', ours)
  key = 'out/val_transform_tensor'  # [3, h, w]
  resized = resizing.resize_pillow(image, case[key].shape[1:], 'bicubic')
  ours = layers.normalize_image(jnp.asarray(resized)[None])[0]
  case.close(key, ours.transpose(2, 0, 1), rtol=1e-6)


def check_pad_affine_crop(case):
  image = jnp.asarray(case['in/image_hwc_uint8'].astype(np.uint8))
  pad = case.scalar('in/pad')
  padded_hw = (image.shape[0] + 2 * pad, image.shape[1] + 2 * pad)
  top, left, height, width = (int(n) for n in case['in/crop_top_left_h_w'])

  @functools.partial(jax.jit, static_argnames='size_hw')
  def warp(angle_deg, *, top=0, left=0, flip=False, size_hw=padded_hw):
    coefficients = augment.affine_coefficients(
      angle_deg, jnp.ones_like(angle_deg), size_hw=padded_hw
    )
    return augment.warp(
      image,
      coefficients,
      pad=pad,
      top=top,
      left=left,
      flip=flip,
      size_hw=size_hw,
    )

  with jax.enable_x64(True):
    # Pillow forms its fixed-point coefficients from float64.
    angles = jnp.asarray(golden_case.decimals(case['in/angles']), jnp.float64)
    straight = jnp.asarray(0.0, jnp.float64)
    case.equal('out/padded', warp(straight))
    for number, angle_deg in enumerate(angles):
      case.equal(f'out/affine_{number}', warp(angle_deg))
    crop = {'top': top, 'left': left, 'size_hw': (height, width)}
    candidates = [straight, *angles]
    crops = [np.asarray(warp(angle, **crop)) for angle in candidates]
    matching = [
      angle
      for angle, ours in zip(candidates, crops, strict=True)
      if np.array_equal(ours, case['out/crop'])
    ]
    assert matching, 'no angle of the file gives its crop'
    case.equal('out/crop_flip', warp(matching[0], flip=True, **crop))


def check_color_jitter(case):
  image = jnp.asarray(case['in/image_hwc_uint8'].astype(np.uint8))
  jitter = jax.jit(augment.color_jitter)
  for which, name in enumerate(['brightness', 'contrast', 'saturation']):
    for number, factor in enumerate(case['in/factors']):
      factors = jnp.full(3, factor, jnp.float32)
      ours = jitter(image, factors, jnp.asarray([which]))
      case.equal(f'out/{name}_{number}', ours)


def check_autoaugment_ops(case):
  image = case['in/image_hwc_uint8'].astype(np.uint8)
  for key in case.prefix('out/'):
    name, index, sign = key.split('_')
    ours = autoaugment.operation(
      image, name, index=int(index), sign={'pos': 1, 'neg': -1}[sign]
    )
    case.equal(f'out/{key}', ours)


def check_random_erasing(case):
  size_hw = tuple(int(n) for n in case['in/hw'])
  for number, draws in case.prefix('in/draws_').items():
    with jax.enable_x64(True):
      # Order: u, (area, ratio) of each attempt, top and left of the last one.
      draws = jnp.asarray(draws, jnp.float64)
      if len(draws) == 1:
        attempts, corner = jnp.ones((1, 2)), jnp.zeros(2, jnp.int32)
      elif len(draws) == 1 + 2 * augment.ERASING_ATTEMPTS:
        attempts, corner = draws[1:].reshape(-1, 2), jnp.zeros(2, jnp.int32)
      else:
        attempts = draws[1:-2].reshape(-1, 2)
        corner = draws[-2:].astype(jnp.int32)
      ours = augment.erasing_mask(
        draws[0],
        attempts[:, 0],
        attempts[:, 1],
        corner=lambda room, corner=corner: corner,
        probability=case.scalar('in/probability'),
        size_hw=size_hw,
      )
    case.equal(f'out/mask_{number}', ours)


CHECKS = {
  'transform_resize_normalize': check_resize_normalize,
  'transform_pad_affine_crop': check_pad_affine_crop,
  'transform_color_jitter': check_color_jitter,
  'autoaugment_ops': check_autoaugment_ops,
  'random_erasing_replay': check_random_erasing,
}
