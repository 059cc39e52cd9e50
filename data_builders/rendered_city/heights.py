"""Height maps of a scene, for shadows."""

from typing import NamedTuple

import cv2
import numpy as np

from data_builders.rendered_city import scene as sc
from data_builders.rendered_city import shapes


class Heights(NamedTuple):
  """Heights above the sc.terrain, of things that cast shadows.

  Row 0 is the south edge, column 0 the west edge.

  Attributes:
    top: [sc.HEIGHT_MAP_PX, sc.HEIGHT_MAP_PX] float32 metres.
    around: the same, low-passed: how much of the sky is hidden.
  """

  top: np.ndarray
  around: np.ndarray


def make(scene: sc.Scene) -> Heights:
  """Height maps of a scene, without its cars."""
  scale = sc.HEIGHT_MAP_PX / (2 * sc.HEIGHT_MAP_HALF_M)
  fixed = 16.0  # cv2 takes sub-pixel positions as integers with 4 bits
  image = np.zeros((sc.HEIGHT_MAP_PX, sc.HEIGHT_MAP_PX), np.float32)
  boxes = scene.boxes[scene.boxes[:, sc.Z0] > sc.NOWHERE_M / 2].astype(
    np.float64
  )
  trees = scene.trees[scene.trees[:, sc.TREE_Z] > sc.NOWHERE_M / 2]
  trees = trees.astype(np.float64)
  top = boxes[:, sc.HEIGHT] + 0.6 * boxes[:, sc.RISE]
  canopy = (
    trees[:, sc.TREE_Z] + 0.7 * trees[:, sc.TREE_RZ] - trees[:, sc.TREE_FOOT]
  )
  rects = shapes.Rects(
    boxes[:, [sc.CX, sc.CY]],
    np.arctan2(boxes[:, sc.SIN], boxes[:, sc.COS]),
    boxes[:, [sc.HALF_X, sc.HALF_Y]],
  )
  corners = rects.outline()[:, [0, 2, 8, 6]] if len(rects) else None

  def pixel(points):
    at = (points + sc.HEIGHT_MAP_HALF_M) * scale - 0.5
    return np.round(at * fixed).astype(np.int32)

  # Lowest first, so that the highest thing over a cell remains.
  for i in np.argsort(np.concatenate([top, canopy]), kind='stable'):
    if i < len(top):
      cv2.fillConvexPoly(
        image, pixel(corners[i]), float(top[i]), lineType=cv2.LINE_8, shift=4
      )
    else:
      tree = trees[i - len(top)]
      cv2.circle(
        image,
        pixel(tree[:2]),
        int(0.85 * tree[sc.TREE_R] * scale * fixed),
        float(canopy[i - len(top)]),
        thickness=-1,
        shift=4,
      )
  around = np.minimum(image, 12.0)
  for cells in (7, 13):
    around = cv2.blur(around, (cells, cells))
  return Heights(image, around)
