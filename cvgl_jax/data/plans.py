"""Who meets whom in a batch: epoch plans as integer arrays.

A plan turns the splits of every view (their columns, no picture) into an array
[steps, batch, slots] of row numbers, one slot a view. It is a pure function of
(seed, epoch), the same on every process; `stream` executes it.

* `IndependentViews`: every view is shuffled on its own (University-1652).
* `Pairs`: one picture of each view of the same place, a fixed number of times
  per place and epoch.
* `AllViews`: an epoch sees every picture of one view, each with pictures of
  the same place of the other views.
* `limit_views`: the subsets with fewer drone pictures a building.

Plans that need to know what looks alike: `global_mining`, `neighbour_batches`;
one with several pictures of a view in a row: `peer_batches`.

Sources: layumi/University1652-Baseline `train.py` (epoch of four zipped
loaders), `prepare_limit_view.py`; the mixing of `Pairs` and `AllViews` is the
curveball trade of Strona et al., Nature Communications 5:4114 (2014).
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

# prepare_limit_view.py: drone pictures kept a building -> every n-th one.
VIEW_STEPS = {54: 1, 27: 2, 18: 3, 9: 6, 3: 18, 1: 54}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndependentViews:
  """The epoch of the University-1652 baseline.

  Every view is shuffled independently and cut into batches; step k takes the
  k-th batch of each view, so the views of one step show different places, a
  place may occur twice in a batch, and the epoch ends with the view that has
  the fewest batches (satellite: 701 // 8 = 87 steps).

  Differs: the reference skips a step only when its satellite batch is
  incomplete; where another view is the shortest it also trains on that view's
  incomplete last batch. Here every batch is complete.

  Attributes:
    views: one slot of the plan each.
  """

  paired: ClassVar[bool] = False  # row i of the views: different places
  mining: ClassVar[str] = ''
  views: tuple[str, ...]

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Complete batches of the shortest view.

    Args:
      splits: view -> split; its `place`, int [N], is looked at.
      batch_size: pictures of each view in a step.

    Raises:
      ValueError: a view is absent or smaller than one batch.
    """
    counts = {view: places(splits, view).size for view in self.views}
    check_batch(batch_size)
    shortest = min(counts, key=counts.get)
    if counts[shortest] < batch_size:
      raise ValueError(
        f'batch {batch_size} is larger than the {counts[shortest]} pictures '
        f'of view {shortest!r}; use at most {counts[shortest]}'
      )
    return counts[shortest] // batch_size

  def rows(
    self,
    splits: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    neighbours: Any = None,
  ) -> np.ndarray:
    """Row numbers of one epoch, int64 [steps, batch, slots].

    Args:
      splits: view -> split; its `place`, int [N], is looked at.
      batch_size: pictures of each view in a step.
      seed: of the run, not negative.
      epoch: counted from 0.
      neighbours: must be None; this plan mines nothing.

    Raises:
      ValueError: see `steps_per_epoch`.
    """
    refuse_neighbours(self, neighbours)
    steps = self.steps_per_epoch(splits, batch_size)
    columns = []
    for slot, view in enumerate(self.views):
      rng = generator(seed, epoch, f'independent/{slot}')
      shuffled = rng.permutation(places(splits, view).size)
      columns.append(shuffled[: steps * batch_size])
    grid = np.stack(columns, axis=-1).astype(np.int64)  # [steps*batch, slots]
    return grid.reshape(steps, batch_size, len(self.views))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
  """One picture of each view of the same place, a place once a batch at most.

  Every place that all views have occurs `pictures_per_place` times an epoch,
  each time with other pictures until a view has shown all of its own. What is
  left after the last complete batch is dropped (other places every epoch).
  Rows of unknown place (negative) are never used.

  Attributes:
    views: one slot of the plan each.
    pictures_per_place: uses of a place in an epoch.
  """

  paired: ClassVar[bool] = True
  mining: ClassVar[str] = ''
  views: tuple[str, ...]
  pictures_per_place: int = 1

  def __post_init__(self):
    if self.pictures_per_place < 1:
      raise ValueError(
        f'pictures_per_place is {self.pictures_per_place}; it must be 1 or more'
      )

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Complete batches of an epoch; Raises as `rows`."""
    common = _common_places(splits, self.views, batch_size)
    return common.size * self.pictures_per_place // batch_size

  def rows(
    self,
    splits: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    neighbours: Any = None,
  ) -> np.ndarray:
    """Row numbers of one epoch, int64 [steps, batch, slots].

    Args: as `IndependentViews.rows`; `batch_size` counts places.

    Raises:
      ValueError: a view is absent, no place occurs in all views, or there are
        fewer such places than `batch_size`.
    """
    refuse_neighbours(self, neighbours)
    common = _common_places(splits, self.views, batch_size)
    steps = common.size * self.pictures_per_place // batch_size
    rng = generator(seed, epoch, 'pairs')
    uses = np.full(common.size, self.pictures_per_place)
    surplus = uses.sum() - steps * batch_size  # fewer than one batch
    uses[rng.permutation(common.size)[:surplus]] -= 1
    place, use = _distinct_batches(uses, steps, batch_size, rng)
    return _pictures(splits, self.views, common, place=place, use=use, rng=rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllViews:
  """Every picture of `view` in an epoch, a place once a batch at most.

  Each picture comes with pictures of its place of the other views, which take
  turns. Pictures of places that another view lacks, and rows of unknown place
  (negative), are left out. Batches are filled up with second uses, so every
  picture is seen at least once and the shapes are constant; an epoch has
  max(ceil(pictures / batch), pictures of the largest place) steps.

  Attributes:
    views: one slot of the plan each.
    view: the one whose pictures are all used.
  """

  paired: ClassVar[bool] = True
  mining: ClassVar[str] = ''
  views: tuple[str, ...]
  view: str = 'drone'

  def __post_init__(self):
    if self.view not in self.views:
      raise ValueError(f'view {self.view!r} is not one of views {self.views}')

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Batches of an epoch; Raises as `rows`."""
    common = _common_places(splits, self.views, batch_size)
    counts = _counts(places(splits, self.view), common)
    return _steps(counts, batch_size)

  def rows(
    self,
    splits: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    neighbours: Any = None,
  ) -> np.ndarray:
    """Row numbers of one epoch, int64 [steps, batch, slots]; as `Pairs.rows`."""
    refuse_neighbours(self, neighbours)
    common = _common_places(splits, self.views, batch_size)
    uses = _counts(places(splits, self.view), common)
    steps = _steps(uses, batch_size)
    rng = generator(seed, epoch, 'all_views')
    missing = steps * batch_size - uses.sum()
    while missing > 0:
      free = rng.permutation(np.flatnonzero(uses < steps))[:missing]
      uses[free] += 1
      missing -= free.size
    place, use = _distinct_batches(uses, steps, batch_size, rng)
    return _pictures(splits, self.views, common, place=place, use=use, rng=rng)


def limit_views(split: Any, views_per_place: int) -> Any:
  """The part of a split with fewer drone pictures a building.

  The official pictures are numbered `image-01` ... `image-54` along the
  flight; every 54/n-th is kept, starting with the first.

  Args:
    split: has `name`, `path` [N] and `select(rows)` (data/sources).
    views_per_place: 54 (all), 27, 18, 9, 3 or 1.

  Returns:
    `split.select` of the kept rows.

  Raises:
    ValueError: another number, a file name without a number, or nothing kept.

  Source: layumi/University1652-Baseline `prepare_limit_view.py`.
  """
  if views_per_place not in VIEW_STEPS:
    raise ValueError(
      f'views per place {views_per_place}; expected one of {list(VIEW_STEPS)}'
    )
  every = VIEW_STEPS[views_per_place]
  if every == 1:
    return split
  kept = []
  for row, path in enumerate(split.path):
    number = re.search(r'-(\d+)[^/-]*$', str(path))
    if number is None:
      raise ValueError(
        f'{split.name}: {path!r} has no picture number as in image-07.jpeg; '
        'only numbered pictures can be thinned out (use 54 for all)'
      )
    if int(number[1]) % every == 1:
      kept.append(row)
  if not kept:
    raise ValueError(
      f'{split.name}: no picture number leaves remainder 1 when divided by '
      f'{every}; {views_per_place} views per place need the official numbering'
    )
  return split.select(np.asarray(kept, np.int64))


def slots(plan: Any) -> tuple[str, ...]:
  """The view of each slot of a plan: its `slots`, or one slot a view."""
  return tuple(getattr(plan, 'slots', plan.views))


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
  """A generator of its own for each (seed, epoch, purpose)."""
  if seed < 0 or epoch < 0:
    raise ValueError(f'seed {seed} and epoch {epoch} must not be negative')
  entropy = [seed, epoch, zlib.crc32(purpose.encode())]
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def refuse_neighbours(plan: Any, neighbours: Any) -> None:
  if neighbours is not None:
    raise ValueError(
      f'{type(plan).__name__} does not use mined neighbours; pass None'
    )


def places(splits: Mapping[str, Any], view: str) -> np.ndarray:
  if view not in splits:
    raise ValueError(f'no view {view!r}; there are {sorted(splits)}')
  return np.asarray(splits[view].place)


def check_batch(batch_size: int) -> None:
  if batch_size < 1:
    raise ValueError(f'batch size is {batch_size}; it must be 1 or more')


def _common_places(
  splits: Mapping[str, Any], views: tuple[str, ...], batch_size: int
) -> np.ndarray:
  """Sorted known places that every view has, int64 [P] with P >= batch."""
  check_batch(batch_size)
  sets = [np.unique(places(splits, view)) for view in views]
  common = sets[0][sets[0] >= 0]
  for other in sets[1:]:
    common = np.intersect1d(common, other, assume_unique=True)
  if common.size == 0:
    sizes = {view: s.size for view, s in zip(views, sets, strict=True)}
    raise ValueError(
      f'no place has pictures in every view of {views} (places: {sizes}); '
      'are the splits of the same data set?'
    )
  if common.size < batch_size:
    raise ValueError(
      f'batch {batch_size} is larger than the {common.size} places that have '
      f'pictures in every view of {views}; use at most {common.size}'
    )
  return common.astype(np.int64)


def _counts(place: np.ndarray, common: np.ndarray) -> np.ndarray:
  """Pictures of each common place, int64 [P]."""
  index = np.searchsorted(common, place[np.isin(place, common)])
  return np.bincount(index, minlength=common.size)


def _steps(uses: np.ndarray, batch_size: int) -> int:
  """Fewest batches that hold all uses, a place once a batch at most."""
  return int(max(-(-uses.sum() // batch_size), uses.max()))


def _distinct_batches(
  uses: np.ndarray, steps: int, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Puts `uses[p]` uses of each place p into batches of distinct places.

  Uses in place order are dealt to the steps in turn: since no place has more
  uses than there are steps, its uses fall into different steps. That start is
  regular; curveball trades make it random: two steps pool the places that only
  one of them has and divide them at random, which keeps both distinct.

  Args:
    uses: int [P], each at most `steps`, sum = steps * batch_size.
    steps: batches.
    batch_size: places in a batch.
    rng: source of randomness.

  Returns:
    place index and number of the use of that place (0 ... uses - 1), both
    int [steps, batch].
  """
  order = rng.permutation(uses.size)
  place = np.repeat(order, uses[order])
  first = np.repeat(np.cumsum(uses[order]) - uses[order], uses[order])
  use = np.arange(place.size) - first
  grid = np.arange(place.size).reshape(batch_size, steps).T
  grid = grid[rng.permutation(steps)]  # [steps, batch] numbers of uses
  rounds = math.ceil(math.log2(steps)) + 4 if uses.max() > 1 < steps else 0
  for _ in range(rounds):
    pairs = rng.permutation(steps)[: steps // 2 * 2].reshape(-1, 2)
    pool = grid[pairs].reshape(len(pairs), 2 * batch_size)
    pool = np.take_along_axis(pool, place[pool].argsort(axis=1), axis=1)
    key = rng.random(pool.shape)
    twins = place[pool[:, 1:]] == place[pool[:, :-1]]
    key[:, :-1][twins] = -1.0  # one of a shared place to each side
    key[:, 1:][twins] = 2.0
    pool = np.take_along_axis(pool, key.argsort(axis=1), axis=1)
    grid[pairs] = pool.reshape(len(pairs), 2, batch_size)
  grid = rng.permuted(grid, axis=1)
  return place[grid], use[grid]


def _pictures(
  splits: Mapping[str, Any],
  views: tuple[str, ...],
  common: np.ndarray,
  *,
  place: np.ndarray,
  use: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Row numbers [steps, batch, slots] for uses of places.

  Args:
    splits: view -> split with `place`.
    views: slots.
    common: [P] sorted places.
    place: [steps, batch] index into `common`.
    use: [steps, batch] which use of that place; the pictures of a place come
      in a random order and start again when all have been used.
    rng: source of randomness.
  """
  columns = []
  for view in views:
    rows = np.flatnonzero(np.isin(places(splits, view), common))
    index = np.searchsorted(common, places(splits, view)[rows])
    rows = rows[np.lexsort((rng.random(rows.size), index))]
    count = np.bincount(index, minlength=common.size)
    start = np.cumsum(count) - count
    columns.append(rows[start[place] + use % count[place]])
  return np.stack(columns, axis=-1).astype(np.int64)
