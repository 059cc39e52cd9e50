"""PFED (MobileGeo): multi-view refinement."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from cvgl_jax.retrieval import multiview, ranking, refinement
from tests.golden_case import Case


def _settings(case: Case, **changes) -> refinement.Refinement:
  values = {
    'k': case.scalar('in/k'),
    'importance_weight': case.argument('lambda', 0.5),
    'sharpness': case.argument('beta', 1.0),
  }
  return refinement.Refinement(**values, **changes)


def _check_variant(case: Case, name: str, settings, views: np.ndarray) -> None:
  """Every number in float64; what users call in float32."""
  count = len(views)
  altitude_m = case['in/altitude'][:count]
  azimuth_deg = case['in/azimuth'][:count]
  with jax.enable_x64(True):
    wide = [
      jnp.asarray(a, jnp.float64) for a in (views, altitude_m, azimuth_deg)
    ]
    found = refinement.refine(
      wide[0],
      jnp.ones(count, bool),
      settings=settings,
      altitude_m=wide[1],
      azimuth_deg=wide[2],
    )
    case.equal(f'out/{name}/selected', found.selected)
    case.close(f'out/{name}/fused', found.feature, rtol=1e-6)
    case.close(f'out/{name}/weights', found.weights, rtol=1e-6)
    if f'out/{name}/importance' in case:
      # Within 0..1; all zero for the plain mean.
      case.close(
        f'out/{name}/importance', found.importance, rtol=1e-6, scale=1.0
      )
  place = multiview.refine_by_place(
    views,
    np.zeros(count, int),
    settings=settings,
    altitude_m=altitude_m,
    azimuth_deg=azimuth_deg,
  )
  case.close(f'out/{name}/fused', place.features[0], rtol=1e-6)


def check_refinement(case: Case) -> None:
  views = case['in/features']
  variants = {
    key.split('/')[1] for key in case.keys('out/') if key[4:].count('/')
  }
  for name in sorted(variants):
    first = re.fullmatch(r'n(\d+)', name)
    if first:  # the default variant on so many views
      _check_variant(case, name, _settings(case), views[: int(first[1])])
      continue
    score = name.removesuffix('_pose')
    diversity = 'pose' if name != score else 'feature'
    settings = _settings(case, score=score, diversity=diversity)
    _check_variant(case, name, settings, views)
  with jax.enable_x64(True):
    information = refinement.mutual_information(jnp.asarray(views, jnp.float64))
    case.close('out/mi_matrix_offdiag', information, rtol=1e-6)


def check_retrieval(case: Case) -> None:
  drone, drone_place = case['in/drone_f'], case['in/drone_label']
  satellite, satellite_place = case['in/sat_f'], case['in/sat_label']
  merged = multiview.refine_by_place(
    drone, drone_place, settings=_settings(case)
  )
  case.close('out/fused_drone', merged.features, rtol=1e-5)
  # Satellite queries are those of places that a drone saw.
  asked = np.isin(satellite_place, merged.place)
  asked = (satellite[asked], satellite_place[asked])
  both = {
    'd2s_plain': (drone, satellite, drone_place, satellite_place),
    'd2s_mrm': (merged.features, satellite, merged.place, satellite_place),
    's2d_plain': (asked[0], drone, asked[1], drone_place),
    's2d_mrm': (asked[0], merged.features, asked[1], merged.place),
  }
  for name, arguments in both.items():
    result = ranking.evaluate_ranking(*arguments, similarity='dot')
    report = result.report()
    case.close(
      f'out/{name}_R1_R5_AP',
      [report[key] for key in ('R@1', 'R@5', 'AP')],
      rtol=1e-5,
    )


def check_pose(case: Case) -> None:
  count = len(case['out/altitude_m'])
  altitude_m, azimuth_deg = multiview.spiral_pose(np.arange(1, count + 1))
  case.equal('out/altitude_m', altitude_m)
  case.equal('out/azimuth_deg', azimuth_deg)


CHECKS = {
  'mrm': check_refinement,
  'mrm_retrieval': check_retrieval,
  'u1652_view_pose': check_pose,
}
