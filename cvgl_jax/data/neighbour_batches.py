"""The plan of Sample4Geo: a random pair and its neighbours.

Neighbours on the ground in the first epochs, then by similarity. How a plan
gets its neighbours: see `global_mining`.

Source: Skyy93/Sample4Geo `sample4geo/dataset/`, `train_*.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from cvgl_jax.data import hard_batches, relations
from cvgl_jax.data import neighbours as neighbours_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourBatches:
  """The batches of Sample4Geo; every tile at most once a batch.

  A random pair is followed by pairs of its neighbours: of the `reach` nearest
  the first `select` // 2, and as many of the others at random; then by another
  random pair, until the batch is full. Neighbours are near on the ground
  (`gps`) until the network has learnt something; every `refresh_epochs` all
  training pictures are embedded anew (`mining = 'embed'`), and similar ones are
  neighbours (dynamic similarity sampling). With neither this is the sampling
  for University-1652: random pairs of different places.

  Attributes:
    views: of the queries, of the references.
    select: neighbours of a pair that join its batch.
    reach: neighbours that they are taken from.
    gps: neighbours on the ground first; else random batches. Of metres (CVACT)
      if the queries know theirs; of degrees of the tile (VIGOR) where the truth
      is listed, else of the query (CVUSA).
    gps_haversine: 'published' takes degrees for radians (reference-bug).
    refresh_epochs: neighbours by similarity after so many epochs, and again
      after so many; 0: never.
    similar_at_start: by similarity from the first epoch on (zero shot).
    exclude_overlaps: no two tiles in a batch that one query lists (VIGOR's
      semi-positives, which are negatives otherwise).

  Differs: an epoch has always pairs // batch steps, see
  `hard_batches.with_neighbours`.
  """

  paired: ClassVar[bool] = True
  views: tuple[str, str] = ('panorama', 'satellite')
  select: int = 64
  reach: int = 128
  gps: bool = True
  gps_haversine: neighbours_lib.Haversine = 'correct'
  refresh_epochs: int = 4
  similar_at_start: bool = False
  exclude_overlaps: bool = False

  def __post_init__(self):
    if not 0 <= self.select <= self.reach or self.reach < 1:
      raise ValueError(
        f'select {self.select} must be 0 to reach, reach {self.reach} at least 1'
      )
    if self.refresh_epochs < 0:
      raise ValueError(f'refresh_epochs is {self.refresh_epochs}; at least 0')

  @property
  def mining(self) -> Literal['', 'embed']:
    """What `mining` has to do: embed all pictures where the plan says so."""
    any_of = self.gps or self.refresh_epochs or self.similar_at_start
    return 'embed' if any_of else ''

  def neighbours_shape(self, splits: Mapping[str, Any]) -> tuple[int, int]:
    """Of `neighbours`: (tiles, reach)."""
    return len(relations.tiles(splits, self.views).reference), self.reach

  def find_neighbours(
    self,
    splits: Mapping[str, Any],
    features: hard_batches.Features,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
  ) -> np.ndarray | None:
    """The other tiles near or like each tile, for `rows` from an epoch on.

    Args: as `rows`.
      features: (view, rows) -> [n, D] float32 of unit norm, of the weights as
        they are.

    Returns:
      int32 [P, reach], the nearest first, -1 where there are no more; None:
      those of the epoch before are still good.

    Raises:
      ValueError: a picture has no coordinates.
    """
    del batch_size, seed
    start = epoch == 0
    by_features = self.similar_at_start if start else self._is_refresh(epoch)
    if not by_features and not (start and self.gps):
      return None
    tiles = relations.tiles(splits, self.views)
    if not by_features:
      return self._near(splits, tiles)
    query, reference = self.views
    # Of several queries of a tile the last one's, as published.
    return neighbours_lib.most_similar(
      features(query, tiles.queries.max(axis=1)),
      features(reference, tiles.reference),
      k=self.reach,
      own=np.arange(len(tiles.reference)),
    )

  def _is_refresh(self, epoch: int) -> bool:
    return self.refresh_epochs > 0 and epoch % self.refresh_epochs == 0

  def _near(
    self, splits: Mapping[str, Any], tiles: relations.Tiles
  ) -> np.ndarray:
    query, reference = (splits[view] for view in self.views)
    first = tiles.queries[:, 0]
    kind, points = 'degrees', query.latlon_deg[first]
    if getattr(query, 'utm_m', None) is not None:
      kind, points = 'metres', query.utm_m[first]
    elif tiles.listed:
      points = reference.latlon_deg[tiles.reference]
    try:
      return neighbours_lib.nearest_places(
        points,
        k=self.reach,
        coordinates=kind,
        haversine=self.gps_haversine,
      )
    except ValueError as error:
      raise ValueError(
        f'config.plan.gps: {query.name}: {error}; build the data set with its '
        'coordinates or set config.plan.gps=False'
      ) from error

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Complete batches of an epoch; Raises as `rows`."""
    tiles = relations.tiles(splits, self.views)
    tiles.check_batch(batch_size)
    return int((tiles.tile >= 0).sum()) // batch_size

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

    Args: as `GlobalMining.rows`.
      neighbours: of `find_neighbours`; None: random batches.

    Raises:
      ValueError: a view is absent, or there are fewer tiles than `batch_size`.
    """
    tiles = relations.tiles(splits, self.views)
    tiles.check_batch(batch_size)
    query = np.flatnonzero(tiles.tile >= 0)
    lists = None
    if neighbours is not None:
      lists = relations.without_padding(neighbours)
    pairs = hard_batches.with_neighbours(
      tiles.tile[query].tolist(),
      lists,
      batch_size=batch_size,
      select=self.select,
      reach=self.reach,
      rng=hard_batches.generator(seed, epoch, 'neighbours'),
      marks=tiles.shown_by() if self.exclude_overlaps else None,
    )
    rows = query[pairs]
    return np.stack([rows, tiles.reference[tiles.tile[rows]]], axis=-1)
