import json

import pytest
from tensorboardX.proto import event_pb2

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


def test_an_evaluation_that_will_be_repeated_is_dropped(tmp_path):
  log = writer.Writer(tmp_path)
  log.write(1, {'train/loss': 2.0})
  log.write(1, {'eval/R@1': 50})
  log.close()
  writer.Writer(tmp_path, resume_step=1).close()
  assert len(writer.read(tmp_path)) == 2
  writer.Writer(tmp_path, resume_step=1, repeats_evaluation=True).close()
  assert writer.read(tmp_path) == [{'step': 1, 'train/loss': 2.0}]


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(json.dumps({'step': 1}) + '\n{"step": 2, "tra')
  assert writer.read(tmp_path) == [{'step': 1}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(ValueError, match='line 2'):
    writer.read(tmp_path)


def test_a_full_disk_is_an_error_with_path_and_free_space(tmp_path):
  log = writer.Writer(tmp_path)
  log.write(1, {'train/loss': 2.0})
  path = tmp_path / 'metrics.jsonl'
  path.unlink()
  path.symlink_to('/dev/full')  # every write to it finds no space
  with pytest.raises(OSError, match=r'No space left.*MiB free') as error:
    log.write(2, {'train/loss': 1.0})
  assert str(path) in str(error.value)
  log.close()


def events_of(folder):
  """Events of the newest file; a record is length, checksum, data, checksum."""
  data = max(folder.iterdir()).read_bytes()
  while data:
    size = int.from_bytes(data[:8], 'little')
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


def test_tensorboard_gets_the_numbers_and_hides_the_dropped_ones(tmp_path):
  log = writer.Writer(tmp_path)
  log.write(3, {'train/loss': 2.0, 'eval/R@1': 50})
  # Before it is closed: a run that is watched shows what it has.
  events = [e for e in events_of(tmp_path / 'events') if e.summary.value]
  (event,) = events
  values = {value.tag: value.simple_value for value in event.summary.value}
  assert event.step == 3
  assert values == {'train/loss': 2.0, 'eval/R@1': 50.0}
  log.close()
  writer.Writer(tmp_path, resume_step=2).close()
  starts = [
    event.step
    for event in events_of(tmp_path / 'events')
    if event.HasField('session_log')
  ]
  assert starts == [3]  # from there on older events are not shown
