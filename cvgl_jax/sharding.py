"""Where arrays live: one mesh, one axis, replicated or FSDP parameters.

The mesh has the single axis 'data'. Batches are split along it; parameters are
replicated, or split by size (FSDP) where `fsdp` is on. Everything else is left
to GSPMD: there is no collective of our own in the code base.

Source of the FSDP rule: google-research/big_vision `sharding.py`, as a rule
("split the largest divisible axis of every large array"), written anew.
"""

import math
import os
from typing import Any

import jax
import numpy as np

AXIS = 'data'


def make_mesh(devices: list | None = None) -> jax.sharding.Mesh:
  """A mesh of all devices (or of `devices`) with the axis 'data'.

  The axis is `Auto`: with the default `Explicit`, similarity matrices of two
  sharded batches are type errors.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),),
    (AXIS,),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=devices,
  )


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The same array on every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Axis 0 split over all devices."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def state_sharding(
  shapes: Any, mesh: jax.sharding.Mesh, *, fsdp: bool, fsdp_min_size: int
) -> Any:
  """A sharding for every array of a train state.

  Args:
    shapes: tree of shapes, from `jax.eval_shape`.
    mesh: of `make_mesh`.
    fsdp: split large arrays over the devices; else replicate everything.
    fsdp_min_size: arrays with fewer elements stay replicated.

  Returns:
    Tree of `NamedSharding` with the structure of `shapes`.
  """

  def rule(leaf) -> jax.sharding.NamedSharding:
    if not fsdp or leaf.size < fsdp_min_size:
      return replicated(mesh)
    divisible = [
      axis for axis, n in enumerate(leaf.shape) if n % mesh.size == 0
    ]
    if not divisible:
      return replicated(mesh)
    largest = max(divisible, key=lambda axis: leaf.shape[axis])
    spec = [None] * leaf.ndim
    spec[largest] = AXIS
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return jax.tree.map(rule, shapes)


def check_batch_size(
  batch_size: int, mesh: jax.sharding.Mesh, *, micro_batches: int = 1
) -> None:
  """Raises before compilation where a batch cannot be split over the mesh.

  Raises:
    ValueError: names the nearest batch sizes that work.
  """
  unit = mesh.size * micro_batches
  if batch_size < 1 or batch_size % unit:
    below = batch_size // unit * unit
    fitting = [n for n in (below, below + unit) if n > 0]
    raise ValueError(
      f'config.train.batch_size: {batch_size} is not divisible by '
      f'{mesh.size} devices x {micro_batches} micro-batches; use '
      + ' or '.join(map(str, fitting))
    )


def check_memory(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh) -> None:
  """Raises before compilation where the state alone cannot fit a device.

  Counts the state's share of one device and its gradients; activations come on
  top, so passing is no promise. Devices that do not tell their memory (CPUs)
  are taken at the memory of the host.

  Args:
    shapes: tree of shapes of the train state, with `params`.
    shardings: its shardings.
    mesh: of the run.

  Raises:
    ValueError: says what is needed, what there is, and what helps.
  """
  share = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
  state = sum(jax.tree.leaves(jax.tree.map(share, shapes, shardings)))
  grads = sum(
    jax.tree.leaves(jax.tree.map(share, shapes.params, shardings.params))
  )
  limit = _memory_bytes(mesh)
  if state + grads > limit:
    raise ValueError(
      f'the train state needs {state / 2**30:.1f} GiB on each device and its '
      f'gradients {grads / 2**30:.1f} GiB, a device has {limit / 2**30:.1f} '
      'GiB; set config.train.fsdp=True, use more devices or a smaller network'
    )


def _memory_bytes(mesh: jax.sharding.Mesh) -> int:
  """Memory of one device of the mesh."""
  stats = mesh.local_devices[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return host // len(mesh.local_devices)


def to_devices(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """Global arrays from this process' share of a batch (axis 0 is split)."""
  target = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(target, np.asarray(x)),
    batch,
  )
