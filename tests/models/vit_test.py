"""Distilled ViT: chosen patches, attention maps, positions. Parity: golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax.models import torch_weights, vit

TOY = vit.DistilledViT(dim=12, depth=2, heads=3, out_dim=5, patch=4)


def pictures(batch=2, size=(12, 16)):
  return jax.random.normal(jax.random.key(1), (batch, *size, 3))


def variables(module=TOY, size=(12, 16)):
  """Large random weights, so that tokens attend to something."""
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), pictures(1, size))
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: 0.5 * rng.standard_normal(s.shape).astype(s.dtype), shapes
  )


def embed(module, weights, x, keep=None):
  return jax.jit(lambda v, x: module.apply(v, x, keep=keep))(weights, x)


def attend(weights, x, **options):
  return jax.jit(lambda v, x: TOY.apply(v, x, method='attention', **options))(
    weights, x
  )


def test_the_published_network_has_its_number_of_parameters():
  module = vit.DistilledViT()
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
  # facebookresearch/deit, deit_small_distilled_patch16_224.
  assert sum(s.size for s in jax.tree.leaves(shapes)) == 22_436_432


def test_all_patches_are_the_same_as_no_choice():
  weights, x = variables(), pictures()
  every = jnp.tile(jnp.arange(12, dtype=jnp.int32)[None], (2, 1))
  np.testing.assert_allclose(
    embed(TOY, weights, x, every), embed(TOY, weights, x), rtol=1e-5, atol=1e-5
  )


def test_the_order_of_kept_patches_does_not_matter():
  weights, x = variables(), pictures()
  keep = jnp.array([[0, 3, 7, 8], [1, 2, 10, 11]])
  y = embed(TOY, weights, x, keep)
  np.testing.assert_allclose(
    embed(TOY, weights, x, keep[:, ::-1]), y, rtol=1e-5, atol=1e-5
  )
  assert np.abs(y - embed(TOY, weights, x)).max() > 1e-3


def test_patches_that_are_not_kept_do_not_matter():
  weights, x = variables(), pictures()
  keep = jnp.array([[0, 3, 7, 8], [0, 3, 7, 8]])
  changed = x.at[:, 4:8, 8:12].set(9)  # Patch 6: row 1, column 2 of 3 x 4.
  y = embed(TOY, weights, x, keep)
  np.testing.assert_array_equal(embed(TOY, weights, changed, keep), y)
  keep = keep.at[:, 0].set(6)
  moved = embed(TOY, weights, x, keep) - embed(TOY, weights, changed, keep)
  assert np.abs(moved).max() > 1e-3


def test_attention_maps_reach_one_and_are_multiples_of_a_grey_level():
  maps = attend(variables(), pictures(50))
  assert maps.shape == (50, 3, 4)
  np.testing.assert_array_equal(maps.max((1, 2)), 1)
  levels = np.asarray(maps, np.float64) * 255
  np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
  exact = attend(variables(), pictures(50), as_stored=False)
  assert np.all(np.asarray(exact - maps) >= -1e-6)
  assert np.all(np.asarray(exact - maps) <= 1 / 255 + 1e-6)


def test_attention_maps_have_no_gradient():
  x = pictures()
  grads = jax.jit(
    jax.grad(
      lambda v: TOY.apply(v, x, method='attention', as_stored=False).sum()
    )
  )(variables())
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_kept_patches_are_the_largest_and_ties_go_to_the_first():
  attention = jnp.array([[[0.1, 0.9], [0.5, 0.2]], [[0, 1], [0, 0]]])
  kept = vit.kept_patches(attention, (2, 2), share=0.5)
  np.testing.assert_array_equal(kept, [[1, 2], [0, 1]])
  assert kept.dtype == jnp.int32
  # The bright corner of a map stays the bright corner of a larger grid.
  attention = jnp.zeros((1, 4, 4)).at[0, 0, 3].set(1)
  kept = vit.kept_patches(attention, (8, 8), share=4 / 64)
  np.testing.assert_array_equal(kept, [[6, 7, 14, 15]])


@pytest.mark.parametrize(('side', 'count'), [(20, 256), (25, 400), (16, 163)])
def test_the_published_share_keeps_as_many_patches_as_stage_one(side, count):
  attention = jax.random.uniform(jax.random.key(0), (2, 16, 16))
  kept = vit.kept_patches(attention, (side, side))
  assert kept.shape == (2, count)
  assert np.all(np.diff(kept) > 0) and kept.max() < side * side


@pytest.mark.parametrize('share', [0, 0.01, 1.1])
def test_impossible_shares_are_explained(share):
  with pytest.raises(ValueError, match='expected 0 < share <= 1'):
    vit.kept_patches(jnp.zeros((1, 4, 4)), (5, 5), share=share)


def test_pictures_of_another_size_need_other_positions():
  weights = variables()
  with pytest.raises(ValueError, match=r'3x3 patches.*for 12.*resize_pos'):
    TOY.apply(weights, pictures(1, (12, 12)))
  params = weights['params']
  positions = vit.resize_positions(
    params['pos_embed'], (5, 4), from_grid=(3, 4)
  )
  moved = {'params': {**params, 'pos_embed': positions}}
  assert embed(TOY, moved, pictures(1, (20, 16))).shape == (1, 5)
  with pytest.raises(ValueError, match=r'3x16 pixels.*patch of 4x4'):
    TOY.apply(weights, pictures(1, (3, 16)))


def test_positions_of_the_same_grid_and_of_special_tokens_stay():
  positions = jax.random.normal(jax.random.key(0), (1, 2 + 9, 4))
  same = vit.resize_positions(positions, (3, 3))
  np.testing.assert_array_equal(same, positions)
  larger = vit.resize_positions(positions, (6, 2))
  assert larger.shape == (1, 2 + 12, 4)
  np.testing.assert_array_equal(larger[:, :2], positions[:, :2])


def test_positions_that_are_no_square_need_their_grid():
  with pytest.raises(ValueError, match='12 patches, which is no grid of 3x3'):
    vit.resize_positions(jnp.zeros((1, 14, 4)), (5, 5))
  with pytest.raises(ValueError, match='no grid of 5x2'):
    vit.resize_positions(jnp.zeros((1, 14, 4)), (5, 5), from_grid=(5, 2))


def imagenet(classes=3, grid=4) -> dict[str, np.ndarray]:
  """A distilled DeiT with a square grid in torch's names and layouts."""
  rng = np.random.default_rng(0)
  shapes = {
    'cls_token': (1, 1, 12),
    'dist_token': (1, 1, 12),
    'pos_embed': (1, 2 + grid * grid, 12),
    'patch_embed.proj.weight': (12, 3, 4, 4),
    'patch_embed.proj.bias': (12,),
    'norm.weight': (12,),
    'norm.bias': (12,),
  }
  for i in range(2):
    for name, shape in (
      ('norm1', ()),
      ('norm2', ()),
      ('attn.qkv', (36, 12)),
      ('attn.proj', (12, 12)),
      ('mlp.fc1', (48, 12)),
      ('mlp.fc2', (12, 48)),
    ):
      shapes[f'blocks.{i}.{name}.weight'] = shape or (12,)
      shapes[f'blocks.{i}.{name}.bias'] = shape[:1] or (12,)
  for head in ('head', 'head_dist'):
    shapes |= {f'{head}.weight': (classes, 12), f'{head}.bias': (classes,)}
  return {k: rng.standard_normal(s).astype('f4') for k, s in shapes.items()}


def test_imagenet_weights_are_fitted_to_size_and_dimension():
  source = imagenet()
  fitted = vit.fit_imagenet(source, grid=(3, 4), out_dim=5, where='deit.pth')
  found = torch_weights.convert(variables(), fitted, where='deit.pth')
  params = found['params']
  for head in vit.HEADS:
    rows = source[f'{head}.weight'][[0, 1, 2, 0, 1]]
    np.testing.assert_array_equal(params[head]['kernel'], rows.T)
  assert params['pos_embed'].shape == (1, 14, 12)
  np.testing.assert_array_equal(
    params['blocks_1']['attn']['qkv']['kernel'],
    source['blocks.1.attn.qkv.weight'].T,
  )
  assert np.all(np.isfinite(embed(TOY, found, pictures())))


def test_checkpoints_of_other_networks_are_refused():
  source = imagenet()
  del source['dist_token'], source['head_dist.bias']
  with pytest.raises(
    ValueError, match=r"vit\.pth: no checkpoint.*\['dist_token', 'head_dist"
  ):
    vit.fit_imagenet(source, grid=(3, 4), out_dim=5, where='vit.pth')
  source = imagenet() | {'pos_embed': np.zeros((1, 14, 12), 'f4')}
  with pytest.raises(ValueError, match=r'vit\.pth: pos_embed.*12 patches'):
    vit.fit_imagenet(source, grid=(3, 4), out_dim=5, where='vit.pth')


def test_recomputation_changes_nothing():
  weights, x = variables(), pictures()

  def run(module):
    return jax.jit(
      jax.value_and_grad(lambda v: (module.apply(v, x) ** 2).sum())
    )(weights)

  (value_1, grads_1), (value_2, grads_2) = run(TOY), run(TOY.clone(remat=True))
  np.testing.assert_allclose(value_1, value_2, rtol=1e-5)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads_1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-5 * largest
    ),
    grads_1,
    grads_2,
  )


def test_bfloat16_keeps_parameters_and_embeddings_in_float32():
  weights, x = variables(), pictures()
  module = TOY.clone(dtype=jnp.bfloat16)
  y = embed(module, weights, x)
  exact = embed(TOY, weights, x)
  assert y.dtype == jnp.float32 and not np.array_equal(y, exact)
  np.testing.assert_allclose(y, exact, atol=0.1 * float(jnp.abs(exact).max()))
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
  assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype('f4')}


def test_heads_that_do_not_divide_are_explained():
  module = vit.DistilledViT(dim=10, heads=3)
  with pytest.raises(ValueError, match='dim 10 is not divisible by heads 3'):
    module.init(jax.random.key(0), pictures(1, (16, 16)))
