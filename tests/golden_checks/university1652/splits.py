"""The ids of the official split, as the builder knows them."""

import json

from data_builders.university1652 import release


def check_splits(path):
  lists = json.loads(path.read_text())
  for ours, theirs in (
    (release.TRAIN, 'train'),
    (release.QUERY, 'query'),
    (release.DISTRACTOR, 'gallery_distractor'),
    (release.EMPTY['train/google'], 'train_google_empty'),
    (release.EMPTY['test/gallery_street'], 'test_gallery_street_empty_known'),
  ):
    assert ours == {int(number) for number in lists[theirs]}, theirs


JSON_CHECKS = {'splits_ids': check_splits}
