"""Feature files through the command line; numbers as of `evaluate_ranking`."""

import csv
import json
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io

import main
from cvgl_jax.retrieval import multiview, ranking, rerank
from cvgl_jax.retrieval.diffusion import cross
from tests import conftest

Q, G, D, PLACES = 40, 60, 8, 20


def unit(array):
  return array / np.linalg.norm(array, axis=-1, keepdims=True)


def make_world(seed=0):
  """Noisy views of places; some gallery places have no query, one is junk."""
  rng = np.random.default_rng(seed)
  centre = rng.normal(size=(PLACES + 10, D))
  query_place = np.repeat(np.arange(PLACES), Q // PLACES)
  gallery_place = np.concatenate([np.tile(np.arange(PLACES + 9), 2), [-1, -1]])
  view = lambda place: unit(
    centre[place] + 0.8 * rng.normal(size=(len(place), D))
  ).astype(np.float32)
  return {
    'query': view(query_place),
    'gallery': view(gallery_place),
    'query_place': query_place,
    'gallery_place': gallery_place,
    'query_path': np.array(
      [f'q/{p:04}/{i}.jpg' for i, p in enumerate(query_place)]
    ),
    'gallery_path': np.array([f'g/{i:03}.webp' for i in range(G)]),
  }


@pytest.fixture(scope='module')
def world():
  return make_world()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  """Logging is of the whole process; --debug is wanted for its exceptions."""
  monkeypatch.setattr(main.commands, 'set_up_logging', lambda *, debug: None)


def expected(world, **options):
  return ranking.evaluate_ranking(
    world['query'],
    world['gallery'],
    world['query_place'],
    world['gallery_place'],
    **options,
  )


def write_csv(file_path, /, **columns):
  with file_path.open('w', newline='') as file:
    rows = csv.writer(file)
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
  return file_path


def mat(folder, world, **changes):
  values = {
    'gallery_f': world['gallery'],
    'gallery_label': world['gallery_place'].tolist(),
    'gallery_path': world['gallery_path'].tolist(),
    'query_f': world['query'],
    'query_label': world['query_place'].tolist(),
    'query_path': world['query_path'].tolist(),
  }
  path = folder / 'pytorch_result.mat'
  scipy.io.savemat(path, values | changes)
  return ['--features', path]


def hdf5(folder, world):
  mat(folder, world, query_f=[0.0], gallery_f=[0.0])
  with h5py.File(folder / 'pytorch.hdf5', 'w') as file:
    file['gallery_feature'] = world['gallery']
    file['query_feature'] = world['query']
  return ['--features', folder / 'pytorch.hdf5']


def npz(folder, world):
  np.savez(
    folder / 'all.npz',
    **{f'{side}_feature': world[side] for side in ('query', 'gallery')},
    **{
      f'{side}_label': world[f'{side}_place'] for side in ('query', 'gallery')
    },
  )
  return ['--features', folder / 'all.npz']


def npy(folder, world):
  """As `main.py embed` writes them: the lists are found beside."""
  flags = []
  for side in ('query', 'gallery'):
    np.save(folder / f'test_{side}.npy', world[side])
    write_csv(
      folder / f'test_{side}.csv',
      row=range(len(world[side])),
      place=world[f'{side}_place'],
      path=world[f'{side}_path'],
      latitude_deg=[float('nan')] * len(world[side]),
      longitude_deg=[float('nan')] * len(world[side]),
    )
    flags += [f'--{side}_features', folder / f'test_{side}.npy']
  return flags


def npy_with_lists(folder, world):
  """Bare lists of zero-padded labels on one side, numbers on the other."""
  flags = []
  for side in ('query', 'gallery'):
    np.save(folder / f'{side[0]}.npy', world[side].astype(np.float64))
    flags += [f'--{side}_features', folder / f'{side[0]}.npy']
  lines = ''.join(f'{place:04}\n' for place in world['query_place'])
  (folder / 'labels.txt').write_text(lines)
  np.save(folder / 'labels.npy', world['gallery_place'].astype(np.int32))
  flags += ['--query_labels', folder / 'labels.txt']
  return [*flags, '--gallery_labels', folder / 'labels.npy']


def evaluate(folder, flags):
  """Runs `main.py evaluate` and returns what --output holds."""
  output = folder / 'out' / 'metrics.json'
  code = main.main(
    [
      'evaluate',
      *map(str, flags),
      f'--output={output}',
      '--per_query',
      '--debug',
      f'--compile_cache={conftest.CACHE}',
    ]
  )
  assert code == 0
  return json.loads(output.read_text())


@pytest.mark.parametrize('write', [mat, hdf5, npz, npy, npy_with_lists])
def test_every_format_gives_the_numbers_of_evaluate_ranking(
  tmp_path, world, write, capsys
):
  found = evaluate(tmp_path, write(tmp_path, world))
  wanted = expected(world, per_query=True)
  assert found['metrics'] == wanted.report()
  assert 0.2 < wanted.recall[0] < 0.9  # the world is neither trivial nor lost
  (only,) = found['rankings']
  assert only['num_queries'] == Q and only['gallery_size'] == G
  assert only['per_query']['first_rank'] == wanted.first_rank.tolist()
  np.testing.assert_allclose(
    only['per_query']['average_precision'], wanted.query_average_precision
  )
  shown = capsys.readouterr().out
  assert f'{Q} queries, 0 without an answer, gallery of {G}' in shown
  assert f'R@1   {100 * wanted.recall[0]:7.2f}' in shown


@pytest.mark.parametrize(
  ('flags', 'options'),
  [
    (
      ['--protocol=sample4geo'],
      {'percent_index': 'floor', 'ties': 'optimistic'},
    ),
    (
      ['--protocol=vigor', '--ties=lower', '--ap=plain'],
      {'percent_index': 'floor_plus_one', 'ap': 'plain'},
    ),
    (['--protocol=sample4geo_university'], {'ignore_distractors': True}),
    (['--junk_distractors'], {'ignore_distractors': True}),
    (['--ranks', '2', '7'], {'ranks': (2, 7)}),
    (['--similarity=dot'], {'similarity': 'dot'}),
  ],
)
def test_rules_reach_the_metrics(tmp_path, flags, options):
  world = make_world(1)
  # Copies make ties, lengths make dot products differ from cosines.
  world['gallery'][30:50] = world['gallery'][:20]
  scale = np.random.default_rng(5).uniform(0.5, 2, (G, 1)).astype(np.float32)
  world['gallery'] *= scale
  found = evaluate(tmp_path, mat(tmp_path, world) + flags)
  assert found['metrics'] == expected(world, **options).report()


def test_multi_query_and_refinement_stand_beside_the_plain_ranking(
  tmp_path, world
):
  found = evaluate(tmp_path, [*mat(tmp_path, world), '--multi_query', '--mrm'])[
    'metrics'
  ]
  plain = expected(world).report()
  mean = multiview.mean_by_place(world['query'], world['query_place'])
  merged = world | {'query': mean.features, 'query_place': mean.place}
  assert {key: found[key] for key in plain} == plain
  for key, value in expected(merged).report().items():
    assert found[f'{key} mean'] == pytest.approx(value)
  assert 'AP w/ MRM' in found
  alone = evaluate(tmp_path, [*mat(tmp_path, world), '--multi_query'])
  assert alone['metrics']['AP'] == pytest.approx(found['AP mean'])
  assert alone['rankings'][0]['num_queries'] == PLACES


@pytest.mark.parametrize('method', ['gnn', 'k_reciprocal'])
def test_reranking_is_that_of_the_library(tmp_path, world, method):
  flags = [*mat(tmp_path, world), f'--rerank={method}']
  flags += ['--rerank_k1=6', '--rerank_k2=3']
  scores = getattr(rerank, method)(world['query'], world['gallery'], k1=6, k2=3)
  scores = scores if method == 'gnn' else -scores
  wanted = ranking.evaluate_scores(
    scores, world['query_place'], world['gallery_place']
  ).report()
  assert evaluate(tmp_path, flags)['metrics'] == wanted
  # Where all are candidates, only ties may fall otherwise.
  cut = evaluate(tmp_path, [*flags, f'--rerank_candidates={G}'])['metrics']
  assert cut['R@10'] == pytest.approx(wanted['R@10'], abs=5)
  assert cut != expected(world).report()


def test_vigor_positives_and_semi_positives_come_from_the_list(tmp_path, world):
  rng = np.random.default_rng(3)
  rows = np.stack([rng.permutation(G)[:4] for _ in range(Q)])
  flags = npy(tmp_path, world)
  names = np.char.add('', [f'{i:03}.webp' for i in range(G)])
  listing = write_csv(
    tmp_path / 'vigor.csv',
    positive=names[rows[:, 0]],
    semi_positives=[' '.join(map(str, row[1:])) for row in rows],
  )
  found = evaluate(
    tmp_path, [*flags, '--query_labels', listing, '--protocol=sample4geo']
  )
  wanted = ranking.evaluate_ranking(
    world['query'],
    world['gallery'],
    positives=rows[:, :1],
    semi_positives=rows[:, 1:],
    percent_index='floor',
    ties='optimistic',
    per_query=True,
  )
  assert found['metrics'] == wanted.report()
  assert found['metrics']['hit rate'] > 0
  assert found['rankings'][0]['per_query']['hit'] == wanted.query_hit.tolist()


def test_answers_within_metres_are_right(tmp_path, world):
  flags = npy(tmp_path, world)
  rng = np.random.default_rng(4)
  points = {
    s: rng.uniform(0, 20, (len(world[s]), 2)) for s in ('query', 'gallery')
  }
  for side, xy in points.items():
    listing = tmp_path / f'{side}_utm.csv'
    write_csv(listing, x_m=xy[:, 0] + 5e5, y_m=xy[:, 1] + 4e6)
    flags += [f'--{side}_labels', listing]
  found = evaluate(tmp_path, [*flags, '--within_metres=5'])
  distance = np.linalg.norm(
    points['query'][:, None] - points['gallery'][None], axis=2
  )
  wanted = ranking.evaluate_ranking(
    world['query'],
    world['gallery'],
    positives=np.where(distance <= 5, np.arange(G)[None], -1),
  )
  assert found['metrics']['R@1'] == pytest.approx(100 * wanted.recall[0])
  assert found['metrics']['AP'] == pytest.approx(100 * wanted.average_precision)
  best = (world['query'] @ world['gallery'].T).argmax(axis=1)
  errors = distance[np.arange(Q), best]
  assert found['metrics']['mean error m'] == pytest.approx(errors.mean())


def plcd_files(folder, rng):
  """Street, drone and satellite pictures of the same places in two spaces."""
  places = 12
  files = {}
  drone_place = np.repeat(np.arange(places), 5)
  spaces = {
    'g2d': ('', np.arange(places), drone_place),
    'd2s': ('_for_diffusion', drone_place, np.arange(places)),
  }
  for name, (suffix, query_place, gallery_place) in spaces.items():
    (folder / name).mkdir()
    centre = rng.normal(size=(places, D))
    path = folder / name / f'pytorch{suffix}.hdf5'
    features = {
      f'{side}_feature': unit(
        centre[place] + 0.4 * rng.normal(size=(len(place), D))
      ).astype(np.float32)
      for side, place in (('query', query_place), ('gallery', gallery_place))
    }
    with h5py.File(path, 'w') as file:
      for key, value in features.items():
        file[key] = value
    drone = 'gallery' if name == 'g2d' else 'query'
    scipy.io.savemat(
      folder / name / f'pytorch_result{suffix}.mat',
      {
        'gallery_label': gallery_place.tolist(),
        'query_label': query_place.tolist(),
        f'{drone}_path': [
          f'/{name}/test/{p:04}/image-{i:02}.jpeg'
          for i, p in enumerate(drone_place)
        ],
      },
    )
    files[name] = (path, features)
  return files, places


DIFFUSION = ['--diffusion_options', 'kq=4', 'kd=8', 'n_trunc=30']


def test_cross_diffusion_of_plcd_files(tmp_path):
  files, places = plcd_files(tmp_path, np.random.default_rng(6))
  (g2d, near), (d2s, far) = files['g2d'], files['d2s']
  flags = ['--features', g2d, '--diffusion', d2s, *DIFFUSION]
  found = evaluate(tmp_path, flags)
  scores = cross.cross_diffusion(
    near['query_feature'],
    near['gallery_feature'],
    far['query_feature'],
    far['gallery_feature'],
    options=cross.Options(kq=4, kd=8, n_trunc=30),
  )
  wanted = ranking.evaluate_scores(scores, np.arange(places), np.arange(places))
  assert found['metrics'] == wanted.report()
  assert wanted.recall[0] > 0.5
  assert found['rankings'][0]['gallery_size'] == places


def test_spaces_with_other_drone_pictures_are_refused(tmp_path):
  files, _ = plcd_files(tmp_path, np.random.default_rng(6))
  listed = tmp_path / 'd2s' / 'pytorch_result_for_diffusion.mat'
  values = scipy.io.loadmat(listed)
  paths = [path.strip() for path in values['query_path']]
  flags = ['--features', files['g2d'][0], '--diffusion', files['d2s'][0]]
  swapped = {key: values[key] for key in ('gallery_label', 'query_label')}
  swapped['query_path'] = [paths[1], paths[0], *paths[2:]]
  scipy.io.savemat(listed, swapped)
  with pytest.raises(ValueError, match='list different drone pictures: row 0'):
    evaluate(tmp_path, [*flags, *DIFFUSION])
  # The published script lists all altitudes for features of one.
  swapped['query_path'] = paths * 3
  scipy.io.savemat(listed, swapped)
  evaluate(tmp_path, [*flags, *DIFFUSION])


def test_the_answer_file_needs_no_labels(tmp_path, world):
  flags = []
  for side in ('query', 'gallery'):
    np.save(tmp_path / f'{side}.npy', world[side])
    write_csv(tmp_path / f'{side}.csv', path=world[f'{side}_path'])
    flags += [f'--{side}_features', tmp_path / f'{side}.npy']
  names = [path.split('/')[-1] for path in world['query_path'][::-1]]
  (tmp_path / 'names.txt').write_text('\n'.join(names))
  best = np.argsort(-(world['query'] @ world['gallery'].T), axis=1)[:, :10]
  lines = [' '.join(f'{row:03}' for row in rows) + '\n' for rows in best]
  found = evaluate(
    tmp_path,
    [
      *flags,
      f'--save_answers={tmp_path / "answer.zip"}',
      f'--query_names={tmp_path / "names.txt"}',
      '--challenge=160k_wx',
    ],
  )
  assert found['metrics'] == {}
  with zipfile.ZipFile(tmp_path / 'answer.zip') as file:
    assert file.read('answer.txt').decode() == ''.join(lines[::-1])
  evaluate(tmp_path, [*flags, f'--save_answers={tmp_path / "answer.txt"}'])
  text = (tmp_path / 'answer.txt').read_text()
  assert text == ''.join(lines).replace(' ', '\t')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda w: w['query'].__setitem__((3, 1), np.nan),
      r'pytorch_result\.mat, key query_f: 1 of 40 feature rows hold NaN.*rows 3',
    ),
    (
      lambda w: w['gallery'].__setitem__(slice(2, 4), 0),
      r'pytorch_result\.mat, key gallery_f: 2 of 60 .* all zero.*rows 2, 3',
    ),
    (
      lambda w: w.__setitem__('query', w['query'][:, :5]),
      r'key query_f has dimension 5, .*key gallery_f 8',
    ),
    (
      lambda w: w.__setitem__('query_place', w['query_place'][:7]),
      r'key query_label: 7 entries, but .*key query_f has 40 feature rows',
    ),
  ],
)
def test_bad_features_are_named_and_nothing_is_ranked(
  tmp_path, change, message
):
  world = make_world()
  change(world)
  with pytest.raises(ValueError, match=message):
    evaluate(tmp_path, mat(tmp_path, world))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'needs --workdir=RUN, or feature files'),
    (['--query_labels=x.csv'], 'needs --workdir=RUN, or feature files'),
    (['--workdir=w', '--rerank=gnn'], '--rerank belongs to --features'),
    (['--features=a.mat', '--workdir=w'], '--workdir is of a run'),
    (['--features=a.mat', '--config=c.py'], '--config is of a run'),
    (['--features=a.mat', '--save_answer=x'], 'did you mean --save_answers'),
    (['--features=a.mat', '--mrm'], '--mrm needs --multi_query or --multi_g'),
    (['--features=a.mat', '--challenge=160k'], 'needs --save_answers'),
    (['--features=a.mat', '--diffusion=b', '--multi_query'], 'do not go toge'),
    (['--features=a.mat'], r'a\.mat: no such file'),
    (['--query_features=a.npy'], r'a\.npy: no such file'),
  ],
)
def test_flags_that_do_not_fit_say_so(flags, message):
  with pytest.raises(ValueError, match=message):
    main.main(['evaluate', *flags, '--debug'])


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--rerank_k1=5'], 'need a rerank method'),
    (['--rerank=gnn', '--similarity=dot'], 're-ranking compares directions'),
    (['--within_metres=5'], '--within_metres needs the columns x_m and y_m'),
    (['--ranks', '0'], 'ranks'),
    (['--diffusion_options', 'kq=1'], '--diffusion_options needs --diffusion'),
  ],
)
def test_options_that_do_not_fit_say_so(tmp_path, world, flags, message):
  with pytest.raises(ValueError, match=message):
    evaluate(tmp_path, mat(tmp_path, world) + flags)


def test_missing_labels_are_asked_for(tmp_path, world):
  np.save(tmp_path / 'g.npy', world['gallery'])
  flags = [*mat(tmp_path, world), '--gallery_features', tmp_path / 'g.npy']
  with pytest.raises(ValueError, match=r'g\.npy: no labels; give --gallery_l'):
    evaluate(tmp_path, flags)


def test_a_fault_is_one_line_without_a_traceback(tmp_path, capsys):
  assert main.main(['evaluate', f'--features={tmp_path / "x.mat"}']) == 1
  assert capsys.readouterr().out == ''
