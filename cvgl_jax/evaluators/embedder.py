"""Features of whole splits: the only place where evaluation meets a network.

The forward pass is jitted once per (view, test-time views, shapes) and takes
the variables as arguments, so that evaluations during training never compile
again. Batches are split over the mesh; with several processes each one decodes
its share of every batch, and all of them get all features.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from cvgl_jax import sharding
from cvgl_jax.data import prepare as prepare_lib
from cvgl_jax.data import stream, transforms
from cvgl_jax.models import test_time


class Embedder:
  """Embeds splits with one set of variables.

  Args:
    method: see `methods/contract.py`; needs `embed_raw` or `embed`, and for
      regions `embed_regions`.
    variables: of the method; arrays on the mesh, or NumPy arrays.
    load: encoded picture -> uint8 [H, W, 3]; see `data/transforms.py`.
    prepare: what follows on the device; pictures are prepared as what they
      show (the split's view), whatever branch embeds them.
    batch_size: pictures in a global batch; rounded up to a multiple of the
      number of devices (features do not depend on it).
    mesh: of `sharding.make_mesh`.
    threads: decoding threads of each process; None takes all cores.
  """

  def __init__(
    self,
    method: Any,
    variables: Mapping[str, Any],
    *,
    load: transforms.Loader,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    threads: int | None = None,
    prepare: prepare_lib.Prepare | None = None,
  ):
    if batch_size < 1:
      raise ValueError(f'batch_size {batch_size}: expected at least 1')
    self._load = load
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._mesh = mesh
    self._threads = threads
    self._embed = _make_embed(method, mesh, prepare or prepare_lib.Prepare())
    self._has_regions = hasattr(method, 'embed_regions')
    self._set(variables)

  def with_variables(self, variables: Mapping[str, Any]) -> 'Embedder':
    """An embedder of other variables that shares the compiled programs.

    It starts with no remembered features; this object is unchanged.
    """
    other = object.__new__(Embedder)
    other.__dict__.update(self.__dict__)
    other._set(variables)
    return other

  def __call__(
    self,
    split: stream.Split,
    *,
    view: str | None = None,
    flip: bool = True,
    scales: tuple[float, ...] = (1.0,),
    cumulative: bool = True,
    regions: int = 0,
  ) -> np.ndarray:
    """Features of every picture of a split, in its order.

    Features of the test-time views are summed before they are normalised.
    Results are remembered: a second call with the same pictures costs nothing.

    With regions every picture has 1 + R consecutive rows: the whole picture and
    its first R regions, which are of unit norm in each test-time view; region i
    of the mirrored picture is added to region i of the picture.

    Args:
      split: N pictures.
      view: the branch of the method; None takes the split's own view.
      flip: add the horizontally flipped picture.
      scales: add the picture at these scales.
      cumulative: see `models/test_time.feature_sum`.
      regions: R, of a method that describes regions.

    Returns:
      [N (1 + R), D] float32 of unit norm, the same on every process.

    Raises:
      ValueError: no pictures, regions of a method that has none, or features
        that are not finite or all zero (names the split and the pictures).
    """
    if not len(split):
      raise ValueError(f'split {split.name} has no pictures to embed')
    if regions and not self._has_regions:
      raise ValueError(
        f'{regions} regions of {split.name}: the method describes no regions'
      )
    view = split.view if view is None else view
    options = (view, flip, tuple(scales), cumulative, regions)
    key = (_fingerprint(split), options)
    if key not in self._remembered:
      self._remembered[key] = self._features(split, *options)
    return self._remembered[key]

  def _set(self, variables: Mapping[str, Any]) -> None:
    # NumPy variables would otherwise travel to the devices with every batch.
    everywhere = sharding.replicated(self._mesh)
    self._variables = jax.tree.map(
      lambda x: (
        x if isinstance(x, jax.Array) else jax.device_put(x, everywhere)
      ),
      variables,
    )
    self._remembered: dict[tuple, np.ndarray] = {}

  def _features(
    self, split, view, flip, scales, cumulative, regions
  ) -> np.ndarray:
    first_process = jax.process_index() == 0
    features = None
    seen = np.zeros(len(split), bool)
    batches = stream.sequential(
      split,
      load=self._load.for_view(split.view),
      batch_size=self._batch_size,
      process=(jax.process_index(), jax.process_count()),
      threads=self._threads,
    )
    pending = []
    with tqdm.tqdm(
      total=len(split),
      desc=f'embed {split.name}',
      unit='picture',
      leave=False,
      delay=1.0,
      # A bar on a terminal, a rare line in a log file.
      mininterval=0.2 if sys.stderr.isatty() else 20.0,
      disable=not first_process,
    ) as bar:

      def collect() -> None:
        nonlocal features
        values, rows = map(np.asarray, pending.pop(0))
        valid = rows >= 0
        if features is None:
          features = np.empty((len(split), *values.shape[1:]), np.float32)
        features[rows[valid]] = values[valid]
        seen[rows[valid]] = True
        bar.update(int(valid.sum()))

      for batch in batches:
        images, rows = sharding.to_devices(
          (batch['image'], np.asarray(batch['row'], np.int32)), self._mesh
        )
        pending.append(
          self._embed(
            self._variables,
            images,
            rows,
            shown=split.view,
            view=view,
            flip=flip,
            scales=scales,
            cumulative=cumulative,
            regions=regions,
          )
        )
        # One batch computes while the next one is decoded.
        if len(pending) > 1:
          collect()
      while pending:
        collect()
    assert seen.all(), f'{split.name}: {(~seen).sum()} pictures never came'
    _check_finite(features.reshape(len(split), -1), split)
    return features.reshape(-1, features.shape[-1])


def _make_embed(
  method: Any, mesh: jax.sharding.Mesh, prepare: prepare_lib.Prepare
) -> Callable:
  embed = getattr(method, 'embed_raw', None) or method.embed

  @functools.partial(
    jax.jit,
    static_argnames=(
      'shown',
      'view',
      'flip',
      'scales',
      'cumulative',
      'regions',
    ),
    out_shardings=sharding.replicated(mesh),
  )
  def embed_batch(
    variables, images, rows, *, shown, view, flip, scales, cumulative, regions
  ):
    describe = embed
    if regions:
      describe = functools.partial(method.embed_regions, regions=regions)
    images = prepare.fixed(images, shown, rows)
    total = test_time.feature_sum(
      lambda x: describe(variables, x, view),
      images,
      flip=flip,
      scales=scales,
      cumulative=cumulative,
    ).astype(jnp.float32)  # [B, D], with regions [B, 1 + R, D]
    # A zero sum becomes NaN here, and an error in `_check_finite`.
    norm = jnp.linalg.norm(total, axis=-1, keepdims=True)
    return total / norm, rows

  return embed_batch


def _fingerprint(split: stream.Split) -> str:
  """Identifies the pictures of a split by content, not by name.

  Two data sets may share split names, places and paths, so a few pictures
  are part of it.
  """
  digest = hashlib.sha256(f'{split.name}/{split.view}/{len(split)}'.encode())
  digest.update(np.ascontiguousarray(split.place).tobytes())
  digest.update('\n'.join(map(str, split.path)).encode())
  for row in {0, len(split) // 2, len(split) - 1}:
    digest.update(split.image_bytes(row))
  return digest.hexdigest()


def _check_finite(features: np.ndarray, split: stream.Split) -> None:
  bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if len(bad):
    paths = ', '.join(str(split.path[row]) for row in bad[:3])
    raise ValueError(
      f'split {split.name}: features of {len(bad)} of {len(features)} pictures '
      f'are NaN, infinite or all zero (first: {paths}). The weights have '
      'probably diverged; nothing is ranked on them'
    )
