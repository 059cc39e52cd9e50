"""FRGeo and TransGeo: what pictures go through before the network."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.data import panorama, prepare, transforms
from cvgl_jax.models import layers
from tests.golden_case import Case


def check_preprocess(case: Case) -> None:
  cropped = case.scalar('in/cvact_crop')
  load = transforms.Loader(
    image_size=tuple(case['in/size'].tolist()),
    resize='pillow_bilinear',
    middle_half=('panorama',) if cropped else (),
  )
  bgr = case['in/image'].astype(np.uint8)[:, :, ::-1]
  image = load(
    cv2.imencode('.png', bgr)[1].tobytes(), None, 'panorama', case.stem
  )
  tensor = layers.normalize_image(jnp.asarray(image)).transpose(2, 0, 1)
  case.close('out/tensor', tensor, rtol=1e-6)


def check_limited_fov(case: Case) -> None:
  picture = case['in/x'].transpose(1, 2, 0)
  angles = case['in/angle']
  images = np.repeat(picture[None], len(angles), axis=0)
  ready = prepare.Prepare(fov_deg=case.scalar('in/fov'))
  _, columns = ready.size('panorama', picture.shape[:2])
  cut = jax.jit(panorama.limit_view, static_argnums=2)
  case.equal('out/y', cut(images, angles, columns).transpose(0, 3, 1, 2))


CHECKS = {'preprocess_': check_preprocess, 'limited_fov_': check_limited_fov}
