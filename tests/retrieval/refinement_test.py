import functools

import jax
import numpy as np
import pytest

from cvgl_jax.retrieval import refinement

SCORES = ('mi', 'dist_mean', 'mean')
refine = jax.jit(refinement.refine, static_argnames='settings')


def views(seed, count=13, dim=9):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, dim)).astype(np.float32)


def pose(seed, count=13):
  rng = np.random.default_rng(100 + seed)
  return {
    'altitude_m': rng.uniform(100, 250, count).astype(np.float32),
    'azimuth_deg': rng.uniform(0, 360, count).astype(np.float32),
  }


def refine_loop(x, *, k, weight, sharpness, score, diversity, poses):
  """One view at a time, from the definition; float64."""
  x = x.astype(np.float64)
  count = len(x)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  minmax = lambda v: (v - v.min()) / (v.max() - v.min() + 1e-8)
  if score == 'mean':
    total = unit.mean(axis=0)
    return total / np.linalg.norm(total), list(range(count))
  if score == 'mi':
    correlation = np.clip(np.corrcoef(x), -1 + 1e-6, 1 - 1e-6)
    information = -0.5 * np.log(1 - correlation**2)
    np.fill_diagonal(information, 0)
    importance = minmax(information.sum(axis=1) / (count - 1))
    new = lambda j, l: 1 - information[j, l] / information.max()
  else:
    importance = minmax(np.linalg.norm(x - x.mean(axis=0), axis=1))
    new = lambda j, l: np.linalg.norm(x[j] - x[l])
  if diversity == 'pose':
    height, azimuth = poses['altitude_m'], poses['azimuth_deg']

    def new(j, l):
      turn = abs(azimuth[j] - azimuth[l])
      climb = abs(height[j] - height[l]) / (height.max() - height.min())
      return (2 * climb + min(turn, 360 - turn) / 180) / 3

  chosen = [int(np.argmax(importance))]
  while len(chosen) < min(k, count):
    left = [j for j in range(count) if j not in chosen]
    gain = [
      weight * importance[j] + (1 - weight) * min(new(j, l) for l in chosen)
      for j in left
    ]
    chosen.append(left[int(np.argmax(gain))])
  weights = np.exp(sharpness * importance[chosen])
  total = (weights / weights.sum()) @ unit[chosen]
  return total / np.linalg.norm(total), chosen


@pytest.mark.parametrize('diversity', ['feature', 'pose'])
@pytest.mark.parametrize('score', SCORES)
def test_refinement_equals_a_loop(score, diversity):
  for seed, weight, sharpness in ((0, 0.5, 1.0), (1, 0.2, 3.0), (2, 0.9, 0.0)):
    settings = refinement.Refinement(
      k=6,
      importance_weight=weight,
      sharpness=sharpness,
      score=score,
      diversity=diversity,
    )
    x, poses = views(seed), pose(seed)
    found = refine(x, np.ones(13, bool), settings=settings, **poses)
    feature, chosen = refine_loop(
      x,
      k=6,
      weight=weight,
      sharpness=sharpness,
      score=score,
      diversity=diversity,
      poses=poses,
    )
    assert found.selected.tolist() == chosen
    np.testing.assert_allclose(found.feature, feature, atol=2e-6)
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize('diversity', ['feature', 'pose'])
@pytest.mark.parametrize('score', SCORES)
def test_rows_that_are_no_views_change_nothing(score, diversity):
  settings = refinement.Refinement(k=6, score=score, diversity=diversity)
  x, poses = views(3), pose(3)
  valid = np.ones(13, bool)
  valid[[0, 4, 11]] = False
  short = {name: values[valid] for name, values in poses.items()}
  alone = refine(x[valid], np.ones(10, bool), settings=settings, **short)
  # Nearly twins of a view, which would count most of all, and nothing.
  x[[0, 4]], x[11] = 50 * x[[1, 2]] + 0.1, 0
  poses['altitude_m'][~valid] = 9000
  found = refine(x, valid, settings=settings, **poses)
  np.testing.assert_allclose(found.feature, alone.feature, atol=1e-6)
  kept = np.flatnonzero(valid)[alone.selected]
  selected = np.asarray(found.selected)
  assert selected[selected >= 0].tolist() == kept.tolist()
  assert (np.asarray(found.importance)[~valid] == 0).all()


@pytest.mark.parametrize('score', SCORES)
def test_fewer_views_than_k_are_all_taken(score):
  settings = refinement.Refinement(k=10, score=score)
  valid = np.arange(13) < 4
  found = refine(views(5), valid, settings=settings)
  selected = np.asarray(found.selected)
  assert sorted(selected[selected >= 0]) == [0, 1, 2, 3]
  assert (np.asarray(found.weights)[selected < 0] == 0).all()


@pytest.mark.parametrize('score', SCORES)
def test_one_view_is_its_own_direction(score):
  x = views(6)
  settings = refinement.Refinement(score=score)
  found = refine(x, np.arange(13) == 7, settings=settings)
  np.testing.assert_allclose(
    found.feature, x[7] / np.linalg.norm(x[7]), atol=1e-6
  )


@pytest.mark.parametrize('score', SCORES)
def test_equal_views_give_their_direction(score):
  x = np.tile(views(7)[:1], (13, 1))
  found = refine(
    x, np.ones(13, bool), settings=refinement.Refinement(score=score)
  )
  np.testing.assert_allclose(
    found.feature, x[0] / np.linalg.norm(x[0]), atol=1e-6
  )


def test_an_outlier_is_the_last_choice_of_importance():
  x = views(8, count=1) + 0.3 * views(9)
  x[5] = views(10, count=1)
  settings = refinement.Refinement(k=12, importance_weight=1.0)
  found = refine(x, np.ones(13, bool), settings=settings)
  assert 5 not in found.selected.tolist()
  assert found.importance[5] == 0


def test_places_can_be_mapped_over():
  stacked = np.stack([views(0), views(1)])
  one = functools.partial(refinement.refine, settings=refinement.Refinement())
  many = jax.jit(jax.vmap(one))(stacked, np.ones((2, 13), bool))
  for i in range(2):
    alone = refine(
      stacked[i], np.ones(13, bool), settings=refinement.Refinement()
    )
    assert many.selected[i].tolist() == alone.selected.tolist()
    np.testing.assert_allclose(many.feature[i], alone.feature, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'k': 0}, 'k=0'),
    ({'importance_weight': 1.5}, r'importance_weight=1\.5'),
    ({'sharpness': -1.0}, r'sharpness=-1\.0'),
    ({'sharpness': float('nan')}, 'sharpness=nan'),
    ({'score': 'entropy'}, "score 'entropy'"),
    ({'diversity': 'colour'}, "diversity 'colour'"),
  ],
)
def test_wrong_settings_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    refinement.Refinement(**options)


def test_pose_diversity_needs_poses():
  settings = refinement.Refinement(diversity='pose')
  with pytest.raises(ValueError, match='needs altitude_m and azimuth_deg'):
    refine(views(0), np.ones(13, bool), settings=settings)
