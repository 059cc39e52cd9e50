"""The builder that every data set of cvgl_jax derives from.

One record is one picture. A builder says which pictures exist, in which order
(`jobs`), and how the records of one job are made; reading, rendering and
verifying then run in as many processes as asked for, and the result does not
depend on their number: records are written in the order of the jobs.

  class Builder(base.Builder):
    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}
    DESCRIPTION = '...'

    def jobs(self, manual_dir):
      return {
        'train_drone': [
          base.Job(size=54, make=functools.partial(render, place))
          for place in range(701)
        ]
      }

A data set whose official protocols choose from the same pictures stores them
once and says in `protocols` which rows make the splits of each: 'vigor/same'
and 'vigor/cross' are opened like data sets and share the records of 'vigor'.

`make` is called in a worker process: a module-level function, or
functools.partial of one with picklable arguments. It yields what `record`
returns, in order, and a `records.Remark` where something is worth a report.

Layout on disk: <data_dir>/<name>/[<config>/]<version>/ with TFDS' metadata,
ArrayRecord shards, index-<split>.npz and build_report.json (records.py).
"""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import example_serializer

from data_builders import progress, records, unfinished

SHARD_BYTES = 512 << 20
UNKNOWN_LATLON_DEG = (float('nan'), float('nan'))


@dataclasses.dataclass(frozen=True)
class Job:
  """A run of consecutive records of one split, made in one go.

  Attributes:
    size: how many records it is expected to make (for the progress line).
    make: picklable; yields records and `records.Remark`s in order. A job is
      held in memory as a whole: keep it to tens or hundreds of pictures.
  """

  size: int
  make: Callable[[], Iterable[dict[str, Any] | records.Remark]]


def features(**extra: Any) -> tfds.features.FeaturesDict:
  """The features of a record; `extra` adds those of one data set."""
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'place': tfds.features.Scalar(np.int64),
      'path': tfds.features.Text(),
      # TFDS stores plain float64 as float32 (0.1 m of longitude is lost).
      'latlon_deg': tfds.features.Tensor(
        shape=(2,), dtype=np.float64, encoding='bytes'
      ),
      'heading_deg': tfds.features.Scalar(np.float32),
      'altitude_m': tfds.features.Scalar(np.float32),
      'frame': tfds.features.Scalar(np.int64),
      **extra,
    }
  )


def record(
  image: bytes,
  *,
  place: int,
  path: str,
  latlon_deg: Sequence[float] = UNKNOWN_LATLON_DEG,
  heading_deg: float = float('nan'),
  altitude_m: float = float('nan'),
  frame: int = -1,
  **extra: Any,
) -> dict[str, Any]:
  """One picture as the features dict wants it.

  Args:
    image: an encoded picture (the bytes of the file); stored as it is.
    place: the place shown; pictures of one place have the same number in
      every split.
    path: where the official release has the picture, with forward slashes.
    latlon_deg: latitude, longitude (WGS 84); NaN = unknown.
    heading_deg: clockwise from north; NaN = unknown.
    altitude_m: of the camera above the ground; NaN = unknown.
    frame: number in a video or flight; -1 = unknown.
    **extra: features that `features` was given as extra.
  """
  return {
    'image': image,
    'place': int(place),
    'path': path,
    'latlon_deg': np.asarray(latlon_deg, np.float64),
    'heading_deg': np.float32(heading_deg),
    'altitude_m': np.float32(altitude_m),
    'frame': int(frame),
    **extra,
  }


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """ArrayRecord, rows in the order of the jobs, an index per split."""

  VERSION = tfds.core.Version('1.0.0')
  DESCRIPTION = ''
  HOMEPAGE = ''
  CITATION = ''
  # Whether the data set is made from a download (--manual_dir); builders that
  # render their pictures leave it False.
  NEEDS_MANUAL_DIR = False
  # Protocol -> one sentence; all of them are built at once.
  PROTOCOLS: ClassVar[Mapping[str, str]] = {}

  def __init__(
    self,
    *,
    file_format: str | None = None,
    num_processes: int = 1,
    skip_damaged: bool = False,
    **kwargs: Any,
  ):
    """Args beyond TFDS': worker processes; leave damaged pictures out."""
    super().__init__(file_format=file_format or 'array_record', **kwargs)
    self._num_processes = num_processes
    self._skip_damaged = skip_damaged

  def jobs(
    self, manual_dir: pathlib.Path | None
  ) -> Mapping[str, Sequence[Job]]:
    """Split name -> jobs in record order. `manual_dir` is the download."""
    raise NotImplementedError

  def protocols(
    self, stored: Mapping[str, Mapping[str, np.ndarray]]
  ) -> Iterable[records.Selection | records.Remark]:
    """Splits made of rows of the stored ones; called when all are written.

    Args:
      stored: split -> the columns of its index, pictures that were left out
        not in them. `path` is UTF-8 bytes.
    """
    del stored
    return ()

  def extra_features(self) -> dict[str, Any]:
    """Features of this data set beyond those of `features`."""
    return {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      features=features(**self.extra_features()),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> Mapping[str, Sequence[Job]]:
    # dl_manager.manual_dir asserts that the folder exists.
    manual_dir = (
      pathlib.Path(dl_manager.manual_dir) if self.NEEDS_MANUAL_DIR else None
    )
    return self.jobs(manual_dir)

  def _log_download_bytes(self) -> None:
    """TFDS would announce a download of unknown size; there is none."""

  def _log_download_done(self) -> None:
    """Said by `_generate_splits`, with numbers."""

  def _generate_examples(self, jobs: Sequence[Job]) -> Iterator[Any]:
    for job in jobs:
      yield from job.make()

  def _generate_splits(self, dl_manager, download_config):
    """Replaces TFDS' sort-and-copy writer by a stream; same files."""
    del download_config
    folder = pathlib.Path(self.data_dir)  # the unfinished one, by now
    unfinished.mark(folder)
    jobs = self._split_generators(dl_manager)
    bar = progress.Progress(
      self.info.full_name.rsplit('/', 1)[0],
      sum(job.size for split in jobs.values() for job in split),
    )
    remarks: list[records.Remark] = []
    infos = []
    stored: dict[str, dict[str, np.ndarray]] = {}
    stream = _run(
      [job for split in jobs.values() for job in split],
      self.info.features,
      num_processes=self._num_processes,
    )
    try:
      for split, split_jobs in jobs.items():
        bar.part(split)
        template = self._get_filename_template(split_name=split)
        writer = records.ShardWriter(template, shard_bytes=SHARD_BYTES)
        columns = records.Columns()
        for _ in split_jobs:
          made = next(stream)
          remarks.extend(made.remarks)
          for serialized, row in made.rows:
            writer.write(serialized)
            columns.add(row)
          bar.add(len(made.rows))
        writer.close()
        if not writer.lengths:
          continue  # damaged through and through; refused below
        stored[split] = columns.arrays()
        records.save_index(folder, split, stored[split])
        infos.append(
          tfds.core.SplitInfo(
            name=split,
            shard_lengths=writer.lengths,
            num_bytes=writer.num_bytes,
            filename_template=template,
          )
        )
    finally:
      stream.close()
      seconds = bar.close()
    _refuse(self.name, infos, jobs, remarks, skip_damaged=self._skip_damaged)
    protocols: dict[str, dict[str, int]] = {}
    for item in self.protocols(stored):
      if isinstance(item, records.Remark):
        remarks.append(item)
        continue
      records.save_selection(folder, item, stored[item.stored])
      protocols.setdefault(item.protocol, {})[item.split] = len(item.rows)
    _log_remarks(self.name, remarks)
    pictures = {info.name: sum(info.shard_lengths) for info in infos}
    records.write_report(folder, pictures, remarks, protocols=protocols)
    unfinished.unmark(folder)
    logging.info(
      '%s: %d pictures in %d splits, %.1f s (%.0f pictures/s)',
      self.info.full_name,
      sum(pictures.values()),
      len(pictures),
      seconds,
      sum(pictures.values()) / max(seconds, 1e-9),
    )
    return infos


@dataclasses.dataclass(frozen=True)
class _Made:
  """What a job made: (serialized record, its row of the index), remarks."""

  rows: list[tuple[bytes, dict[str, Any]]]
  remarks: list[records.Remark]


class _Maker:
  """Runs jobs and serializes their records; one per process."""

  def __init__(self, feature_dict: tfds.features.FeaturesDict):
    self._features = feature_dict
    self._serializer = example_serializer.ExampleSerializer(
      feature_dict.get_serialized_info()
    )

  def __call__(self, job: Job) -> _Made:
    rows, remarks = [], []
    for item in job.make():
      if isinstance(item, records.Remark):
        remarks.append(item)
        continue
      encoded = self._features.encode_example(item)
      row = {name: value for name, value in item.items() if name != 'image'}
      rows.append((self._serializer.serialize_example(encoded), row))
    return _Made(rows, remarks)


_process_maker: list[_Maker] = []  # of a worker process, set once at its start


def _start_process(feature_dict: tfds.features.FeaturesDict) -> None:
  threading.Thread(target=_end_with_parent, daemon=True).start()
  _process_maker[:] = [_Maker(feature_dict)]


def _end_with_parent() -> None:
  """A worker whose parent was killed would wait for jobs for ever."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _make_in_process(job: Job) -> _Made:
  return _process_maker[0](job)


def _run(
  jobs: Sequence[Job],
  feature_dict: tfds.features.FeaturesDict,
  *,
  num_processes: int,
) -> Iterator[_Made]:
  """Yields the result of each job, in the order of the jobs.

  Raises:
    ValueError: a worker process died.
  """
  if num_processes == 1:
    yield from map(_Maker(feature_dict), jobs)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    num_processes,
    # Fork copies the threads' locks of JAX and absl in an unknown state.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_process,
    initargs=(feature_dict,),
  )
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  rest = iter(jobs)
  try:
    # The window bounds the memory: results ahead of the writer are held.
    for job in rest:
      waiting.append(pool.submit(_make_in_process, job))
      if len(waiting) >= 3 * num_processes:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise ValueError(
      'a worker process died (out of memory, or killed); build with fewer '
      f'--num-processes than {num_processes}'
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _refuse(
  name: str,
  infos: Sequence[tfds.core.SplitInfo],
  jobs: Mapping[str, Sequence[Job]],
  remarks: Sequence[records.Remark],
  *,
  skip_damaged: bool,
) -> None:
  """Raises ValueError on damaged pictures (unless told to skip) and on nothing."""
  damaged = [r for r in remarks if r.kind == 'damaged']
  listing = '\n'.join(f'  {r.path}: {r.text}' for r in damaged)
  if damaged and not skip_damaged:
    raise ValueError(
      f'{name}: {len(damaged)} pictures cannot be read:\n{listing}\n'
      'Nothing was built. Get these files again, or leave them out with '
      '--skip-damaged.'
    )
  if damaged:
    logging.warning('%s: left out %d damaged:\n%s', name, len(damaged), listing)
  empty = [split for split in jobs if split not in {i.name for i in infos}]
  if empty or not infos:
    raise ValueError(
      f'{name}: no picture to write in split {empty or "(none found)"}'
    )


def _log_remarks(name: str, remarks: Sequence[records.Remark]) -> None:
  """One line for each kind of remark; the report has them all."""
  for kind, verb in (
    ('missing', 'missing'),
    ('converted', 'converted'),
    ('note', 'with a note'),
  ):
    chosen = [r for r in remarks if r.kind == kind]
    if chosen:
      logging.warning(
        '%s: %d pictures %s, such as %s: %s (all in %s)',
        name,
        len(chosen),
        verb,
        chosen[0].path,
        chosen[0].text,
        records.REPORT_FILE,
      )
