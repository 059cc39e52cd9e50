"""A signal that comes when the run is as good as finished."""

import argparse

import pytest

from cvgl_jax import checkpoint, commands, stop
from tests import tiny_world
from tests.train import loop_test

LAST = 12  # after two epochs


def test_a_signal_in_the_last_evaluation_is_told_when_all_is_done(tmp_path):
  with (
    loop_test.sigterm_at(LAST),
    pytest.raises(stop.StoppedAtEnd, match='all 12 steps done'),
  ):
    tiny_world.train(tmp_path, **loop_test.OPTIONS)
  assert checkpoint.choose(tmp_path, 'latest') == LAST
  rows = loop_test.metrics_of(tmp_path, 'eval')
  assert rows[-1]['step'] == LAST
  # The same command finds nothing left to do.
  assert tiny_world.train(tmp_path, **loop_test.OPTIONS) == {}


def test_the_train_command_succeeds_when_the_run_is_whole(tmp_path):
  config = tiny_world.config(**loop_test.OPTIONS)
  arguments = argparse.Namespace(workdir=str(tmp_path))
  with loop_test.sigterm_at(LAST):
    assert commands.train(arguments, config) == 0


def test_a_run_that_is_stopped_earlier_is_not_whole(tmp_path):
  config = tiny_world.config(**loop_test.OPTIONS)
  arguments = argparse.Namespace(workdir=str(tmp_path))
  with loop_test.sigterm_at(LAST - 2):
    assert commands.train(arguments, config) == commands.STOPPED
