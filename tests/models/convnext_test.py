"""ConvNeXt: names, stochastic depth, precision. Parity: golden files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import convnext, layers, torch_weights
from tests import formula_weights

# Two blocks in one stage tell blocks from stages.
DEPTHS, DIMS = (1, 2, 1, 1), (8, 12, 16, 20)
TOY = convnext.ConvNeXt(DEPTHS, DIMS)
POOLED = TOY.clone(pool='avg')
NAMINGS = ('facebook', 'timm', 'torchvision')


def names() -> list[tuple[str, str, str]]:
  """Every entry of `POOLED` with its classifier in the three namings."""
  modules = [
    ('norm', 'head.norm', 'classifier.0'),
    ('head', 'head.fc', 'classifier.2'),
  ]
  gammas = []
  for stage, depth in enumerate(DEPTHS):
    step = f'stages.{stage}.downsample' if stage else 'stem'
    modules += [
      (
        f'downsample_layers.{stage}.{i}',
        f'{step}.{i}',
        f'features.{2 * stage}.{i}',
      )
      for i in range(2)
    ]
    for i in range(depth):
      block = (
        f'stages.{stage}.{i}',
        f'stages.{stage}.blocks.{i}',
        f'features.{2 * stage + 1}.{i}',
      )
      modules += [
        tuple(f'{b}.{m}' for b, m in zip(block, module, strict=True))
        for module in (
          ('dwconv', 'conv_dw', 'block.0'),
          ('norm', 'norm', 'block.2'),
          ('pwconv1', 'mlp.fc1', 'block.3'),
          ('pwconv2', 'mlp.fc2', 'block.5'),
        )
      ]
      last = ('gamma', 'gamma', 'layer_scale')
      gammas.append(tuple(f'{b}.{m}' for b, m in zip(block, last, strict=True)))
  return gammas + [
    tuple(f'{name}.{kind}' for name in module)
    for module in modules
    for kind in ('weight', 'bias')
  ]


def shape_of(name: str) -> tuple[int, ...]:
  """Torch's shape of an entry, from its name in Facebook's naming."""
  parts = name.split('.')
  if parts[0] == 'head':
    return (10, DIMS[-1]) if parts[1] == 'weight' else (10,)
  if parts[0] == 'norm':
    return (DIMS[-1],)
  stage, channels = int(parts[1]), DIMS[int(parts[1])]
  is_weight = parts[-1] == 'weight'
  if parts[0] == 'downsample_layers':
    if (parts[2] == '0') == (stage == 0):  # The convolution.
      inputs, side = (DIMS[stage - 1], 2) if stage else (3, 4)
      return (channels, inputs, side, side) if is_weight else (channels,)
    return (DIMS[stage - 1],) if stage else (channels,)
  shapes = {
    'dwconv': (channels, 1, 7, 7),
    'pwconv1': (4 * channels, channels),
    'pwconv2': (channels, 4 * channels),
  }
  if parts[-1] == 'bias':
    return (4 * channels if parts[3] == 'pwconv1' else channels,)
  return shapes.get(parts[3], (channels,))


def state_dict(naming: str) -> dict[str, np.ndarray]:
  """One and the same network in a naming."""
  index = NAMINGS.index(naming)
  source = {}
  for row in names():
    value = formula_weights.entry(row[0], shape_of(row[0]))
    is_scale = row[index].endswith('layer_scale')
    source[row[index]] = value.reshape(-1, 1, 1) if is_scale else value
  return source


def converted(naming: str, module=POOLED):
  x = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), x, train=False)
  )
  return torch_weights.convert(
    shapes,
    convnext.to_facebook(state_dict(naming)),
    where=naming,
    allowed_extra=convnext.IMAGENET_HEADS,
  )


def pictures(batch=2, size=(64, 64)):
  return jax.random.normal(jax.random.key(1), (batch, *size, 3))


@pytest.mark.parametrize('naming', NAMINGS)
def test_weights_of_every_naming_fill_the_same_network(naming):
  expected, found = converted('facebook'), converted(naming)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('naming', NAMINGS)
def test_an_entry_too_many_is_reported(naming):
  source = convnext.to_facebook(
    state_dict(naming) | {'stages.0.9.norm.weight': np.ones(8)}
  )
  with pytest.raises(ValueError, match=r'unexpected \(1\): stages\.0\.9'):
    torch_weights.convert(
      converted('facebook'),
      source,
      where='x',
      allowed_extra=convnext.IMAGENET_HEADS,
    )


def test_renaming_leaves_other_networks_alone():
  source = {'features.0.weight': 1, 'layer1.0.conv1.weight': 2, 'fc.bias': 3}
  assert convnext.to_facebook(source) == source


def test_stochastic_depth_rises_linearly_and_drops_whole_branches():
  module = convnext.ConvNeXt((1, 1, 2, 1), DIMS, drop_path=0.4)
  x = pictures(64, (32, 32))
  variables = jax.jit(lambda: module.init(jax.random.key(0), x, train=False))()
  _, state = jax.jit(
    lambda v, x: module.apply(
      v,
      x,
      train=True,
      rngs={'dropout': jax.random.key(3)},
      capture_intermediates=True,
      mutable=['intermediates'],
    )
  )(variables, x)
  found = state['intermediates']
  blocks = [f'stages_{i}' for i in ('0_0', '1_0', '2_0', '2_1', '3_0')]
  for block, rate in zip(blocks, (0, 0.1, 0.2, 0.3, 0.4), strict=True):
    branch = np.asarray(found[block]['pwconv2']['__call__'][0])
    kept = np.asarray(found[block]['Dropout_0']['__call__'][0])
    dropped = (kept == 0).all((1, 2, 3))
    # 64 draws: three deviations.
    assert abs(dropped.mean() - rate) <= 3 * np.sqrt(rate * (1 - rate) / 64)
    gamma = np.asarray(variables['params'][block]['gamma'])
    np.testing.assert_allclose(
      kept[~dropped], (branch * gamma / (1 - rate))[~dropped], rtol=1e-5
    )


def test_evaluation_ignores_stochastic_depth():
  variables = converted('facebook')
  plain = jax.jit(lambda v, x: POOLED.apply(v, x, train=False))
  module = POOLED.clone(drop_path=0.9)
  dropped = jax.jit(lambda v, x: module.apply(v, x, train=False))
  x = pictures()
  np.testing.assert_array_equal(plain(variables, x), dropped(variables, x))


def test_recomputation_changes_nothing():
  x, variables = pictures(), converted('facebook')

  def run(module):
    def value(params):
      rngs = {'dropout': jax.random.key(5)}
      return (module.apply(params, x, train=True, rngs=rngs) ** 2).sum()

    return jax.jit(jax.value_and_grad(value))(variables)

  module = POOLED.clone(drop_path=0.5)
  value_1, grads_1 = run(module)
  value_2, grads_2 = run(module.clone(remat=True))
  np.testing.assert_allclose(value_1, value_2, rtol=1e-5)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads_1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-5 * largest
    ),
    grads_1,
    grads_2,
  )


def test_bfloat16_keeps_parameters_and_features_in_float32():
  module, x = POOLED.clone(dtype=jnp.bfloat16), pictures()
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), x, train=False)
  )
  assert {v.dtype for v in jax.tree.leaves(shapes)} == {jnp.dtype('f4')}
  variables = converted('facebook')
  y, state = jax.jit(
    lambda v, x: module.apply(
      v, x, train=False, capture_intermediates=True, mutable=['intermediates']
    )
  )(variables, x)
  block = state['intermediates']['stages_1_1']
  assert block['pwconv2']['__call__'][0].dtype == jnp.bfloat16
  # A sum in bfloat16 would lose a branch that is small beside the input.
  assert y.dtype == block['__call__'][0].dtype == jnp.float32
  exact = jax.jit(lambda v, x: POOLED.apply(v, x, train=False))(variables, x)
  np.testing.assert_allclose(y, exact, atol=0.05 * float(jnp.abs(exact).max()))
  assert not np.array_equal(y, exact)


def test_a_last_odd_row_and_column_do_not_matter():
  variables = converted('facebook', TOY.clone(pool='avg'))['params']
  variables.pop('norm')
  run = jax.jit(lambda x: TOY.apply({'params': variables}, x, train=False))
  x = pictures(1, (64, 96))
  beyond = jnp.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=7)
  assert run(x).shape == (1, 2, 3, DIMS[-1])
  np.testing.assert_allclose(run(beyond), run(x), rtol=1e-5, atol=1e-5)


def test_small_pictures_and_unknown_names_are_explained():
  with pytest.raises(ValueError, match=r'31x64 pixels.*at least 32x32'):
    TOY.init(jax.random.key(0), jnp.zeros((1, 31, 64, 3)), train=False)
  with pytest.raises(ValueError, match=r"'convnext_large'.*convnext_base"):
    convnext.make('convnext_large')


def test_layer_norm_is_exact_beside_a_large_mean():
  rng = np.random.default_rng(0)
  x = (3000 + rng.standard_normal((5, 16))).astype(np.float32)
  norm = layers.layer_norm()
  y = norm.apply(norm.init(jax.random.key(0), x), x)
  wide = x.astype(np.float64)
  deviation = np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
  expected = (wide - wide.mean(-1, keepdims=True)) / deviation
  np.testing.assert_allclose(y, expected, atol=1e-3)


def test_stochastic_depth_is_a_rate_and_of_convnexts_alone():
  convnext.check_drop_path(0.0, backbone='resnet50')
  convnext.check_drop_path(0.2, backbone='convnext_tiny')
  with pytest.raises(ValueError, match=r'drop_path: got 1.0, expected 0 <= p'):
    convnext.check_drop_path(1.0, backbone='convnext_tiny')
  with pytest.raises(ValueError, match="'resnet50' has no stochastic depth"):
    convnext.check_drop_path(0.2, backbone='resnet50')
