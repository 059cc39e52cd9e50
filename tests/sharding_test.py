import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import sharding


def test_large_arrays_are_split_along_their_largest_divisible_axis():
  mesh = sharding.make_mesh()
  shapes = {
    'kernel': jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32),
    'odd': jax.ShapeDtypeStruct((333, 7), jnp.float32),
    'bias': jax.ShapeDtypeStruct((32,), jnp.float32),
  }
  found = sharding.state_sharding(shapes, mesh, fsdp=True, fsdp_min_size=1000)
  assert found['kernel'].spec == jax.sharding.PartitionSpec(
    None, None, None, sharding.AXIS
  )
  assert found['odd'].is_fully_replicated
  assert found['bias'].is_fully_replicated


def test_without_fsdp_everything_is_replicated():
  shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)]
  found = sharding.state_sharding(
    shapes, sharding.make_mesh(), fsdp=False, fsdp_min_size=1
  )
  assert found[0].is_fully_replicated


def test_an_indivisible_batch_names_sizes_that_work():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match='use 24 or 32'):
    sharding.check_batch_size(30, mesh)
  with pytest.raises(ValueError, match='use 16'):
    sharding.check_batch_size(8, mesh, micro_batches=2)
  sharding.check_batch_size(32, mesh, micro_batches=2)


def test_a_batch_is_split_over_all_devices():
  mesh = sharding.make_mesh()
  batch = {'image': np.arange(16.0).reshape(16, 1)}
  placed = sharding.to_devices(batch, mesh)['image']
  assert placed.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
  np.testing.assert_array_equal(placed, batch['image'])
