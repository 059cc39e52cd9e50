import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from cvgl_jax import integrity, sharding


@pytest.mark.parametrize(
  'dtype', ['bool', 'int8', 'uint16', 'bfloat16', 'int32', 'float32']
)
def test_one_changed_element_and_another_order_change_the_checksum(dtype):
  x = np.arange(48).reshape(2, 3, 8) % 5
  changed = x.copy()
  changed[1, 2, 7] = 0 if x[1, 2, 7] else 1
  sums = {
    int(integrity.array_checksum(jnp.asarray(y, dtype)))
    for y in (x, changed, x[::-1], x[:, ::-1], x[..., ::-1])
  }
  assert len(sums) == 5


def test_the_sign_of_zero_counts():
  checksum = lambda x: int(integrity.array_checksum(jnp.asarray(x)))
  assert checksum([0.0, 1.0]) != checksum([-0.0, 1.0])


def test_the_checksum_does_not_depend_on_the_sharding():
  mesh = sharding.make_mesh()
  x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  sums = {
    int(integrity.array_checksum(jax.device_put(x, where)))
    for where in (
      sharding.replicated(mesh),
      sharding.batch_sharding(mesh),
      jax.devices()[0],
    )
  }
  assert len(sums) == 1


def test_what_was_signed_is_verified_whole_or_in_part():
  state = {'a': jnp.arange(3), 'b': (jnp.ones(2), None)}
  loop = {'best': 0.1, 'by_place': {10: [1], 9: (2,)}}
  signed = integrity.sign(state, loop)
  assert integrity.verify(state, signed) == loop
  assert integrity.verify({'b': [np.ones(2, np.float32)]}, signed) == loop
  with pytest.raises(ValueError, match='checksum of a:'):
    integrity.verify(state | {'a': jnp.arange(3) + 1}, signed)
  with pytest.raises(ValueError, match='checksum of c:'):
    integrity.verify({'c': jnp.ones(2)}, signed)
  with pytest.raises(ValueError, match='checksum of the loop state:'):
    integrity.verify(state, signed | {'best': 0.2})


def test_without_checksums_there_is_a_warning(monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda *args: warnings.append(args))
  assert integrity.verify({'a': jnp.ones(2)}, {'note': 1}) == {'note': 1}
  assert len(warnings) == 1


def test_long_lists_of_differences_are_cut():
  shape = jax.ShapeDtypeStruct((2,), jnp.float32)
  wanted = {('params', f'w{i:02}'): shape for i in range(12)}
  assert integrity.differences(wanted, wanted) == []
  (line,) = integrity.differences({}, wanted)
  assert '(12): params/w00; params/w01' in line
  assert line.endswith('params/w09; ...')
