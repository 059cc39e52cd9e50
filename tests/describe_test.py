"""What the report is told of a method."""

import numpy as np
import pytest

from configs import frgeo_cvusa, quickstart
from cvgl_jax import evaluate, experiment


def describe(recipe, **method):
  config = recipe.get_config().to_dict()
  config['method'] |= method
  return evaluate.describe(experiment.check(config))


def test_frgeo_has_the_cost_and_the_size_that_were_published():
  """5.82 GMAC a picture, 55.64 M parameters; XLA counts activations too."""
  found = describe(frgeo_cvusa)
  assert found['parameters'] == 2 * 27_820_128
  for view in ('panorama', 'satellite'):
    assert found['macs'][view] == pytest.approx(5.82e9, rel=2e-3)
    assert 1 < found['flops'][view] / found['macs'][view] / 2 < 1.1


def test_parts_of_the_layout_follow_the_compass():
  layouts = describe(frgeo_cvusa)['layouts']
  columns = np.repeat([1, 2, 3, 4], 4)
  np.testing.assert_array_equal(layouts['panorama'], [columns] * 4)
  assert layouts['satellite'].shape == (8, 8)
  assert layouts['satellite'][[7, 0, 0, 7], [0, 0, 7, 7]].tolist() == [
    1,
    2,
    3,
    4,
  ]


def test_methods_without_parts_have_no_layout():
  assert describe(frgeo_cvusa, pool='avg')['layouts'] == {}
  found = describe(quickstart)
  assert found['layouts'] == {}
  assert set(found['macs']) == {'drone', 'satellite'}
