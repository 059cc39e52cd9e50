import json

import pytest

from cvgl_jax import writer


def test_rows_come_back_in_order(tmp_path):
  log = writer.Writer(tmp_path)
  log.write(1, {'train/loss': 2.0})
  log.write(2, {'train/loss': 1.0, 'eval/R@1': 50})
  log.close()
  assert writer.read(tmp_path) == [
    {'step': 1, 'train/loss': 2.0},
    {'step': 2, 'train/loss': 1.0, 'eval/R@1': 50.0},
  ]
  assert list((tmp_path / 'events').iterdir())


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
  log = writer.Writer(tmp_path)
  for step in range(1, 6):
    log.write(step, {'train/loss': step})
  log.close()
  log = writer.Writer(tmp_path, resume_step=3)
  log.write(4, {'train/loss': 40})
  log.close()
  assert [row['step'] for row in writer.read(tmp_path)] == [1, 2, 3, 4]
  assert writer.read(tmp_path)[-1]['train/loss'] == 40


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(json.dumps({'step': 1}) + '\n{"step": 2, "tra')
  assert writer.read(tmp_path) == [{'step': 1}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(ValueError, match='line 2'):
    writer.read(tmp_path)
