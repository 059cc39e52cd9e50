"""The search of `search.top_k` on accelerators and on meshes.

Every chunk of the gallery is split over the devices. Each device keeps the best
k of its own rows, so chunks need no communication; at the end the candidates of
all devices are gathered and merged.

Shapes are fixed on a device: of every chunk a fixed number of rows is scored
exactly. Where that was too few for certainty the query is marked as crowded.
"""

import dataclasses
import functools
from collections.abc import Iterator

import einops
import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax import sharding
from cvgl_jax.retrieval import features

# Rows of a chunk that are scored exactly beyond k: with float32 products only
# rows within 1e-4 |q| |g| or so of the k-th best are in doubt; with bfloat16
# several times k.
_SPARE = {'float32': (1, 28), 'bfloat16': (4, 124)}
# Gathered features of one tile (16 Mi values, 64 MiB).
_TILE_VALUES = 2**24
_NO_ROW = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Placed:
  """A gallery on its way to the devices, or there already.

  Attributes:
    rows: the gallery.
    mesh: of the devices.
    chunk: rows of one chunk on one device.
    held: the chunks [devices * chunk, D], if they stay on the devices.
  """

  rows: features.Rows
  mesh: jax.sharding.Mesh
  chunk: int
  held: tuple[jax.Array, ...] | None = None

  def parts(self) -> Iterator[tuple[int, jax.Array]]:
    """(first row, chunk) in order; the last chunk ends with zero rows."""
    size = self.chunk * self.mesh.size
    for index, start in enumerate(range(0, len(self.rows), size)):
      yield start, self.held[index] if self.held else self._part(start)

  def _part(self, start: int) -> jax.Array:
    shape = (self.chunk * self.mesh.size, self.rows.dim)

    def rows_of_device(index: tuple[slice, ...]) -> np.ndarray:
      first, last, _ = index[0].indices(shape[0])
      stop = min(start + last, len(self.rows))
      if start + first >= stop:
        return np.zeros((last - first, shape[1]), np.float32)
      found = self.rows.part(start + first, stop)
      return features.pad(found, last - first)

    return jax.make_array_from_callback(
      shape, _split(self.mesh), rows_of_device
    )


def stream(
  gallery: features.Rows, *, chunk: int, mesh: jax.sharding.Mesh | None = None
) -> Placed:
  """A gallery whose chunks go to the devices when they are searched."""
  mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
  chunk = min(chunk, -(-len(gallery) // mesh.size))
  features.check_row_numbers(gallery, spare=chunk * mesh.size)
  return Placed(gallery, mesh, chunk)


def place(
  gallery: np.ndarray | jax.Array,
  *,
  similarity: features.Similarity = 'cosine',
  chunk: int = 65536,
  mesh: jax.sharding.Mesh | None = None,
) -> Placed:
  """A gallery that stays on the devices, for more than one search.

  Args:
    gallery: [G, D] features.
    similarity: 'cosine' or 'dot', of all searches.
    chunk: rows of one product on one device.
    mesh: of the devices that share it; by default the first device.

  Returns:
    What `search.top_k` takes as its gallery; 4 G D bytes over all devices.

  Raises:
    ValueError: features that cannot be ranked (see `features.Rows`).
  """
  rows = features.Rows(gallery, 'gallery', similarity)
  placed = stream(rows, chunk=chunk, mesh=mesh)
  held = tuple(part for _, part in placed.parts())
  return dataclasses.replace(placed, held=held)


def scan(
  query: np.ndarray,
  gallery: Placed,
  *,
  k: int,
  ties: str,
  block: int,
  first_pass: features.FirstPass,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The best k gallery rows of every query.

  Args:
    query: [Q, D] prepared features.
    gallery: of `stream` or `place`.
    k: at most the rows of the gallery.
    ties: 'lower' or 'higher' row first.
    block: queries of one product.
    first_pass: precision of the product.

  Returns:
    Scores [Q, k], rows [Q, k], and bool [Q]: true where the rows may be wrong
    because too few were scored exactly.
  """
  mesh = gallery.mesh
  # Rows are compared by sign * row, so that the lower key wins in both cases.
  sign = 1 if ties == 'lower' else -1
  blocks = [
    features.pad(query[start : start + block], block)
    for start in range(0, len(query), block)
  ]
  empty = (
    np.full((mesh.size, block, k), -np.inf, np.float32),
    np.full((mesh.size, block, k), _NO_ROW, np.int32),
    np.zeros((mesh.size, block), bool),
  )
  best = [jax.device_put(empty, _split(mesh)) for _ in blocks]
  step = _step(mesh, k=k, first_pass=first_pass)
  ahead = None
  for start, part in gallery.parts():
    best = [
      step(queries, part, start, len(gallery.rows), sign, *state)
      for queries, state in zip(blocks, best, strict=True)
    ]
    # Work is queued, not done: without this wait a gallery that is larger than
    # the device would be sent there whole.
    jax.block_until_ready(ahead)
    ahead = best[-1]
  merge = _merge(mesh, k)
  merged = [[np.asarray(x) for x in merge(sign, *state)] for state in best]
  scores, rows, crowded = (
    np.concatenate(x)[: len(query)] for x in zip(*merged, strict=True)
  )
  return scores, rows, crowded


def _split(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Axis 0 over all devices, whatever the mesh calls its axes."""
  spec = jax.sharding.PartitionSpec(mesh.axis_names)
  return jax.sharding.NamedSharding(mesh, spec)


@functools.cache
def _step(mesh: jax.sharding.Mesh, *, k: int, first_pass: str):
  """One chunk against one block of queries, on every device by itself."""
  split = jax.sharding.PartitionSpec(mesh.axis_names)
  whole = jax.sharding.PartitionSpec()

  def local(query, part, start, size, sign, scores, rows, crowded):
    first = start + jax.lax.axis_index(mesh.axis_names) * len(part)
    found, found_rows, doubt = _search_chunk(
      query,
      part,
      first,
      size,
      scores[0, :, -1],
      k=k,
      first_pass=first_pass,
    )
    scores, rows = _best(
      jnp.concatenate([scores[0], found], axis=1),
      jnp.concatenate([rows[0], found_rows], axis=1),
      sign,
      k=k,
    )
    return scores[None], rows[None], crowded | doubt[None]

  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(whole, split, whole, whole, whole, split, split, split),
      out_specs=(split, split, split),
      check_vma=False,
    )
  )


@functools.cache
def _merge(mesh: jax.sharding.Mesh, k: int):
  """The best of all devices; the compiler gathers Q x devices x k scores."""

  def merge(sign, scores, rows, crowded):
    scores, rows = (
      einops.rearrange(x, 'devices q k -> q (devices k)')
      for x in (scores, rows)
    )
    return *_best(scores, rows, sign, k=k), crowded.any(axis=0)

  return jax.jit(merge, out_shardings=sharding.replicated(mesh))


def _search_chunk(query, part, first, size, lowest, *, k, first_pass):
  """Exactly scored candidates of one chunk.

  Args:
    query: [q, D].
    part: [c, D], the gallery rows from `first` on.
    first: row number.
    size: rows of the gallery; those of `part` beyond are padding.
    lowest: [q] k-th best exact scores so far.
    k: how many are looked for.
    first_pass: precision of the product.

  Returns:
    Scores [q, m] (-inf: none), rows [q, m], and bool [q]: true where a row that
    is not among them may be among the k best.
  """
  products, error = features.approximate_scores(
    query, part, first_pass=first_pass
  )
  rows = first + jnp.arange(len(part), dtype=jnp.int32)
  products = jnp.where(rows[None] < size, products, -jnp.inf)
  times, more = _SPARE[first_pass]
  kept = min(times * k + more, len(part))
  values, columns = _largest(products, min(kept + 1, len(part)))
  doubt = jnp.zeros(len(query), bool)
  if kept < len(part):
    # The rules of the module docstring of `search`, for the best of the rest.
    bar = jnp.maximum(lowest - error, values[:, k - 1] - 2 * error)
    doubt = (values[:, kept] >= bar) & (values[:, kept] > -jnp.inf)
  values, columns = values[:, :kept], columns[:, :kept]
  exact = jax.lax.map(
    lambda item: features.exact_scores(item[0][None], part[item[1]]),
    (query, columns),
    batch_size=max(1, _TILE_VALUES // (kept * part.shape[1])),
  )
  missing = values == -jnp.inf
  return (
    jnp.where(missing, -jnp.inf, exact),
    jnp.where(missing, _NO_ROW, rows[columns]),
    doubt,
  )


def _largest(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """`lax.top_k` of [q, c], which sorts much more than it needs where c is large.

  The largest `count` are in the `count` groups with the largest maxima.
  """
  size = scores.shape[1]
  group = 2 ** max(0, ((size // count).bit_length() - 1) // 2)
  if group == 1:
    return jax.lax.top_k(scores, count)
  padded = jnp.pad(
    scores, [(0, 0), (0, -size % group)], constant_values=-jnp.inf
  )
  groups = einops.rearrange(padded, 'q (n group) -> q n group', group=group)
  _, best = jax.lax.top_k(groups.max(axis=-1), count)
  inside = jnp.take_along_axis(groups, best[:, :, None], axis=1)
  columns = best[:, :, None] * group + jnp.arange(group)[None, None]
  inside = einops.rearrange(inside, 'q n group -> q (n group)')
  columns = einops.rearrange(columns, 'q n group -> q (n group)')
  values, at = jax.lax.top_k(inside, count)
  return values, jnp.take_along_axis(columns, at, axis=1)


def _best(scores, rows, sign, *, k) -> tuple[jax.Array, jax.Array]:
  """The k highest scores of [q, n]; equal ones by the lower sign * row."""
  # Empty places hold the highest row number, whatever the sign.
  keys = jnp.where(rows == _NO_ROW, _NO_ROW, sign * rows)
  lowest_first, keys = jax.lax.sort((-scores, keys), num_keys=2)
  keys, scores = keys[:, :k], -lowest_first[:, :k]
  return scores, jnp.where(keys == _NO_ROW, _NO_ROW, sign * keys)
