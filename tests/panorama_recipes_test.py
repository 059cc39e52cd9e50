"""The recipes of FRGeo, TransGeo and Sample4Geo: settings, options, rates."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from cvgl_jax import experiment
from cvgl_jax.optim import build

SETS = ('cvusa', 'cvact', 'vigor_same', 'vigor_cross')


def checked(name, options=None):
  get_config = importlib.import_module(f'configs.{name}').get_config
  config = get_config() if options is None else get_config(options)
  return experiment.check(config.to_dict())


def rates(settings, steps_per_epoch):
  """The learning rate of every step of the recipe."""
  _, schedule = build.make(
    settings.optim,
    steps_per_epoch=steps_per_epoch,
    total_epochs=settings.train.epochs,
    labels=experiment.make_method(settings).label,
  )
  return np.asarray(
    schedule(jnp.arange(settings.train.epochs * steps_per_epoch))
  )


@pytest.mark.parametrize(
  'name, lr, batch, epochs, panorama, satellite',
  [
    ('frgeo_cvusa', 1e-4, 32, 50, (128, 512), (256, 256)),
    ('frgeo_cvact', 1e-4, 32, 50, (128, 512), (256, 256)),
    ('frgeo_vigor_same', 5e-5, 16, 50, (320, 640), (320, 320)),
    ('frgeo_vigor_cross', 5e-5, 16, 50, (320, 640), (320, 320)),
    ('transgeo_cvusa', 1e-4, 32, 100, (112, 616), (256, 256)),
    ('transgeo_cvact', 1e-4, 32, 100, (112, 616), (256, 256)),
    ('transgeo_vigor_same', 5e-5, 16, 50, (320, 640), (320, 320)),
    ('transgeo_vigor_cross', 5e-5, 16, 50, (320, 640), (320, 320)),
    ('sample4geo_cvusa', 1e-3, 128, 40, (140, 768), (384, 384)),
    ('sample4geo_cvact', 1e-3, 128, 40, (140, 768), (384, 384)),
    ('sample4geo_vigor_same', 1e-3, 128, 40, (384, 768), (384, 384)),
    ('sample4geo_vigor_cross', 1e-3, 128, 40, (384, 768), (384, 384)),
  ],
)
def test_the_numbers_are_those_of_the_tables(
  name, lr, batch, epochs, panorama, satellite
):
  settings = checked(name)
  optim, train = settings.optim, settings.train
  assert (optim.name, optim.lr) == ('adamw', lr)
  assert (train.batch_size, train.epochs) == (batch, epochs)
  sizes = experiment.network_sizes(settings, ('panorama', 'satellite'))
  assert sizes == {'panorama': panorama, 'satellite': satellite}
  assert optim.betas == (0.9, 0.999) and not optim.no_decay
  if name.startswith('sample4geo'):
    assert (optim.sam, optim.weight_decay) == ('none', 0.01)
    assert (optim.clip_value, optim.clip_norm) == (100.0, 0.0)
  else:
    assert (optim.sam, optim.sam_rho, optim.weight_decay) == ('asam', 2.5, 0.03)
    assert not optim.clip_value and not optim.clip_norm
  crops = ('panorama',) if 'cvact' in name and 'sample' not in name else ()
  assert settings.data.middle_half == crops


@pytest.mark.parametrize('name', ['frgeo_cvusa', 'transgeo_cvusa'])
def test_the_rate_falls_by_epochs_to_almost_zero(name):
  settings = checked(name)
  epochs = settings.train.epochs
  expected = 1e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(epochs) / epochs))
  got = rates(settings, 3).reshape(epochs, 3)
  np.testing.assert_allclose(
    got, np.tile(expected[:, None], (1, 3)), rtol=1e-5, atol=1e-12
  )
  assert got[-1, 0] > 0


@pytest.mark.parametrize('pairs', [35_532, 52_609])
def test_the_rate_of_sample4geo_counts_the_batch_that_is_dropped(pairs):
  settings = checked('sample4geo_cvusa')
  per_epoch = -(-pairs // 128)
  warm, total = per_epoch, 40 * per_epoch
  t = np.arange(40 * (pairs // 128))
  cosine = 0.5 * (1 + np.cos(np.pi * (t - warm) / (total - warm)))
  expected = 1e-3 * np.where(t < warm, t / warm, cosine)
  np.testing.assert_allclose(
    rates(settings, pairs // 128), expected, rtol=1e-4, atol=1e-10
  )


def test_one_epoch_of_university_warms_up_for_a_tenth():
  settings = checked('sample4geo_university1652')
  steps = 37_854 // 128
  got, warm = rates(settings, steps), 0.1 * (steps + 1)
  assert got[0] == 0 and got.argmax() == np.ceil(warm)
  np.testing.assert_allclose(got[10], 1e-3 * 10 / warm, rtol=1e-5)


@pytest.mark.parametrize('name', SETS)
def test_the_second_stage_of_transgeo_zooms_at_a_tenth_of_the_rate(name):
  first = checked(f'transgeo_{name}')
  second = checked(f'transgeo_{name}', 'stage2')
  assert experiment.make_method(first).stage == 1
  method = experiment.make_method(second)
  assert method.stage == 2 and second.train.epochs == 50
  np.testing.assert_allclose(second.optim.lr, first.optim.lr / 10)
  sizes = [
    experiment.network_sizes(x, ('satellite',))['satellite']
    for x in (first, second)
  ]
  assert method.attend_size == sizes[0]
  # As many tokens as before.
  before, after = ((size[0] // 16) ** 2 for size in sizes)
  assert int(method.sat_keep * after) == before
  assert second.init.workdir == f'runs/transgeo_{name}'
  assert not second.init.weights and first.init.weights


@pytest.mark.parametrize(
  'name, options, width',
  [
    ('frgeo_cvusa', 'fov90', 128),
    ('frgeo_cvact', 'test+fov180', 256),
    ('frgeo_vigor_cross', 'corrected+fov180', 320),
    ('transgeo_cvusa', 'stage2+fov90', 154),
    ('sample4geo_vigor_same', 'fov360', 768),
    ('sample4geo_cvusa', 'fov90', 192),
  ],
)
def test_a_limited_view_makes_the_panorama_narrower(name, options, width):
  settings = checked(name, options)
  sizes = experiment.network_sizes(settings, ('panorama', 'satellite'))
  assert sizes['panorama'][1] == width
  assert (
    sizes['satellite']
    == experiment.network_sizes(
      checked(name, options.split('fov')[0].rstrip('+')), ('satellite',)
    )['satellite']
  )


@pytest.mark.parametrize(
  'name, options, first',
  [
    ('cvusa', 'stage2+fov90', 'cvusa_fov90'),
    ('cvact', 'test+fov70+stage2', 'cvact_fov70'),
    ('vigor_same', 'fov360+stage2+corrected', 'vigor_same_corrected_fov360'),
    ('vigor_cross', 'stage2+corrected', 'vigor_cross_corrected'),
  ],
)
def test_the_second_stage_looks_for_a_first_one_with_its_options(
  name, options, first
):
  second = checked(f'transgeo_{name}', options)
  assert second.init.workdir == f'runs/transgeo_{first}'


@pytest.mark.parametrize('system', ['frgeo', 'transgeo', 'sample4geo'])
def test_other_labels_and_the_test_set_are_options(system):
  corrected = checked(f'{system}_vigor_cross', 'corrected')
  assert corrected.data.names == ('vigor/cross_corrected',)
  assert checked(f'{system}_vigor_same').data.names == ('vigor/same',)
  evaluators = experiment.make_evaluators(checked(f'{system}_cvact', 'test'))
  assert evaluators['panorama_to_satellite'].query_split == 'val_query_panorama'
  test = evaluators['test_panorama_to_satellite']
  assert (test.query_split, test.gallery_split) == (
    'test_query_panorama',
    'test_gallery_satellite',
  )
  assert evaluators['test_within_5m'].within_metres == 5.0


@pytest.mark.parametrize(
  'name',
  [f'{s}_{d}' for s in ('frgeo', 'transgeo', 'sample4geo') for d in SETS],
)
def test_recall_is_measured_by_the_rules_of_the_field(name):
  [evaluator] = experiment.make_evaluators(checked(name)).values()
  assert not evaluator.flip and evaluator.scales == (1.0,)
  assert evaluator.percent_index == 'floor'
  assert evaluator.ties == 'optimistic'
  assert evaluator.metre_errors == ('vigor' in name)


@pytest.mark.parametrize(
  'name, options',
  [
    ('sample4geo_cvusa', 'corrected'),
    ('frgeo_cvusa', 'fov'),
    ('frgeo_cvusa', 'fov0'),
    ('frgeo_cvusa', 'fov361'),
    ('frgeo_cvusa', 'stage2'),
    ('transgeo_cvusa', 'stage3'),
    ('frgeo_vigor_same', 'test'),
    ('sample4geo_university1652', 'fov90'),
  ],
)
def test_an_unknown_option_is_refused(name, options):
  with pytest.raises(ValueError, match=f"unknown option '{options}'; .*expect"):
    checked(name, options)


@pytest.mark.parametrize(
  'name, options, nearest, valid',
  [
    ('transgeo_cvact', 'fov90+stge2', 'stage2', ['stage2', 'test']),
    ('frgeo_vigor_same', 'corected', 'corrected', ['corrected']),
    ('transgeo_vigor_cross', 'stage2+corected', 'corrected', ['stage2']),
    ('sample4geo_cvact', 'tset', 'test', ['test']),
    ('sample4geo_cvusa', 'fvo90', 'fov90', []),
  ],
)
def test_a_misspelt_option_gets_the_nearest_and_all(
  name, options, nearest, valid
):
  with pytest.raises(ValueError) as error:
    checked(name, options)
  message = str(error.value)
  assert f'did you mean {nearest!r}?' in message
  assert all(repr(x) in message for x in (*valid, 'fov<degrees>'))


def test_the_large_quickstart_has_more_pairs_and_turns_none_of_them():
  small, large = (checked('quickstart_panorama', x) for x in ('', 'large'))
  assert large.data.names == ('rendered_city/pairs_large',)
  assert (small.augment['rotate_p'], large.augment['rotate_p']) == (0.75, 0.0)
  assert (small.augment['flip_p'], large.augment['flip_p']) == (0.5, 0.0)
  assert small.plan == large.plan
  assert small.method == large.method
  with pytest.raises(ValueError, match=r"no option 'lagre'.*'large'"):
    checked('quickstart_panorama', 'lagre')


@pytest.mark.parametrize('options', ['fov90+fov180', 'stage2+stage2'])
def test_an_option_is_given_once(options):
  with pytest.raises(ValueError, match='repeated'):
    checked('transgeo_cvusa', options)


POLAR = {'data.polar_size': (128, 512)}


def changed(name, changes):
  config = importlib.import_module(f'configs.{name}').get_config()
  config.update_from_flattened_dict(changes)
  return experiment.check(config.to_dict())


@pytest.mark.parametrize(
  'name, changes, advice',
  [
    ('frgeo_cvusa', {}, r"config\.method\.frm_branch='shape'"),
    (
      'frgeo_cvusa',
      {'method.frm_branch': 'shape', 'data.polar_size': (128, 128)},
      r'satellite pictures \(128x128\).*config\.data\.polar_size',
    ),
    (
      'frgeo_cvusa',
      {'method.frm_branch': 'shape', 'data.fov_deg': 90.0},
      r'panorama pictures \(128x128\).*config\.data\.fov_deg',
    ),
    ('sample4geo_cvusa', {'method.pool': 'frm'}, r"config\.method\.pool='avg'"),
  ],
)
def test_a_polar_picture_is_not_cut_in_quadrants(name, changes, advice):
  with pytest.raises(
    ValueError, match=rf'config\.data\.polar_size lays.*{advice}'
  ):
    changed(name, POLAR | changes)


@pytest.mark.parametrize(
  'name, changes',
  [
    ('frgeo_cvusa', {'method.frm_branch': 'shape'}),
    ('frgeo_cvusa', {'method.pool': 'avg'}),
    ('sample4geo_cvusa', {'method.pool': 'avg'}),
    ('transgeo_cvusa', {}),
  ],
)
def test_a_polar_picture_may_be_cut_as_a_panorama(name, changes):
  assert changed(name, POLAR | changes).data.polar_size == (128, 512)
