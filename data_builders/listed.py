"""Records of pictures that a list names: what CVUSA, CVACT and VIGOR share."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_builders import base, folders, pictures, records

PICTURES_PER_JOB = 48


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture to store.

  Attributes:
    path: as in the official release, with forward slashes.
    file: where it is, below the root of the download.
    aspect: width / height that it must have, to 5 percent.
    fields: keyword arguments of base.record.
    partner: the other picture of a pair. A pair is stored whole or not at
      all: row i of both splits stays the same pair.
  """

  path: str
  file: str
  aspect: float
  fields: Mapping[str, Any]
  partner: 'Picture | None' = None


def jobs(
  root: pathlib.Path,
  chosen: Sequence[Picture],
  *,
  check_partners: bool = False,
) -> list[base.Job]:
  """Jobs that store these pictures in this order.

  Args:
    root: of the download.
    chosen: the pictures of a split.
    check_partners: read the other picture of each pair too, and leave out
      pairs of which either is damaged. Needed only where damaged pictures are
      left out instead of ending the build.
  """
  runs = [
    tuple(chosen[start : start + PICTURES_PER_JOB])
    for start in range(0, len(chosen), PICTURES_PER_JOB)
  ]
  return [
    base.Job(len(run), functools.partial(read, str(root), run, check_partners))
    for run in runs
  ]


def missing_job(missing: Iterable[tuple[str, str]]) -> base.Job:
  """A job without pictures: puts (path, text) of missing ones in the report."""
  remarks = [records.Remark('missing', path, text) for path, text in missing]
  return base.Job(0, functools.partial(iter, remarks))


def read(
  root: str, chosen: Sequence[Picture], check_partners: bool
) -> Iterator[dict[str, Any] | records.Remark]:
  """The records of these pictures."""
  partners = [picture.partner for picture in chosen if picture.partner]
  lost = set()
  if check_partners and partners:
    lost = {path for path, image, _ in _checked(root, partners) if not image}
  checked = _checked(root, chosen)
  for picture, (path, image, remarks) in zip(chosen, checked, strict=True):
    yield from remarks
    if image is None:
      continue
    if picture.partner and picture.partner.path in lost:
      text = f'left out with {picture.partner.path}, the other of the pair'
      yield records.Remark('missing', path, text)
      continue
    yield base.record(image, path=path, **picture.fields)


def _checked(
  root: str, chosen: Sequence[Picture]
) -> list[tuple[str, bytes | None, list[records.Remark]]]:
  """`pictures.verified`, and the aspect."""
  results = []
  verified = pictures.verified(
    (pathlib.Path(root, picture.file), picture.path) for picture in chosen
  )
  for picture, (path, image, remarks) in zip(chosen, verified, strict=True):
    if image is not None:
      width, height = pictures.size(image)
      if not folders.has_aspect(width, height, picture.aspect):
        text = (
          f'{width}x{height} pixels; width / height must be {picture.aspect:g}'
        )
        image, remarks = None, [records.Remark('damaged', path, text)]
    results.append((path, image, remarks))
  return results
