"""The plan of FRGeo and TransGeo: random pairs, and for each a hard one.

Half of a batch are pairs at random; for each of them comes one of the pairs
whose reference looks most like its query.

A plan that mines has `mining`, which says what features it wants ('bank': those
of the last visit of every picture; 'embed': new ones), `find_neighbours`, which
is asked at the start of every epoch, and `neighbours_shape`. What it finds comes
back to `rows` as `neighbours`; with the same neighbours a plan is a pure
function of (seed, epoch), as all plans are.

Sources: zqwlearning/FRGeo-Code and Jeff-Zilence/TransGeo2022
`dataset/global_sampler.py`.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from cvgl_jax.data import hard_batches, plans, relations
from cvgl_jax.data import neighbours as neighbours_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalMining:
  """The sampler of TransGeo and FRGeo.

  The first epoch is a random order. Then features of the last visit of every
  picture, kept in the train state (`mining = 'bank'`), give each query its
  `hardest` most similar references of a random `pool`; batches are half seeds,
  in random order without repetition, half hard picks, one for each seed.

  Where a tile has several queries (VIGOR), the order holds tiles, each `visits`
  times, and the query shown is drawn at random.

  Attributes:
    views: of the queries, of the references.
    hardest: references that a hard pick is drawn from; 0: no mining.
    pool: tiles that are searched in an epoch, at random.
    start_epoch: first epoch with hard picks.
    visits: times that a tile enters the order of an epoch; 0: as published, 2
      where tiles have several queries, else 1.
    order: 'published' is the published order, whatever the seed of the run.
    overlap_check: a hard pick may not share a reference that shows the place of
      one of its queries, semi-positives included, with what is in its batch;
      nor is a tile twice in a batch. 'published' (reference-bug): in VIGOR the
      batch has the labels of the queries with the numbers of its tiles, which
      are unrelated, so that overlaps and tiles do come twice.
    bank_dtype: of the features in the train state.

  Differs: what an incomplete last batch leaves out changes with the epoch
  ('published': it is always the same pairs, which are no seeds then); a query
  that was not seen yet has no hard references (published: the last ones); where
  nothing hard fits, something else is picked (published: never ends).
  """

  paired: ClassVar[bool] = True
  views: tuple[str, str] = ('panorama', 'satellite')
  hardest: int = 100
  pool: int = 40_000
  start_epoch: int = 1
  visits: int = 0
  order: Literal['seeded', 'published'] = 'seeded'
  overlap_check: Literal['labels', 'published'] = 'labels'
  bank_dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    for name, least in (
      ('hardest', 0),
      ('pool', 1),
      ('start_epoch', 1),
      ('visits', 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(f'{name} is {getattr(self, name)}; at least {least}')

  @property
  def mining(self) -> Literal['', 'bank']:
    """Features of the last visit of every picture, kept in the train state."""
    return 'bank' if self.hardest else ''

  def neighbours_shape(self, splits: Mapping[str, Any]) -> tuple[int, int]:
    """Of `neighbours`: (queries, hardest)."""
    return len(splits[self.views[0]].place), self.hardest

  def find_neighbours(
    self,
    splits: Mapping[str, Any],
    features: hard_batches.Features,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
  ) -> np.ndarray | None:
    """The tiles that look most like each query, for `rows` of an epoch.

    Args: as `rows`.
      features: (view, rows or None for all) -> [n, D] float32 of the last
        visits, zero for what was not visited yet.

    Returns:
      int32 [N, hardest], the most similar first, the query's own tile among
      them, -1 where the pool has no more; None: the epoch needs none.
    """
    if not self._mines(epoch):
      return None
    tiles = relations.tiles(splits, self.views)
    pool = np.array(self._draws(tiles, batch_size, seed, epoch)[2], np.int32)
    query, reference = self.views
    asking = features(query, None)
    # What was not seen yet looks like nothing; published: like the last rows.
    seen = asking.any(axis=1) | (self.order == 'published')
    found = np.full((len(asking), self.hardest), -1, np.int32)
    if seen.any():
      found[seen] = neighbours_lib.most_similar(
        asking if seen.all() else asking[seen],
        features(reference, tiles.reference[pool]),
        k=self.hardest,
        ties='higher',  # as published: of a stable ascending sort the end
      )
    return np.where(found >= 0, pool[found], -1)

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Complete batches of an epoch; Raises as `rows`."""
    tiles = relations.tiles(splits, self.views)
    tiles.check_batch(batch_size)
    if self.hardest and batch_size % 2:
      raise ValueError(
        f'batch {batch_size} is odd, but half of a batch are seeds, half hard '
        f'picks; use {batch_size + 1} or hardest = 0'
      )
    return len(tiles.reference) * self._visits(tiles) // batch_size

  def rows(
    self,
    splits: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    neighbours: np.ndarray | None = None,
  ) -> np.ndarray:
    """Row numbers of one epoch, int64 [steps, batch, 2].

    Args:
      splits: view -> split, see `relations.tiles`.
      batch_size: pairs; even.
      seed: of the run, not negative.
      epoch: counted from 0.
      neighbours: of `find_neighbours`; looked at from `start_epoch` on.

    Raises:
      ValueError: a view is absent, there are fewer tiles than `batch_size`,
        which is odd, or no neighbours where they are needed.
    """
    steps = self.steps_per_epoch(splits, batch_size)
    tiles = relations.tiles(splits, self.views)
    several = self._several(tiles)
    rng, order, _ = self._draws(tiles, batch_size, seed, epoch)
    mines = self._mines(epoch)
    group = batch_size // 2 if mines else batch_size
    order = order[: steps * group]
    if several and self.overlap_check == 'labels':
      order = hard_batches.spread(order, group, rng)
    if mines:
      if neighbours is None:
        raise ValueError(f'epoch {epoch} needs neighbours: find_neighbours')
      order = hard_batches.with_hard_picks(
        order,
        # Published: in ascending similarity.
        hard=relations.without_padding(np.asarray(neighbours)[:, ::-1]),
        queries=relations.without_padding(tiles.queries),
        marks=tiles.shown_by(),
        taken=self._taken(tiles),
        batch_size=batch_size,
        rng=rng,
        choose_query=several,
      )
    order = np.array(order, np.int64).reshape(steps, batch_size)
    query = _shown(tiles.queries, order, seed=seed, epoch=epoch)
    return np.stack([query, tiles.reference[order]], axis=-1)

  def _taken(self, tiles: relations.Tiles) -> list[frozenset[int]]:
    """Of every tile in a batch, the references that no pick may share."""
    if self.overlap_check == 'published' and tiles.listed:
      # reference-bug: the labels of the query that has the tile's number.
      labels = relations.without_padding(tiles.labels)
      return [frozenset(labels[tile]) for tile in range(len(tiles.reference))]
    return tiles.shown_by()

  def _mines(self, epoch: int) -> bool:
    return self.hardest > 0 and epoch >= self.start_epoch

  def _several(self, tiles: relations.Tiles) -> bool:
    """Whether tiles may have several queries: the form for VIGOR."""
    return tiles.listed or tiles.queries.shape[1] > 1

  def _visits(self, tiles: relations.Tiles) -> int:
    return self.visits or (2 if self._several(tiles) else 1)

  def _draws(
    self, tiles: relations.Tiles, batch_size: int, seed: int, epoch: int
  ) -> tuple[random.Random, list[int], list[int]]:
    """The generator after the first draws; the order of tiles, the pool.

    `find_neighbours` and `rows` make the same draws.
    """
    rng = hard_batches.generator(seed, epoch, 'order')
    count = len(tiles.reference)
    length = count * self._visits(tiles)
    if self.order == 'published':
      rng = random.Random(7 + epoch)
      length = length // batch_size * batch_size
    order = [i % count for i in range(length)]
    rng.shuffle(order)
    pool = []
    if self._mines(epoch):
      pool = rng.sample(range(count), min(self.pool, count))
    return rng, order, pool


def _shown(
  queries: np.ndarray, order: np.ndarray, *, seed: int, epoch: int
) -> np.ndarray:
  """One of the queries of each tile of an order, at random."""
  rng = plans.generator(seed, epoch, 'shown')
  count = (queries >= 0).sum(axis=1)[order]
  return queries[order, rng.integers(0, count)]
