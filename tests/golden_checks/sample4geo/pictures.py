"""Sample4Geo: the test transform, and what a pair of pictures shares."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.data import augment_sample4geo, transforms
from cvgl_jax.models import layers
from tests.golden_case import Case

VIEWS = {'satellite': ('satellite', 'sat'), 'panorama': ('ground', 'ground')}
FLIP = augment_sample4geo.Sample4GeoTrain(
  flip_p=1.0, rotate_p=0.0, jitter_p=0.0, filter_p=0.0, dropout_p=0.0
)


def check_preprocess(case: Case) -> None:
  """The turns and the flip act on the resized picture here, as in training."""
  load = transforms.Loader(
    image_size=(1, 1),
    view_sizes={
      view: tuple(case[f'in/size_{short}'].tolist())
      for view, (_, short) in VIEWS.items()
    },
    resize='opencv_linear',
  )
  turn = jax.jit(augment_sample4geo.turn, static_argnums=2)
  for view, (name, _) in VIEWS.items():
    stored = case[f'in/{name}'].astype(np.uint8)
    image, mirrored = (
      load(cv2.imencode('.png', x[:, :, ::-1])[1].tobytes(), None, view, name)
      for x in (stored, stored[:, ::-1])
    )

    def close(key, picture, name=name):
      tensor = layers.normalize_image(jnp.asarray(picture))
      case.close(f'out/{name}_{key}', tensor.transpose(2, 0, 1), rtol=1e-6)

    close('eval', image)
    flipped = jax.jit(FLIP, static_argnums=2)(
      jax.random.key(0), image[None], view
    )
    np.testing.assert_array_equal(flipped[0], mirrored)
    close('flip', flipped[0])
    turned = turn(np.repeat(image[None], 3, axis=0), np.arange(1, 4), view)
    for r in (1, 2, 3):
      close(f'rot{r}', turned[r - 1])


CHECKS = {'preprocess_and_rotate': check_preprocess}
