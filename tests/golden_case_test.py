"""The golden harness itself: nothing in a file is silently ignored."""

import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from tests import golden_case

ROOT = pathlib.Path(__file__).parents[1]


def make_case(folder, **arrays) -> golden_case.Case:
  path = folder / 'some_case.npz'
  np.savez(path, **{k.replace('__', '/'): v for k, v in arrays.items()})
  return golden_case.Case(path)


def test_a_check_must_use_every_argument_weight_and_output(tmp_path):
  case = make_case(
    tmp_path,
    in__x=np.ones(2),
    param__w=np.ones(2),
    out__y=np.ones(2),
    out__grad_w=np.ones(2),
  )
  with pytest.raises(AssertionError, match=r'in/x.*param/w.*out/grad_w.*out/y'):
    case.finish()
  assert case['in/x'].shape == (2,)
  assert dict(case.prefix('param/'))['w'].shape == (2,)
  case.equal('out/y', np.ones(2))
  with pytest.raises(
    AssertionError, match=r"never\s+compared \['out/grad_w'\]"
  ):
    case.finish()
  case.ignore('out/grad_*', 'a test of the test')
  case.finish()


def test_names_and_lengths_of_entries_touch_nothing(tmp_path):
  case = make_case(tmp_path, in__a=np.ones(1), in__b=np.ones(1))
  entries = case.prefix('in/')
  assert list(entries) == ['a', 'b'] and len(entries) == 2 and 'a' in entries
  assert case.argument('c', 5) == 5 and 'in/a' in case
  with pytest.raises(AssertionError, match=r"never read \['in/a', 'in/b'\]"):
    case.finish()


def test_close_measures_as_the_readmes_do(tmp_path):
  case = make_case(tmp_path, out__y=np.float32([0, 2]), out__z=np.zeros(1))
  case.close('out/y', [1e-6, 2], rtol=1e-6)
  assert case.closest == (0.5, 'out/y')
  with pytest.raises(AssertionError, match='out/y: difference'):
    case.close('out/y', [3e-6, 2], rtol=1e-6)
  with pytest.raises(AssertionError):
    case.close('out/y', [np.nan, 2], rtol=1e-6)
  with pytest.raises(AssertionError):
    case.close('out/y', 2.0, rtol=1.0)  # no broadcasting
  case.close('out/z', 0.0, rtol=1e-6)
  with pytest.raises(AssertionError):
    case.close('out/z', 1e-12, rtol=1e-6)
  case.close('out/z', 1e-12, rtol=1e-6, scale=1.0)


def test_a_float32_argument_is_the_number_that_was_written(tmp_path):
  case = make_case(tmp_path, in__margin=np.float32([0.3]), in__k=np.array([8]))
  assert case.argument('margin', 0.0) == 0.3
  assert case.argument('k', 0) == 8


def test_the_longest_prefix_counts_and_pending_parts_say_why(tmp_path):
  system = golden_case.System()
  short, long = (lambda case: None), (lambda case: None)
  system.add(
    types.SimpleNamespace(
      __name__='area', CHECKS={'eval_': short, 'eval_multi': long}
    )
  )
  system.add(types.SimpleNamespace(__name__='other', PENDING={'net_': 'later'}))
  assert system.find(tmp_path / 'eval_a.npz') is short
  assert system.find(tmp_path / 'eval_multi_b.npz') is long
  assert system.find(tmp_path / 'net_c.npz') == 'later'
  assert system.find(tmp_path / 'loss.npz') is None
  with pytest.raises(AssertionError, match='both'):
    system.add(
      types.SimpleNamespace(__name__='third', PENDING={'eval_': 'later'})
    )


def test_another_folder_of_golden_files_is_judged_whole(tmp_path):
  """Unknown prefixes and unused keys fail, unknown systems are skipped."""
  ours, theirs = tmp_path / 'university1652', tmp_path / 'no_such_system'
  ours.mkdir()
  theirs.mkdir()
  good = golden_case.DEFAULT / 'university1652' / 'ema_update.npz'
  (ours / 'ema_update_again.npz').write_bytes(good.read_bytes())
  with np.load(good) as file:
    np.savez(ours / 'ema_update_more.npz', **file, **{'in/new': np.ones(1)})
  np.savez(ours / 'brand_new.npz', x=np.ones(1))
  np.savez(theirs / 'case.npz', x=np.ones(1))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'pytest', '-m', 'golden', '-q'),
      *('-p', 'no:xdist', '-p', 'no:cacheprovider'),
      *(f'--golden-dir={tmp_path}', 'tests/golden_test.py'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1, done.stdout + done.stderr
  assert 'no check knows university1652/brand_new.npz' in done.stdout
  assert "never read ['in/new']" in done.stdout
  assert 'golden university1652: 3 ran, 1 passed, 2 failed' in done.stdout
  assert 'golden no_such_system: 0 ran, 0 passed, 0 failed, 1 skipped' in (
    done.stdout
  )
  assert 'system no_such_system is not implemented yet' in done.stdout
