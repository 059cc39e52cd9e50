"""Features that can be ranked: checked, float32, and of unit norm for cosines.

Nothing is ranked on NaN, infinite or (cosine) zero rows: they are refused here,
by side and row, whether an array is prepared whole (`prepare`) or a chunk at a
time (`Rows`). A row is prepared the same way, bit for bit, in either form.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Similarity = Literal['cosine', 'dot']
FirstPass = Literal['float32', 'bfloat16']

# Norms beyond this overflow the float32 dot product of two features.
_MAX_NORM = 1e18
# Float64 copies of features are made for this many values at a time (1 MiB).
_BLOCK_VALUES = 2**17
# More than a product can lose where numbers below 2^-126 become zero.
_FLUSHED = 1e-37


@dataclasses.dataclass(frozen=True)
class Rows:
  """Features that are checked and prepared when a part of them is asked for.

  The array may be larger than memory: an `np.memmap` (of
  `np.load(path, mmap_mode='r')`) is only ever read in parts.

  Attributes:
    values: [N, D] floats: NumPy, memory-mapped or JAX array.
    name: what they are, for messages ('query', 'gallery', a file).
    similarity: 'cosine' divides every row by its L2 norm; 'dot' leaves it.

  Raises:
    ValueError: not a matrix of floats or integers, no rows, unknown similarity.
  """

  values: np.ndarray | jax.Array
  name: str
  similarity: Similarity = 'cosine'

  def __post_init__(self):
    if self.similarity not in ('cosine', 'dot'):
      raise ValueError(
        f"similarity {self.similarity!r}: expected 'cosine' or 'dot'"
      )
    if not isinstance(self.values, (np.ndarray, jax.Array)):
      object.__setattr__(self, 'values', np.asarray(self.values))
    if self.values.ndim != 2:
      raise ValueError(
        f'{self.name}: features of shape {self.values.shape}, expected '
        '[rows, dimension]'
      )
    if not self.values.size:
      raise ValueError(
        f'{self.name}: features of shape {self.values.shape} are empty'
      )
    if not (
      jnp.issubdtype(self.values.dtype, jnp.floating)
      or jnp.issubdtype(self.values.dtype, jnp.integer)
    ):
      raise ValueError(
        f'{self.name}: features are {self.values.dtype}, expected real numbers'
      )

  def __len__(self) -> int:
    return self.values.shape[0]

  @property
  def dim(self) -> int:
    """D."""
    return self.values.shape[1]

  def part(self, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) as [n, D] float32, which may be a view (read-only).

    Raises:
      ValueError: the part has rows that cannot be ranked; the message lists
        them by their number in the whole array.
    """
    raw = np.asarray(self.values[start:stop])
    norm = _norms(raw)
    self._refuse(~np.isfinite(norm), start, 'hold NaN or infinite values')
    self._refuse(norm > _MAX_NORM, start, f'have a norm above {_MAX_NORM:g}')
    if self.similarity == 'dot':
      return raw.astype(np.float32, copy=False)
    self._refuse(norm == 0, start, 'are all zero, so they have no direction')
    # Divided in float64, without a float64 copy of all features.
    unit = np.empty(raw.shape, np.float32)
    for block in _blocks(raw):
      unit[block] = raw[block] / norm[block, None]
    return unit

  def parts(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, `part`) for every `size` rows; the last part may be short."""
    for start in range(0, len(self), size):
      yield start, self.part(start, min(start + size, len(self)))

  def _refuse(self, bad: np.ndarray, start: int, what: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
      listed = ', '.join(str(start + row) for row in rows[:5])
      more = ', ...' if len(rows) > 5 else ''
      where = '' if len(bad) == len(self) else f' from row {start} on'
      raise ValueError(
        f'{self.name}: {len(rows)} of {len(bad)} feature rows{where} {what} '
        f'(rows {listed}{more}); nothing is ranked on them'
      )


def prepare(
  features: np.ndarray, name: str, *, similarity: Similarity = 'cosine'
) -> np.ndarray:
  """Checks features and brings them into the form that is ranked.

  Args:
    features: [N, D] float array.
    name: what they are, for messages ('query', 'gallery', a file).
    similarity: 'cosine' divides every row by its L2 norm.

  Returns:
    [N, D] float32.

  Raises:
    ValueError: not a matrix, no rows, NaN or infinite values, values too large
      for float32 products, or (cosine) zero rows; the message lists the rows.
  """
  rows = Rows(features, name, similarity)
  return rows.part(0, len(rows))


def prepare_pair(
  query: np.ndarray, gallery: np.ndarray, *, similarity: Similarity
) -> tuple[np.ndarray, np.ndarray]:
  """`prepare` of both sides; their dimensions must agree."""
  query, gallery = pair(query, gallery, similarity=similarity)
  return query.part(0, len(query)), gallery.part(0, len(gallery))


def pair(
  query: np.ndarray, gallery: np.ndarray, *, similarity: Similarity
) -> tuple[Rows, Rows]:
  """`Rows` of both sides; their dimensions must agree.

  Raises:
    ValueError: see `Rows`; or the dimensions differ.
  """
  query = Rows(query, 'query', similarity)
  gallery = Rows(gallery, 'gallery', similarity)
  if query.dim != gallery.dim:
    raise ValueError(
      f'query features have dimension {query.dim}, gallery features '
      f'{gallery.dim}; both must come from the same model'
    )
  return query, gallery


def check_row_numbers(rows: Rows, *, spare: int = 0) -> None:
  """Raises ValueError where int32 cannot number the rows and `spare` more."""
  if len(rows) + spare > np.iinfo(np.int32).max:
    raise ValueError(
      f'{rows.name}: {len(rows)} rows, but row numbers are int32; search parts '
      'of at most 2 billion rows and merge their results'
    )


def pad(rows: np.ndarray, size: int) -> np.ndarray:
  """Zero rows at the end up to `size`; no copy where there are none to add."""
  if len(rows) == size:
    return rows
  return np.pad(rows, [(0, size - len(rows)), (0, 0)])


def similarity_matrix(query: jax.Array, gallery: jax.Array) -> jax.Array:
  """Dot products [Q, G] float32 of [Q, D] and [G, D], at full precision.

  The order of the sums is the library's and may change with the shapes: equal
  rows can differ in the last bit. Where ties matter see `exact_scores`.
  """
  return jnp.einsum('qd,gd->qg', query, gallery, precision='highest')


def exact_scores(query: jax.Array, gallery: jax.Array) -> jax.Array:
  """Dot products of float32 rows, [..., D] x [..., D] -> [...] float32.

  A function of the two rows and of nothing else: products are rounded to
  float32 and added as a fixed binary tree of elementwise sums, so neither the
  other rows, nor chunks, nor devices change a bit of it. This is the score that
  rankings are defined by. Its error is below (2 + log2 D) 2^-24 |q| |g|.
  """
  products = query * gallery
  # Behind a select no compiler fuses a product into the sum that follows, which
  # would round it differently from one program to the next.
  products = jnp.where(jnp.isnan(products), 0, products)
  while (size := products.shape[-1]) > 1:
    half = size // 2
    sums = products[..., :half] + products[..., half : 2 * half]
    rest = products[..., 2 * half :]
    products = jnp.concatenate([sums, rest], -1) if size % 2 else sums
  scores = products[..., 0]
  return jnp.where(scores == 0, 0, scores)  # -0.0 sorts below 0.0


def approximate_scores(
  query: jax.Array, gallery: jax.Array, *, first_pass: FirstPass = 'float32'
) -> tuple[jax.Array, jax.Array]:
  """Matrix products, and how far they can be from `exact_scores`.

  With q' and g' the rows as multiplied (rounded to bfloat16, or as they are),

    |q'g' - qg| <= |q - q'| |g| + |q'| |g - g'|      (Cauchy-Schwarz)

  with the measured norms of the roundings, which are 0 in float32. The products
  are added in float32 in an unknown order: at most D 2^-23 |q'| |g'|, which
  allows for units that truncate; and `exact_scores` has an error of its own.

  Args:
    query: [Q, D] float32.
    gallery: [G, D] float32.
    first_pass: precision of the inputs of the product.

  Returns:
    Scores [Q, G] float32, and [Q] float32: no score of that query is further
    than this from the exact one.
  """
  dim = query.shape[1]
  if first_pass == 'bfloat16':
    # Not a cast there and back, which compilers may leave out.
    low_query, low_gallery = (
      jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
      for x in (query, gallery)
    )
    scores = jnp.einsum(
      'qd,gd->qg',
      low_query.astype(jnp.bfloat16),
      low_gallery.astype(jnp.bfloat16),
      preferred_element_type=jnp.float32,
    )
    lost_query = _norm_bound(query - low_query)
    lost_gallery = _norm_bound(gallery - low_gallery).max()
  else:
    scores = similarity_matrix(query, gallery)
    lost_query = lost_gallery = 0.0
  norm = _norm_bound(query)  # [Q]
  largest = _norm_bound(gallery).max()
  # Both sums, and 2^-20 for products that are made of several narrower ones and
  # for the arithmetic on the bound itself.
  rounding = (dim + dim.bit_length() + 4) * 2.0**-23 + 2.0**-20
  error = lost_query * largest + (norm + lost_query) * lost_gallery
  error += rounding * (norm + lost_query) * (largest + lost_gallery)
  return scores, error + dim * _FLUSHED


def _norm_bound(rows: jax.Array) -> jax.Array:
  """Upper bounds [N] of the L2 norms of [N, D] float32."""
  dim = rows.shape[1]
  squares = jnp.einsum('nd,nd->n', rows, rows, precision='highest')
  return jnp.sqrt(squares + dim * _FLUSHED) * (1 + dim * 2.0**-23)


def _blocks(array: np.ndarray) -> Iterator[slice]:
  size = max(1, _BLOCK_VALUES // array.shape[1])
  for start in range(0, len(array), size):
    yield slice(start, start + size)


def _norms(array: np.ndarray) -> np.ndarray:
  """L2 norms [N] float64; the norm of a row depends on nothing but the row."""
  squares = np.empty(len(array))
  for block in _blocks(array):
    # Copied before the sum: a sum that casts runs over buffers whose borders
    # within a row depend on the rows before it.
    wide = np.ascontiguousarray(array[block], np.float64)
    squares[block] = np.einsum('nd,nd->n', wide, wide)
  return np.sqrt(squares)
