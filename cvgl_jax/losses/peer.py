"""Peer learning: who is compared with whom in a batch, ranking, distillation.

An anchor (a street or a satellite picture) comes with n drone pictures of its
place, its peers: rows n k ... n k + n - 1 of the peers belong to anchor k. All
features are unit vectors.

Source: ZelongZeng/PLCD `train_PL_G2D.py`, `train_D2S.py` (inner loop).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cvgl_jax.losses import pairs

Pairing = Literal['tiled', 'aligned']
PAIRINGS = ('tiled', 'aligned')


class Mined(NamedTuple):
  """Rows of the peers that an anchor is compared with.

  Attributes:
    positive: [B] int32, one of the anchor's own peers.
    negatives: [B, N] int32, the most similar peers of other labels, best first;
      -1 where there are fewer.
  """

  positive: jax.Array
  negatives: jax.Array


def scores(anchor: jax.Array, peers: jax.Array) -> jax.Array:
  """Cosines [B, n B] of unit anchors [B, D] and peers [n B, D].

  Raises:
    ValueError: the peers are not a multiple of the anchors.
  """
  if not len(anchor) or len(peers) % len(anchor) or not len(peers):
    raise ValueError(
      f'{len(peers)} peers for {len(anchor)} anchors: every anchor needs the same '
      'number; the plan must give them (PeerBatches)'
    )
  return jnp.einsum('bd,md->bm', anchor, peers, precision='highest')


def mine(
  score: jax.Array,
  label: jax.Array,
  peer_label: jax.Array,
  *,
  easy_positive: bool,
  negatives: int,
) -> Mined:
  """Chooses the positive and the hardest negatives of every anchor.

  Args:
    score: [B, n B] of `scores`; no gradient goes through the choice.
    label: [B] of the anchors.
    peer_label: [n B].
    easy_positive: the most similar of the anchor's own peers, else the least
      similar. Peers of another anchor with the same label are neither positives
      nor negatives.
    negatives: N.
  """
  score = jax.lax.stop_gradient(score)
  batch, rows = score.shape
  peers = rows // batch
  first = jnp.arange(batch) * peers
  own = jnp.take_along_axis(
    score, first[:, None] + jnp.arange(peers)[None], axis=1
  )
  best = own.argmax(axis=1) if easy_positive else own.argmin(axis=1)
  other = label[:, None] != peer_label[None]
  found, index = jax.lax.top_k(
    jnp.where(other, score, -jnp.inf), min(negatives, rows)
  )
  index = jnp.where(jnp.isfinite(found), index, -1)
  missing = negatives - index.shape[1]
  index = jnp.pad(index, [(0, 0), (0, missing)], constant_values=-1)
  return Mined((first + best).astype(jnp.int32), index.astype(jnp.int32))


def ranking(score: jax.Array, mined: Mined, *, pairing: Pairing) -> jax.Array:
  """Mean of softplus(negative - positive) over all negatives of the batch.

  loss = 1/(N B) sum_m log(1 + exp(s-_m - s+_m)), m = N k + j the j-th negative
  of anchor k; a negative that is missing has s- = 0.

  Args:
    score: [B, n B].
    mined: of `mine`.
    pairing: 'aligned': s+_m is the positive of anchor k; 'tiled' (reference-bug,
      published): of anchor m mod B, mostly another one.
  """
  positive = jnp.take_along_axis(
    score, mined.positive[:, None], axis=1
  )  # [B, 1]
  negative = jnp.take_along_axis(score, jnp.maximum(mined.negatives, 0), axis=1)
  negative = jnp.where(mined.negatives >= 0, negative, 0.0)  # [B, N]
  if pairing == 'tiled':
    tiled = jnp.tile(positive[:, 0], negative.shape[1])
    positive = tiled.reshape(negative.shape)
  return jax.nn.softplus(negative - positive).mean()


def distillation(
  student: tuple[jax.Array, jax.Array],
  teacher: tuple[jax.Array, jax.Array],
  *,
  tau: float,
) -> jax.Array:
  """How far the student's similarities are from the teacher's.

  With q_k the softmax over j of (anchor k . row j) / tau, all rows of all
  regions competing, and q' the teacher's:

    loss = 1/B sum_k sum_j q'_kj (log q'_kj - log q_kj)

  Args:
    student: unit anchors [B, D] and unit rows [n B, R, D]: of the whole picture
      and of regions.
    teacher: the same; without gradient.
    tau: temperature of both.
  """
  log_q = _log_softmax(*student, tau=tau)
  log_p = jax.lax.stop_gradient(_log_softmax(*teacher, tau=tau))
  return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()


def _log_softmax(anchor, rows, *, tau):
  """[B, n B R]."""
  score = jnp.einsum('bd,mrd->bmr', anchor, rows, precision='highest')
  score = pairs.at_least_float32(score).reshape(len(anchor), -1)
  return jax.nn.log_softmax(score / tau, axis=1)
