import numpy as np
import pytest

from cvgl_jax.retrieval.files import listings


def read(folder, text, name='list.csv'):
  path = folder / name
  path.write_text(text)
  return listings.read(path)


def test_the_listing_of_embed_is_read(tmp_path):
  listing = read(
    tmp_path,
    'row,place,path,latitude_deg,longitude_deg\n'
    '0,839,"a,1.jpg",48.1,11.5\n'
    '1,-1,b.jpg,nan,nan\n',
  )
  assert len(listing) == 2
  assert listing.labels.tolist() == ['839', '-1']
  assert listing.paths.tolist() == ['a,1.jpg', 'b.jpg']
  np.testing.assert_array_equal(listing.latlon_deg[0], [48.1, 11.5])
  assert np.isnan(listing.latlon_deg[1]).all()
  assert listing.positives is None and listing.metres is None


@pytest.mark.parametrize(
  'text', ['7\n8\n', 'label\n7\n8\n', 'x\tClass\n1\t7\n2\t8\n', '7\r\n8']
)
def test_labels_alone_need_no_header(tmp_path, text):
  assert read(tmp_path, text, 'l.txt').labels.tolist() == ['7', '8']


def test_positives_and_metres_are_read(tmp_path):
  listing = read(
    tmp_path,
    'positive,semi_positives,easting_m,northing_m\n3,1 2;5,10.5,20\n0,,1,\n',
  )
  assert listing.positives == [('3',), ('0',)]
  assert listing.semi_positives == [('1', '2', '5'), ()]
  np.testing.assert_array_equal(listing.metres, [[10.5, 20], [1, np.nan]])
  assert listing.labels is None


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'list.csv: empty'),
    ('place,path\n1,a\n2\n', 'line 3: 1 columns, the header has 2'),
    ('place,path\n1,a,b.jpg\n', 'line 2.*quotes'),
    ('building,picture\n1,2\n', "names none that is known.*'place'"),
    ('building\n1\n2\n', "first line 'building' is no number"),
    ('row,place\n0,5\n2,6\n', 'column row does not count 0, 1, ..., 1'),
    ('x_m,y_m\n1,2\n1,east\n', "entry 1: y_m is 'east', expected a number"),
    ('place\n"1\n', 'no list in CSV form'),
  ],
)
def test_faults_name_the_line(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, text)


def test_a_file_that_is_no_text_is_named(tmp_path):
  (tmp_path / 'x.csv').write_bytes(b'\xff\xfe\x00\x81')
  with pytest.raises(ValueError, match=r'x\.csv: no list'):
    listings.read(tmp_path / 'x.csv')
  with pytest.raises(ValueError, match=r'none\.csv: no such file'):
    listings.read(tmp_path / 'none.csv')


def matched(query, gallery):
  return listings.match_labels(
    np.array(query), np.array(gallery), names=('q.csv', 'g.mat')
  )


@pytest.mark.parametrize(
  ('query', 'gallery'),
  [
    (['0839', '1', '-1'], [1, 839, -1]),
    ([839, 1, -1], ['0001', '+839', '-1']),
    (['house', 'x1', '-1'], ['x1', 'house', '-1']),
  ],
)
def test_labels_are_equal_numbers_where_they_are_equal(query, gallery):
  query, gallery = matched(query, gallery)
  assert query.dtype == gallery.dtype == np.int64
  assert query[0] == gallery[1] and query[1] == gallery[0] != query[0]
  assert query[2] == gallery[2] == -1


def test_numbers_and_names_do_not_meet():
  with pytest.raises(ValueError, match=r"q\.csv are numbers.*g\.mat.*'house'"):
    matched([1, 2], ['1', 'house'])
  with pytest.raises(ValueError, match=r"g\.mat are numbers.*q\.csv.*'house'"):
    matched(['1', 'house'], [1, 2])


def test_positives_are_rows_or_names():
  rows = listings.gallery_rows(
    [('2', 'b.png'), (), ('x/a.png',)],
    3,
    paths=np.array(['x/a.png', 'y/b.png', 'z/a.png']),
    where='q.csv, column positive',
  )
  np.testing.assert_array_equal(rows, [[2, 1], [-1, -1], [0, -1]])


@pytest.mark.parametrize('name', ['3', '-1', 'a.png', 'c.png'])
def test_positives_that_do_not_exist_or_are_ambiguous_are_named(name):
  with pytest.raises(ValueError, match=rf"q\.csv, entry 1: '{name}' is no row"):
    listings.gallery_rows(
      [('2',), (name,)],
      3,
      paths=np.array(['x/a.png', 'y/b.png', 'z/a.png']),
      where='q.csv',
    )
