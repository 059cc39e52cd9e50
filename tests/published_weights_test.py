"""A published checkpoint's way in, by the README's command line."""

import jax
import numpy as np
import safetensors.numpy

from cvgl_jax.methods import contract, university1652
from tests import e2e_test, tiny_world, torch_names

TOY = {'backbone': 'resnet18', 'backbone_width': 4, 'dim': 16}


def three_view_checkpoint(path, num_classes=5):
  """Random weights of the released network: trunks of three views."""
  method = university1652.Method(
    num_classes=num_classes, share_satellite_drone=True, **TOY
  )
  shapes = jax.eval_shape(
    lambda: method.init(jax.random.key(0), dict.fromkeys(method.views))
  )
  rng = np.random.default_rng(0)

  def value(path, x):
    if path[-1].key in ('var', 'scale'):
      return np.ones(x.shape, np.float32)
    return 0.1 * rng.standard_normal(x.shape).astype(np.float32)

  variables = jax.tree_util.tree_map_with_path(value, shapes)
  state = torch_names.state_dict(variables)
  # torch lists the shared trunk of the drone once more.
  state |= {
    name.replace('model_1.', 'model_3.', 1): value
    for name, value in state.items()
    if name.startswith('model_1.')
  }
  safetensors.numpy.save_file(state, path)
  return variables


def test_the_readme_command_evaluates_a_published_checkpoint(tmp_path):
  path = tmp_path / 'net_119.safetensors'
  three_view_checkpoint(path)
  workdir = tmp_path / 'published'
  done = e2e_test.main(
    *('evaluate', workdir, '--config=configs/university1652_no_street.py'),
    *('--checkpoint=init', f'--config.init.weights={path}'),
    f'--config.data.dir={tiny_world.data_dir()}',
    f"--config.data.names=('{tiny_world.NAME}',)",
    '--config.data.image_size=(32, 32)',
    *(f'--config.method.{key}={value}' for key, value in TOY.items()),
  )
  assert 'drone_to_satellite/R@1' in done.stdout
  e2e_test.main('report', workdir)


def test_a_three_view_checkpoint_fills_a_method_without_street(tmp_path):
  path = tmp_path / 'net.safetensors'
  expected = three_view_checkpoint(path)
  method = university1652.Method(
    num_classes=5,
    views=('satellite', 'drone'),
    share_satellite_drone=True,
    **TOY,
  )
  shapes = jax.eval_shape(
    lambda: method.init(jax.random.key(0), dict.fromkeys(method.views))
  )
  found = contract.load_pretrained(method, shapes, str(path))
  trunk = lambda tree: tree['params']['model_1']
  for a, b in zip(
    jax.tree.leaves(trunk(found)), jax.tree.leaves(trunk(expected)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
