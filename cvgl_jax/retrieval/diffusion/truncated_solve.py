"""Truncated Laplacian systems of many nodes, by conjugate gradients.

Node i has the system A_i x = e_0 with A_i = L[t_i, t_i], t_i its T nearest nodes
and e_0 the unit vector of the node itself. Neighbouring nodes have almost the
same t_i, so they are solved in blocks: U is the union of a block's t_i, S_U the
dense coupling inside it, and one product S_U P serves all nodes of the block.
Each node's vectors are masked to its own t_i after every product, which makes
the systems exactly the truncated ones. The work is one dense matrix product of
[U, U] by [U, block] an iteration, 2 * U^2 flop a node.

Two exact short cuts: nodes that no edges inside U join to the block stay at 0
and are left out of U, which is about 1.3 T then for blocks of 32; and a node
without any edge has the solution e_0.

Memory on each device: 4 * U^2 bytes of a block (U is at most `_WIDEST` * T, or T
for single nodes), times 16 blocks at a time off the CPU, times 3 in flight.

Source: PLCD `diffusion/diffusion.py` (`get_offline_result`), which slices the
sparse matrix and calls scipy's `cg` for one node after the other. Differs: the
vectors are float32, not float64 (equal within the noise of the float32 matrix).
"""

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval.diffusion import graph as graphs

# Unions are padded to multiples of this, so that few sizes are compiled.
_PAD = 128
# A block whose union is wider than this many T is split into halves.
_WIDEST = 4
# Blocks solved together: off the CPU one block is too little work.
_GROUP = {'cpu': 1}
_DEVICE_GROUP = 16
# Nodes that the direction of a cut is computed from.
_SAMPLE = 512


class Solution(NamedTuple):
  """Solutions of truncated systems.

  Attributes:
    values: [M, T] float32, in the order of each node's neighbour list.
    iterations: [M] int32, how many each node took.
    residual: [M] float32, norm of the recursive residual at the end.
  """

  values: np.ndarray
  iterations: np.ndarray
  residual: np.ndarray


def solve(
  graph: graphs.Graph,
  nodes: np.ndarray,
  *,
  iterations: int = 20,
  tolerance: float = 1e-6,
  block: int = 32,
  mesh: jax.sharding.Mesh | None = None,
) -> Solution:
  """Solves the truncated systems of nodes.

  Conjugate gradients from x = 0, each node until its residual norm is below
  `tolerance`, or for `iterations`. A node that is done is frozen while others of
  its block go on, so its solution does not depend on them.

  Args:
    graph: of `graph.build`.
    nodes: [M] int, node numbers, each once.
    iterations: at most so many.
    tolerance: of the residual norm, below 1, the norm of the right-hand side.
    block: nodes solved together. 1 solves every node in its own dense T x T
      system: the same result, slower.
    mesh: deals the blocks out to its local devices; None uses the default one.
  """
  if block < 1 or iterations < 1 or not 0 < tolerance < 1:
    raise ValueError(
      f'block={block}, iterations={iterations}, tolerance={tolerance}: expected '
      'at least 1, at least 1, and a number between 0 and 1'
    )
  size, width = graph.neighbours.shape
  edges = _edges(graph)
  devices = list(mesh.local_devices) if mesh else [None]
  platform = devices[0].platform if mesh else jax.default_backend()
  placed = [jax.device_put(edges, device) for device in devices]
  # What a node without edges gets, after one iteration.
  solution = Solution(
    np.zeros((len(nodes), width), np.float32),
    np.ones(len(nodes), np.int32),
    np.zeros(len(nodes), np.float32),
  )
  solution.values[:, 0] = 1

  def store(places, result):
    for filled, solved in zip(solution, map(np.asarray, result), strict=True):
      for rows, part in zip(places, solved, strict=False):  # Last: padding.
        filled[rows] = part[: len(rows)]

  groups = _groups(
    _blocks(graph, nodes, edges[0], block),
    group=_GROUP.get(platform, _DEVICE_GROUP),
    padding=size,
  )
  pending = collections.deque()
  for turn, (places, members, unions) in enumerate(groups):
    lists = graph.neighbours[nodes[members]]
    device = turn % len(devices)
    lists, unions = jax.device_put((lists, unions), devices[device])
    result = _solve_group(lists, unions, placed[device], iterations, tolerance)
    pending.append((places, result))
    if len(pending) > 2 * len(devices):
      store(*pending.popleft())
  while pending:
    store(*pending.popleft())
  return solution


def _edges(graph: graphs.Graph) -> tuple[np.ndarray, np.ndarray]:
  """Columns [N + 1, kd] int32 and values [N + 1, kd] float32 of the coupling.

  N stands for no node: it is the column of what is no edge, and its own row.
  """
  size = len(graph)
  linked = np.full((size + 1, graph.kd), size, np.int32)
  columns = graph.neighbours[:, : graph.kd]
  np.copyto(linked[:-1], columns, where=graph.coupling > 0)
  values = np.zeros((size + 1, graph.kd), np.float32)
  values[:-1] = graph.coupling
  return linked, values


def bisect(features: np.ndarray, *, size: int) -> list[np.ndarray]:
  """Splits rows [N, D] into compact sets of `size` rows, the last one less.

  Sets are halved again and again. Returns row numbers; every row is in one set.
  """
  done = []
  todo = [np.arange(len(features))] if len(features) else []
  while todo:
    rows = todo.pop()
    if len(rows) <= size:
      done.append(rows)
      continue
    part = features[rows]
    position = part @ _direction(part[:: max(1, len(rows) // _SAMPLE)])
    # Whole sets on the left, so that only the last one can be short.
    cut = max(1, round(len(rows) / 2 / size)) * size
    order = np.argpartition(position, cut - 1)
    todo += [rows[order[cut:]], rows[order[:cut]]]
  return done


def _direction(sample: np.ndarray) -> np.ndarray:
  """The axis [D] between the means of two compact halves of rows [n, D].

  2-means with halves of equal size, from two rows that are far apart.
  """
  one = sample[np.argmin(sample @ sample.mean(axis=0))]
  other = sample[np.argmin(sample @ one)]
  direction = other - one
  half = len(sample) // 2
  for _ in range(4):
    order = np.argsort(sample @ direction, kind='stable')
    low, high = sample[order[:half]], sample[order[half:]]
    direction = high.mean(axis=0) - low.mean(axis=0)
  return direction


def _blocks(
  graph: graphs.Graph, nodes: np.ndarray, linked: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(places in `nodes`, U as node numbers) of every block of linked nodes."""
  places = np.flatnonzero(graph.degree[nodes] > 0)
  features = graph.features[nodes[places]]
  todo = collections.deque(places[i] for i in bisect(features, size=size))
  while todo:
    places = todo.popleft()
    union = _reached(nodes[places], graph.neighbours, linked)
    if len(places) > 1 and len(union) > _WIDEST * graph.n_trunc:
      features = graph.features[nodes[places]]
      halves = bisect(features, size=-(-len(places) // 2))
      todo.extend(places[i] for i in halves)
      continue
    yield places, union


def _reached(
  nodes: np.ndarray, neighbours: np.ndarray, linked: np.ndarray
) -> np.ndarray:
  """Nodes of the lists of `nodes` that edges inside these lists lead to."""
  outside = np.ones(len(linked), bool)
  outside[neighbours[nodes]] = False
  reached = [nodes]
  outside[nodes] = True
  while len(reached[-1]):
    ahead = linked[reached[-1]].ravel()
    ahead = np.unique(ahead[~outside[ahead]])
    outside[ahead] = True
    reached.append(ahead)
  return np.sort(np.concatenate(reached))


def _groups(
  blocks: Iterator[tuple[np.ndarray, np.ndarray]], *, group: int, padding: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
  """Puts blocks of the same padded sizes together.

  Yields (places of at most `group` blocks, the same as [group, B], their unions
  as [group, U] int32). Padding repeats the last node, and the last block.
  """
  waiting = collections.defaultdict(list)
  for places, union in blocks:
    # Powers of two and multiples of `_PAD`: few sizes to compile.
    members = np.resize(places[-1], 1 << (len(places) - 1).bit_length())
    members[: len(places)] = places
    padded = np.full(-(-len(union) // _PAD) * _PAD, padding, np.int32)
    padded[: len(union)] = union
    items = waiting[len(members), len(padded)]
    items.append((places, members, padded))
    if len(items) == group:
      yield _stacked(items, group)
      items.clear()
  for items in waiting.values():
    if items:
      yield _stacked(items, group)


def _stacked(items, group):
  places, members, unions = map(list, zip(*items, strict=True))
  missing = group - len(items)
  members += members[-1:] * missing
  unions += unions[-1:] * missing
  return places, np.stack(members), np.stack(unions)


@jax.jit
def _solve_group(lists, unions, edges, iterations, tolerance):
  """`_solve_block` of G blocks; every result has G in front."""
  if len(lists) == 1:  # Batched operations of one block are slower on a CPU.
    result = _solve_block(lists[0], unions[0], edges, iterations, tolerance)
    return jax.tree.map(lambda a: a[None], result)
  batched = jax.vmap(_solve_block, in_axes=(0, 0, None, None, None))
  return batched(lists, unions, edges, iterations, tolerance)


def _solve_block(
  lists: jax.Array,
  union: jax.Array,
  edges: tuple[jax.Array, jax.Array],
  iterations: jax.Array,
  tolerance: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Solves B nodes.

  Args:
    lists: [B, T] int32, neighbour lists of the nodes.
    union: [U] int32, nodes that are not 0 for certain; N is padding.
    edges: columns [N + 1, kd] int32 and values [N + 1, kd] float32 of the
      coupling; N and 0 where there is no edge.

  Returns:
    Values [B, T], iterations [B] and residual norms [B].
  """
  linked, coupling = edges
  size, width = len(linked) - 1, len(union)
  # Where each node stands in the union; U (out of bounds) where it does not.
  table = jnp.full(size + 1, width, jnp.int32)
  table = table.at[union].set(jnp.arange(width, dtype=jnp.int32))
  row = jnp.arange(width)[:, None]
  column = table[linked[union]]  # [U, kd]
  dense = jnp.zeros((width, width), jnp.float32)
  dense = dense.at[row, column].set(coupling[union], mode='drop')
  place = table[lists].T  # [T, B]
  node = jnp.arange(len(lists))
  empty = jnp.zeros((width, len(lists)), jnp.float32)
  mask = empty.at[place, node[None]].set(1, mode='drop')
  right = empty.at[place[0], node].set(1)

  def product(p):
    """A p of every node: its own truncated system."""
    mixed = jnp.einsum('uv,vb->ub', dense, p, precision='highest')
    return (p - mixed) * mask

  values, count, residual = conjugate_gradients(
    product, right, iterations=iterations, tolerance=tolerance
  )
  values = jnp.take_along_axis(values, place, axis=0, mode='fill', fill_value=0)
  return values.T, count, residual


def conjugate_gradients(
  product: Callable[[jax.Array], jax.Array],
  right: jax.Array,
  *,
  iterations: int | jax.Array,
  tolerance: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Solves A x = right for many right-hand sides at once, from x = 0.

  Args:
    product: A applied to [U, B], column by column.
    right: [U, B] right-hand sides.
    iterations: at most so many.
    tolerance: a column stops once the norm of its recursive residual is below.

  Returns:
    x [U, B], iterations [B] int32, residual norms [B].

  Source: the recurrence of scipy's `cg`, whose results at the cap depend on it.
  """
  limit = jnp.float32(tolerance) ** 2

  def squared(a):
    return jnp.sum(a * a, axis=0)

  def unfinished(carry):
    _, _, _, rho, _, _, step = carry
    return (step < iterations) & jnp.any(rho >= limit)

  def advance(carry):
    x, r, p, rho, rho_before, count, step = carry
    # A finished column stays as it is; without the mask an isolated node, which
    # is exact after one step, would become 0 / 0.
    active = rho >= limit
    p = r + jnp.where(active, rho / rho_before, 0)[None] * p
    q = product(p)
    curvature = jnp.sum(p * q, axis=0)
    length = jnp.where(active, rho / jnp.where(active, curvature, 1), 0)[None]
    r = r - length * q
    return (
      x + length * p,
      r,
      p,
      squared(r),
      jnp.where(active, rho, rho_before),
      count + active,
      step + 1,
    )

  zero = jnp.zeros_like(right)
  rho = squared(right)
  # The first direction is the residual: nothing is carried over from before.
  before = jnp.full_like(rho, jnp.inf)
  count = jnp.zeros(rho.shape, jnp.int32)
  carry = (zero, right, zero, rho, before, count, 0)
  x, _, _, rho, _, count, _ = jax.lax.while_loop(unfinished, advance, carry)
  return x, count, jnp.sqrt(rho)
