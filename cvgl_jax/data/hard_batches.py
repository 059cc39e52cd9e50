"""Batches out of lists of neighbours: the loops of the published samplers.

Python's own generator draws, call by call as the published code does, so that
its orders come out exactly. Items are numbers of tiles (or of places); what two
items must not share in a batch are their `marks`.

Sources: zqwlearning/FRGeo-Code `dataset/global_sampler.py` (as in
Jeff-Zilence/TransGeo2022), Skyy93/Sample4Geo
`sample4geo/dataset/{cvusa,cvact,vigor,university}.py`, method `shuffle`.
"""

import collections
import random
from collections.abc import Callable, Sequence

import numpy as np

Marks = Sequence[frozenset[int]]
# (view, rows of its split or None for all) -> features [n, D] float32.
Features = Callable[[str, np.ndarray | None], np.ndarray]

# After so many draws that were refused, one is looked for.
_TRIES = 1000


def generator(seed: int, epoch: int, purpose: str) -> random.Random:
  """Python's generator, one of its own for each (seed, epoch, purpose)."""
  if seed < 0 or epoch < 0:
    raise ValueError(f'seed {seed} and epoch {epoch} must not be negative')
  return random.Random(f'{seed}/{epoch}/{purpose}')


def with_hard_picks(
  seeds: Sequence[int],
  *,
  hard: Sequence[Sequence[int]],
  queries: Sequence[Sequence[int]],
  marks: Marks,
  taken: Marks,
  batch_size: int,
  rng: random.Random,
  choose_query: bool,
) -> list[int]:
  """Batches of which one half are seeds, the other a hard item for each.

  Args:
    seeds: items, half of all.
    hard: query -> items that look like it.
    queries: item -> queries.
    marks: item -> what may not be taken if it shall be picked.
    taken: item -> what it takes when it is in a batch; the same but for
      parity with a published mistake.
    batch_size: even.
    rng: draws a query of the seed (`choose_query`), then hard items until one
      fits.
    choose_query: False takes the first query, without a draw.

  Returns:
    Seeds of the first batch, hard items of the first batch, and so on.

  Differs: where no hard item fits, any item that does is taken (the published
  loop would never end).
  """
  half = batch_size // 2
  order: list[int] = []
  for start in range(0, len(seeds), half):
    batch = list(seeds[start : start + half])
    gone = set().union(*(taken[item] for item in batch))
    for seed in seeds[start : start + half]:
      # A query that was not seen yet has no hard items.
      of_seed = [q for q in queries[seed] if hard[q]] or queries[seed]
      query = rng.choice(of_seed) if choose_query else of_seed[0]
      pick = _fitting(hard[query], marks, gone, rng)
      if pick is None:
        pick = _any_fitting(marks, gone, batch, rng)
      batch.append(pick)
      gone |= taken[pick]
    order += batch
  return order


def spread(order: Sequence[int], size: int, rng: random.Random) -> list[int]:
  """The items in an order with no item twice in a group of `size`.

  An item that comes a second time in a group changes places with one of another
  group. Where there are too few items for that it stays.
  """
  order = list(order)
  group_of = lambda at: range(
    at // size * size, min((at // size + 1) * size, len(order))
  )
  holds = lambda item, at, but: any(
    order[i] == item for i in group_of(at) if i != but
  )
  for at in range(len(order)):
    if not holds(order[at], at, at):
      continue
    for _ in range(_TRIES):
      other = rng.randrange(len(order))
      if other // size == at // size:
        continue
      if not holds(order[other], at, at) and not holds(order[at], other, other):
        order[at], order[other] = order[other], order[at]
        break
  return order


def with_neighbours(
  items: Sequence[int],
  lists: Sequence[Sequence[int]] | None,
  *,
  batch_size: int,
  select: int,
  reach: int,
  rng: random.Random,
  marks: Marks | None = None,
  give_up: int | None = None,
) -> np.ndarray:
  """Batches of random pairs, each followed by pairs of its neighbours.

  Of the first `reach` neighbours of an item the nearest `select` // 2 join its
  batch, and as many of the others, at random. A pair is used once, an item is
  in a batch once.

  Args:
    items: [n] the item of each pair.
    lists: item -> items, the nearest first; None for no neighbours.
    batch_size: at most the number of items.
    select: neighbours that join.
    reach: neighbours that are looked at.
    rng: shuffles the pairs, then the farther neighbours of each pair, then the
      pairs of each neighbour.
    marks: item -> what nothing else in its batch may have; None: itself.
    give_up: end after so many refused pairs in a row, as the published code
      does (1024; University-1652: 512), which loses some. None makes n //
      batch_size batches: where the pairs that are left do not fit the batch
      that is due, used ones fill it up.

  Returns:
    int64 [batches, batch_size] numbers of pairs.

  Source: Skyy93/Sample4Geo, `shuffle` of the four data sets.
  """
  filling = _Filling(items, marks, batch_size)
  lists = [list(one) for one in lists] if lists is not None else None
  order = list(range(len(items)))
  rng.shuffle(order)
  pool, refused, returned = collections.deque(order), 0, 0
  wanted = len(items) // batch_size
  while pool:
    pair = pool.popleft()
    item = items[pair]
    if not filling.used[pair] and filling.fits(item):
      filling.add(pair)
      refused = returned = 0
      if lists is not None and not filling.full:
        window = lists[item][:reach]
        half = select // 2
        far = window[half:]
        rng.shuffle(far)
        for other in window[:half] + far[:half]:
          if filling.full:
            break
          if filling.add_one_of(other, rng):
            lists[item].remove(other)
    else:
      refused += 1
      if not filling.used[pair]:
        pool.append(pair)
        returned += 1
    if give_up is not None:
      if refused >= give_up:
        break
    elif pool and returned >= len(pool):  # all that is left was looked at
      filling.fill_up(rng)
      refused = returned = 0
    if filling.full:
      filling.close()
      if give_up is None and len(filling.batches) == wanted:
        break
  while give_up is None and len(filling.batches) < wanted:
    filling.fill_up(rng)
    filling.close()
  return np.array(filling.batches, np.int64).reshape(-1, batch_size)


class _Filling:
  """Complete batches, and the one that is being filled.

  Attributes:
    used: pair -> whether it is in a batch.
    batches: complete ones, lists of pairs.
  """

  def __init__(self, items: Sequence[int], marks: Marks | None, size: int):
    self.used = [False] * len(items)
    self.batches: list[list[int]] = []
    self._items, self._marks, self._size = items, marks, size
    self._unused: dict[int, list[int]] = {}
    for pair, item in enumerate(items):
      self._unused.setdefault(item, []).append(pair)
    self._start()

  def _start(self) -> None:
    self._batch: list[int] = []
    self._inside: set[int] = set()
    self._taken: set[int] = set()

  @property
  def full(self) -> bool:
    return len(self._batch) >= self._size

  def fits(self, item: int) -> bool:
    if item in self._inside:
      return False
    return self._marks is None or self._marks[item].isdisjoint(self._taken)

  def add(self, pair: int) -> None:
    item = self._items[pair]
    self._batch.append(pair)
    self._inside.add(item)
    if not self.used[pair]:
      self.used[pair] = True
      self._unused[item].remove(pair)
    if self._marks is not None:
      self._taken |= self._marks[item]

  def add_one_of(self, item: int, rng: random.Random) -> bool:
    """Adds an unused pair of an item that fits; whether there is one."""
    if not self.fits(item):
      return False
    pairs = self._unused[item]
    rng.shuffle(pairs)
    if pairs:
      self.add(pairs[0])
      return True
    return False

  def fill_up(self, rng: random.Random) -> None:
    """Completes the batch with any pairs that fit, used ones included."""
    tries = _TRIES
    while not self.full:
      pair = rng.randrange(len(self._items))
      item = self._items[pair]
      tries -= 1
      if item in self._inside or (tries > 0 and not self.fits(item)):
        continue
      self.add(pair)

  def close(self) -> None:
    self.batches.append(self._batch)
    self._start()


def _fitting(
  items: Sequence[int], marks: Marks, taken: set[int], rng: random.Random
) -> int | None:
  """One of `items`, drawn again while it does not fit; None if none does."""
  fits = lambda item: marks[item].isdisjoint(taken)
  for _ in range(_TRIES if items else 0):
    item = rng.choice(items)
    if fits(item):
      return item
  fitting = [item for item in items if fits(item)]
  return rng.choice(fitting) if fitting else None


def _any_fitting(
  marks: Marks, taken: set[int], batch: Sequence[int], rng: random.Random
) -> int:
  """Any item that fits; where none does, any that is not in the batch."""
  everything = range(len(marks))
  item = _fitting(everything, marks, taken, rng)
  if item is None:
    item = rng.choice(sorted(set(everything) - set(batch)) or everything)
  return item
