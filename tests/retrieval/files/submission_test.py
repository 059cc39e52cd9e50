import os
import zipfile

import numpy as np
import pytest

from cvgl_jax.retrieval.files import submission


def test_lines_are_labels_joined_by_tabs():
  rows = np.array([[1, 0], [2, 1]])
  assert submission.answer(rows, ['a', 'b', 'c']) == 'b\ta\nc\tb\n'
  assert submission.answer(rows, ['a', 'b', 'c'], separator=' ').startswith(
    'b '
  )


def test_labels_are_file_names_without_extension():
  assert submission.label('gallery/x/abC123.webp') == 'abC123'
  assert submission.label('gallery\\x\\abC123.jpg') == 'abC123'


def test_queries_follow_the_list_of_names():
  paths = ['q/b.jpeg', 'q/a.jpeg', 'q/c.jpeg']
  order = submission.query_order(paths, ['c.jpeg', 'a.jpeg'])
  assert order.tolist() == [2, 1]


def test_names_without_a_picture_are_an_error():
  with pytest.raises(ValueError, match=r"1 of 2 listed.*'z.jpeg'"):
    submission.query_order(['q/a.jpeg'], ['a.jpeg', 'z.jpeg'])
  with pytest.raises(ValueError, match=r"two pictures are called 'a.jpeg'"):
    submission.query_order(['q/a.jpeg', 'r/a.jpeg'], ['a.jpeg'])


@pytest.mark.parametrize(
  ('rows', 'labels', 'message'),
  [
    ([[0, 3]], ['a', 'b', 'c'], 'row 3 is not one of the 3'),
    ([[-1, 0]], ['a', 'b', 'c'], 'row -1'),
    ([[0, 1]], ['a', 'b\tc'], 'cannot stand in a line'),
    ([[0, 1]], ['a', 'b\r'], 'cannot stand in a line'),
    ([[0, 1], [1, 1]], ['a', 'b'], 'query 1 lists a gallery row twice'),
    ([[0, 1]], ['a', ''], 'cannot stand in a line'),
    ([[0, 1]], ['a', 'a'], 'share a label'),
    ([0, 1], ['a', 'b'], 'expected integers of shape'),
  ],
)
def test_answers_that_no_server_takes_are_errors(rows, labels, message):
  with pytest.raises(ValueError, match=message):
    submission.answer(np.array(rows), labels)


def test_the_file_has_unix_newlines(tmp_path):
  path = tmp_path / 'answer.txt'
  submission.write(str(path), 'a\tb\n')
  assert path.read_bytes() == b'a\tb\n'
  assert [p.name for p in tmp_path.iterdir()] == ['answer.txt']


def test_a_zip_holds_the_answer_and_does_not_change(tmp_path):
  paths = [tmp_path / name for name in ('one.zip', 'two.zip')]
  for path in paths:
    submission.write(str(path), 'a\tb\n')
  with zipfile.ZipFile(paths[0]) as archive:
    assert archive.namelist() == ['answer.txt']
    assert archive.read('answer.txt') == b'a\tb\n'
  assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_failed_write_leaves_the_older_answer(tmp_path, monkeypatch):
  path = tmp_path / 'answer.txt'
  submission.write(str(path), 'old\n')

  def full(_):
    raise OSError('No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    submission.write(str(path), 'new\n')
  assert path.read_text() == 'old\n'
  assert [p.name for p in tmp_path.iterdir()] == ['answer.txt']


QUERIES = ['q/b.jpeg', 'q/a.jpeg']
GALLERY = [f'gallery/{i}/tile{i:02d}.webp' for i in range(12)]


@pytest.mark.parametrize(
  ('challenge', 'separator'), [('160k', '\t'), ('160k_wx', ' ')]
)
def test_a_challenge_answer_has_ten_labels_in_the_lists_order(
  challenge, separator
):
  rows = np.stack([np.arange(12), np.arange(12)[::-1]])
  text = submission.challenge_answer(
    rows,
    query_paths=QUERIES,
    gallery_paths=GALLERY,
    names=['a.jpeg', 'b.jpeg'],
    challenge=challenge,
  )
  labels = [f'tile{i:02d}' for i in range(12)]
  assert text.split('\n') == [
    separator.join(labels[:1:-1]),
    separator.join(labels[:10]),
    '',
  ]


@pytest.mark.parametrize(
  ('rows', 'changes', 'message'),
  [
    (np.zeros((2, 9), int), {}, 'needs 10 gallery rows'),
    (np.zeros((3, 10), int), {}, '3 rows of results for 2 query paths'),
    (np.zeros((2, 10), int), {'challenge': '160'}, "challenge '160'"),
    (np.zeros((2, 10), int), {}, 'query 0 lists a gallery row twice'),
  ],
)
def test_wrong_challenge_answers_are_errors(rows, changes, message):
  arguments = {
    'query_paths': QUERIES,
    'gallery_paths': GALLERY,
    'names': ['a.jpeg', 'b.jpeg'],
  }
  with pytest.raises(ValueError, match=message):
    submission.challenge_answer(rows, **(arguments | changes))


def test_a_list_of_names_is_read(tmp_path):
  path = tmp_path / 'names.txt'
  path.write_bytes(b'b.jpeg\r\na.jpeg\r\n\r\n')
  assert submission.read_names(str(path)) == ['b.jpeg', 'a.jpeg']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', r'names.txt: no names'),
    ('a\n\nb\n', 'line 2 is blank'),
    ('a\nb\na\n', "line 3 repeats 'a' of line 1"),
  ],
)
def test_broken_lists_of_names_are_errors(tmp_path, text, message):
  path = tmp_path / 'names.txt'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    submission.read_names(str(path))
