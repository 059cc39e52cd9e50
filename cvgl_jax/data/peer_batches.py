"""The plan of PLCD: a picture and its peers, drone views from all around.

Source: ZelongZeng/PLCD `multi_folder.py`, `train_PL_G2D.py`, `train_D2S.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from cvgl_jax.data import flight, plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerBatches:
  """Every picture of the anchors' view once, each with `groups` drone pictures.

  A flight has `rounds` rounds of r pictures each; picture v of a place (from 0,
  as they were taken) looks from direction v mod r, whatever its altitude, and
  is in group (v mod r) groups // r. Of a flight of 54, group i is pictures
  1, 2, 3, 19, 20, 21, 37, 38, 39 (from 1), plus 3 i: a sector of 60 degrees.
  An anchor comes with one picture of its place from each group, all drawn
  independently.

  Anchors are shuffled; what is left after the last complete batch is dropped
  (other anchors every epoch). A place may occur several times in a batch, with
  different anchors. Anchors of places without drone pictures, and those of
  unknown place (negative), are left out.

  Attributes:
    views: of the anchors, of the peers.
    groups: directions that the peers are taken from; peers of an anchor.
    rounds: of a flight.
  """

  paired: ClassVar[bool] = True
  mining: ClassVar[str] = ''
  views: tuple[str, str] = ('street', 'drone')
  groups: int = 6
  rounds: int = 3

  def __post_init__(self):
    if len(self.views) != 2 or self.views[0] == self.views[1]:
      raise ValueError(
        f'views {self.views}; expected two different ones: of the anchors and '
        'of the peers'
      )
    for name in ('groups', 'rounds'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name} is {getattr(self, name)}; it must be 1 or more'
        )

  @property
  def slots(self) -> tuple[str, ...]:
    """The view of each slot: the anchor's, then that of every peer."""
    anchor, peer = self.views
    return (anchor, *(peer,) * self.groups)

  def steps_per_epoch(self, splits: Mapping[str, Any], batch_size: int) -> int:
    """Complete batches of an epoch; Raises as `rows`."""
    anchors = self._anchors(splits, batch_size)
    place = plans.places(splits, self.views[0])
    self._candidates(splits, np.unique(place[anchors]))  # only to be checked
    return len(anchors) // batch_size

  def rows(
    self,
    splits: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    neighbours: Any = None,
  ) -> np.ndarray:
    """Row numbers of one epoch, int64 [steps, batch, 1 + groups].

    Args:
      splits: view -> split; `place` is looked at, and of the peers `frame` and
        `path`.
      batch_size: anchors in a step.
      seed: of the run, not negative.
      epoch: counted from 0.
      neighbours: must be None; this plan mines nothing.

    Raises:
      ValueError: a view is absent; fewer anchors than `batch_size`; the drone
        pictures of a place have no order, or are not as many as those of the
        other places or not a multiple of `rounds` x `groups`.
    """
    plans.refuse_neighbours(self, neighbours)
    anchors = self._anchors(splits, batch_size)
    place = plans.places(splits, self.views[0])
    used = np.unique(place[anchors])
    candidates = self._candidates(splits, used)  # [P, groups, V / groups]
    steps = len(anchors) // batch_size
    rng = plans.generator(seed, epoch, 'peers')
    chosen = rng.permutation(anchors)[: steps * batch_size]
    draw = rng.integers(0, candidates.shape[2], (len(chosen), self.groups))
    of_place = np.searchsorted(used, place[chosen])
    peers = candidates[of_place[:, None], np.arange(self.groups)[None], draw]
    grid = np.concatenate([chosen[:, None], peers], axis=1).astype(np.int64)
    return grid.reshape(steps, batch_size, 1 + self.groups)

  def _anchors(self, splits: Mapping[str, Any], batch_size: int) -> np.ndarray:
    """Rows of the anchors of an epoch, int64 [A] with A >= batch."""
    plans.check_batch(batch_size)
    anchor, peer = self.views
    place = plans.places(splits, anchor)
    has_peers = np.isin(place, plans.places(splits, peer))
    anchors = np.flatnonzero((place >= 0) & has_peers)
    if not place.size:
      raise ValueError(
        f'view {anchor!r} has no pictures at all: is its folder empty?'
      )
    if not anchors.size:
      raise ValueError(
        f'none of the {place.size} pictures of view {anchor!r} is of a place '
        f'that has pictures of view {peer!r}; are the splits of the same data '
        'set?'
      )
    if anchors.size < batch_size:
      raise ValueError(
        f'batch {batch_size} is larger than the {anchors.size} pictures of '
        f'view {anchor!r} whose place has pictures of view {peer!r}; use at '
        f'most {anchors.size}'
      )
    return anchors

  def _candidates(
    self, splits: Mapping[str, Any], used: np.ndarray
  ) -> np.ndarray:
    """Rows of the peers of places [P], int64 [P, groups, V / groups]."""
    split = splits[self.views[1]]
    rows = np.flatnonzero(np.isin(split.place, used))
    place = np.asarray(split.place)[rows]
    number = flight.numbers(split, rows)
    order = np.lexsort((number, place))
    rows, place, number = rows[order], place[order], number[order]
    views = self._views_per_place(split.name, place)
    twice = (place[1:] == place[:-1]) & (number[1:] == number[:-1])
    if twice.any():
      first = rows[np.flatnonzero(twice)[0]]
      second = rows[np.flatnonzero(twice)[0] + 1]
      raise ValueError(
        f'{split.name}: {split.path[first]!r} and {split.path[second]!r} are the '
        'same view of a flight; every picture of a place needs a number of its '
        'own'
      )
    per_round = views // self.rounds
    group = np.arange(views) % per_round * self.groups // per_round
    members = group.argsort(kind='stable').reshape(self.groups, -1)
    return rows.reshape(len(used), views)[:, members]

  def _views_per_place(self, name: str, place: np.ndarray) -> int:
    """V, the number of pictures of each place; `place` is sorted."""
    places, counts = np.unique(place, return_counts=True)
    usual = int(np.bincount(counts).argmax())
    unit = self.rounds * self.groups
    rule = (
      f'every place needs the same number, a multiple of {unit} ({self.rounds} '
      f'rounds, each in {self.groups} groups)'
    )
    other = np.flatnonzero(counts != usual)
    if other.size:
      raise ValueError(
        f'{name}: place {places[other[0]]} has {counts[other[0]]} pictures, '
        f'{len(places) - other.size} of {len(places)} places have {usual}; '
        f'{rule}'
      )
    if usual % unit:
      raise ValueError(
        f'{name}: places have {usual} pictures, such as place {places[0]}; '
        f'{rule}; change config.plan.groups or the data set'
      )
    return usual
