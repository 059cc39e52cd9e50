import numpy as np
import pytest

from cvgl_jax.retrieval import submission


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
