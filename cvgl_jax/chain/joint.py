"""Two networks joined by the pictures that both embed: what they find.

One network (G2D in PLCD) compares queries with a bridge, the other one (D2S) the
bridge with the gallery; no query is ever compared with a gallery picture. With s
the cosines of a query in the first space, K its kq best bridge pictures, c the
cosines of the second space and F the diffusion over its graph:

  query_to_bridge    s, the first network alone
  bridge_to_gallery  c, the second network alone
  one_hop            score(g) = c(j, g), j the best bridge picture
  no_diffusion       score(g) = sum over j in K of s_j^gamma c(j, g)
  cross_diffusion    score(g) = sum over j in K of s_j^gamma F[j, g]
  direct             cosines of a third network that knows both views, if there
                     is one (`direct_stage`)

With `diffusion.hiera` the first network also describes regions of every bridge
picture, and s is the cosine of the most similar of its vectors; query_to_bridge
ranks whole pictures all the same.

Source: ZelongZeng/PLCD `diffusion/`, `evaluate_h5.py`; the three rankings of one
pair of networks are what the diffusion is compared with.
"""

import dataclasses
import hashlib
import io
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from cvgl_jax import sharding, writer
from cvgl_jax.chain import features as features_lib
from cvgl_jax.chain import ledger as ledger_lib
from cvgl_jax.chain import recipe
from cvgl_jax.evaluators import result as result_lib
from cvgl_jax.retrieval import evaluation, search
from cvgl_jax.retrieval import features as feature_rows
from cvgl_jax.retrieval.diffusion import cross

PATHS = 'paths.npz'
# Part of the key: changes whenever the meaning of the rankings or files does.
_FORMAT = 'cvgl_jax chain rankings 1'
# Bridge pictures of every query, and gallery entries of each, in `paths.npz`.
_HOPS, _NEIGHBOURS = 5, 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Spaces:
  """Unit features of both spaces, on process 0.

  Attributes:
    query: [Q, D] in the first space.
    bridge: [N (1 + hiera), D] in the first space.
    bridge_again: [N, E] in the second space.
    gallery: [G, E] in the second space.
  """

  query: np.ndarray
  bridge: np.ndarray
  bridge_again: np.ndarray
  gallery: np.ndarray


def run(plan: recipe.Plan, ledger: ledger_lib.Ledger) -> None:
  """Embeds, ranks, measures; writes eval/ and `paths.npz` of the chain.

  Does nothing where they stand there already, of the same features and options.

  Raises:
    ValueError: features that cannot be ranked, different bridges.
  """
  embedded = _embed(plan)
  key = _key(plan.joint, embedded)
  if ledger_lib.agreed(lambda: _stands(plan, ledger, key)):
    logging.info('the joint evaluation is finished: nothing to do')
    return
  # On process 0, while the others wait.
  ledger_lib.agreed(lambda: rank(plan, ledger, embedded, key=key))


def rank(
  plan: recipe.Plan,
  ledger: ledger_lib.Ledger,
  embedded: dict[str, features_lib.Embedded],
  *,
  key: str,
) -> bool:
  """Makes all rankings of features, and notes that they stand in eval/.

  Args:
    plan: of the chain.
    ledger: of the chain.
    embedded: 'query' and 'bridge' in the first space, 'bridge_again' and
      'gallery' in the second one, and 'direct_query' and 'direct_gallery' where
      there is a direct stage.
    key: of features and options.

  Returns:
    True.
  """
  names = {kind: _name(kind, embedded) for kind in _kinds(plan.joint)}
  _forget(plan, ledger, keep=names.values())
  _rank_all(plan, embedded, names)
  ledger.set_joint({'key': key, 'names': sorted(names.values())})
  return True


def _embed(plan: recipe.Plan) -> dict[str, features_lib.Embedded]:
  joint = plan.joint
  query, bridge, gallery = (
    (split, 0)
    for split in (joint.query_split, joint.bridge_split, joint.gallery_split)
  )
  jobs = [
    (joint.query_stage, 'query', query),
    (joint.query_stage, 'bridge', (joint.bridge_split, joint.diffusion.hiera)),
    (joint.gallery_stage, 'bridge_again', bridge),
    (joint.gallery_stage, 'gallery', gallery),
  ]
  if joint.direct_stage:
    jobs += [
      (joint.direct_stage, 'direct_query', query),
      (joint.direct_stage, 'direct_gallery', gallery),
    ]
  found = {}
  for name in dict.fromkeys(stage for stage, _, _ in jobs):
    wanted = {role: split for stage, role, split in jobs if stage == name}
    made = features_lib.embed(plan.stage(name), tuple(wanted.values()), plan)
    found |= dict(zip(wanted, made, strict=True))
  return found


def _key(
  joint: recipe.Joint, embedded: dict[str, features_lib.Embedded]
) -> str:
  """Of everything that the rankings depend on."""
  parts = {
    'features': {role: one.key for role, one in embedded.items()},
    'joint': dataclasses.asdict(joint),
  }
  text = _FORMAT + recipe.digest_text(parts)
  return hashlib.sha256(text.encode()).hexdigest()


def _kinds(joint: recipe.Joint) -> tuple[str, ...]:
  has = {'direct': bool(joint.direct_stage)}
  return tuple(kind for kind in recipe.RANKINGS if has.get(kind, True))


def _name(kind: str, embedded: dict[str, features_lib.Embedded]) -> str:
  """'street_to_drone', 'street_to_satellite_one_hop', ..."""
  query, bridge, gallery = (
    embedded[role].split.view for role in ('query', 'bridge', 'gallery')
  )
  return {
    'query_to_bridge': f'{query}_to_{bridge}',
    'bridge_to_gallery': f'{bridge}_to_{gallery}',
  }.get(kind, f'{query}_to_{gallery}_{kind}')


def _files(plan: recipe.Plan, name: str) -> list[pathlib.Path]:
  folder = pathlib.Path(plan.workdir) / 'eval'
  return [folder / f'{name}.json', folder / f'{name}.npz']


def _stands(plan: recipe.Plan, ledger: ledger_lib.Ledger, key: str) -> bool:
  if ledger.joint.get('key') != key:
    return False
  files = [pathlib.Path(plan.workdir) / PATHS]
  for name in ledger.joint['names']:
    files += _files(plan, name)
  return all(file.exists() for file in files)


def _forget(plan: recipe.Plan, ledger: ledger_lib.Ledger, *, keep: Any) -> None:
  """From here on eval/ is not that of any key; names of before go."""
  before = ledger.joint.get('names', [])
  names = sorted({*before, *keep})
  ledger.set_joint({'key': '', 'names': names})
  for name in set(before) - set(keep):
    for file in _files(plan, name):
      file.unlink(missing_ok=True)


def _rank_all(
  plan: recipe.Plan,
  embedded: dict[str, features_lib.Embedded],
  names: dict[str, str],
) -> None:
  joint = plan.joint
  roles = ('query', 'bridge', 'bridge_again', 'gallery')
  spaces = _Spaces(**{role: embedded[role].features for role in roles})
  cache = str(pathlib.Path(plan.workdir) / 'diffusion')
  # Of this process: the others wait. One CPU device is searched better without.
  devices = jax.local_devices()
  mesh = sharding.make_mesh(devices) if len(devices) > 1 else None
  diffused = cross.cross_diffusion(
    *(spaces.query, spaces.bridge, spaces.bridge_again, spaces.gallery),
    options=joint.diffusion,
    drone_paths=tuple(
      [str(path) for path in embedded[role].split.path]
      for role in ('bridge', 'bridge_again')
    ),
    cache_dir=cache,
    mesh=mesh,
  )
  spaces = _Spaces(
    **{
      role: feature_rows.prepare(getattr(spaces, role), role) for role in roles
    }
  )
  seeds = cross.nearest_places(
    spaces.query,
    spaces.bridge,
    k=joint.diffusion.kq,
    vectors=joint.diffusion.hiera + 1,
    mesh=mesh,
  )
  cosines = spaces.bridge_again @ spaces.gallery.T  # [bridge, gallery]
  scores = {
    'one_hop': cosines[seeds.rows[:, 0]],
    'no_diffusion': _weighted(seeds, cosines, gamma=joint.diffusion.gamma),
    'cross_diffusion': diffused,
  }
  for kind, name in names.items():
    sides = {
      'query_to_bridge': ('query', 'bridge'),
      'bridge_to_gallery': ('bridge_again', 'gallery'),
      'direct': ('direct_query', 'direct_gallery'),
    }.get(kind, ('query', 'gallery'))
    found = _evaluation(
      *(embedded[side] for side in sides),
      joint=joint,
      kind=kind,
      scores=scores.get(kind),
      data_names=plan.stage(joint.gallery_stage).checked.data.names,
    )
    found.write(plan.workdir, name, step=embedded[sides[1]].step)
    text = '  '.join(f'{key} {x:.2f}' for key, x in found.metrics.items())
    logging.info('%s  %s', name, text)
  _write_paths(plan, spaces, seeds, cache)


def _weighted(
  seeds: search.TopK, cosines: np.ndarray, *, gamma: int
) -> np.ndarray:
  """score(q, g) = sum over the seeds j of q of s_j^gamma cosines[j, g]."""
  total = np.zeros((len(seeds.rows), cosines.shape[1]), np.float32)
  for rows, weights in zip(seeds.rows.T, seeds.scores.T**gamma, strict=True):
    total += weights[:, None] * cosines[rows]
  return total


def _evaluation(
  query: features_lib.Embedded,
  gallery: features_lib.Embedded,
  *,
  joint: recipe.Joint,
  kind: str,
  scores: np.ndarray | None,
  data_names: tuple[str, ...],
) -> result_lib.Evaluation:
  """Metrics of one ranking: by cosines, or by scores [Q, G]."""
  evaluator = joint.evaluator(
    query_split=query.split.name,
    gallery_split=gallery.split.name,
    data_names=data_names,
    published=dict(joint.published.get(kind, {})),
    published_source=joint.published_source,
    # Features of two spaces do not belong on one map.
    sample_places=joint.sample_places if scores is None else 0,
  )
  answers = {
    'query_place': np.asarray(query.split.place),
    'gallery_place': np.asarray(gallery.split.place),
  }
  options = {'answers': answers, 'rules': evaluator.rules, 'top': evaluator.top}
  if scores is None:
    ranked = evaluation.rank(query.whole, gallery.whole, **options)
  else:
    ranked = evaluation.rank_scores(scores, **options)
  return result_lib.Evaluation(
    settings=dataclasses.asdict(evaluator)
    | {'ranking': kind, 'diffusion': dataclasses.asdict(joint.diffusion)},
    metrics=ranked.result.report(),
    result=ranked.result,
    query=_side(query),
    gallery=_side(gallery),
    top_scores=ranked.best.scores,
    top_rows=ranked.best.rows,
  )


def _side(embedded: features_lib.Embedded) -> result_lib.Side:
  split = embedded.split
  return result_lib.Side(
    features=embedded.whole,
    place=np.asarray(split.place),
    row=np.arange(len(split)),
    path=np.asarray(split.path, str),
  )


def _write_paths(
  plan: recipe.Plan, spaces: _Spaces, seeds: search.TopK, cache: str
) -> None:
  """`paths.npz`: for every query its best bridge pictures and where they lead.

  With H = min(kq, 5) and G' = min(G, 3): hop_rows int32 [Q, H], rows of the
  bridge; hop_scores float32 [Q, H], cosines; hop_weights float32 [Q, H], share
  of s^gamma among the kq; near_rows int32 [Q, H, G'], gallery entries that the
  diffusion leads to from there, and near_share float32 [Q, H, G'], their part of
  all that it brings to the gallery from there (0: it does not get there).
  """
  options, count = plan.joint.diffusion, len(spaces.bridge_again)
  rows = cross.diffused_rows(  # from the cache
    np.concatenate([spaces.bridge_again, spaces.gallery]),
    read=seeds.rows,
    candidates=count,
    options=options,
    cache_dir=cache,
  )
  weights = np.asarray(seeds.scores, np.float64) ** options.gamma
  total = np.abs(weights).sum(axis=1, keepdims=True)
  hops = seeds.rows[:, :_HOPS]
  nodes, which = np.unique(hops, return_inverse=True)
  alone = search.TopK(np.ones((len(nodes), 1)), nodes[:, None])
  columns = (count, count + len(spaces.gallery))
  reached = np.maximum(cross.online(alone, rows, columns=columns), 0)
  near = search.top_k_scores(reached, k=_NEIGHBOURS)
  brought = np.maximum(reached.sum(axis=1, keepdims=True), 1e-12)
  which = which.reshape(hops.shape)
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    hop_rows=hops.astype(np.int32),
    hop_scores=seeds.scores[:, :_HOPS],
    hop_weights=(weights / total)[:, :_HOPS].astype(np.float32),
    near_rows=near.rows[which],
    near_share=(near.scores / brought)[which],
  )
  writer.replace_bytes(pathlib.Path(plan.workdir) / PATHS, buffer.getvalue())
