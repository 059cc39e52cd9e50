"""Looking into an unpacked download: its root, its files, a sample of headers.

Folders are listed and a few headers read; no picture is decoded, so that this
takes seconds for a hundred thousand files.
"""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

from data_builders import pictures, report

ARCHIVES = ('.zip', '.tar', '.tgz', '.gz', '.7z', '.rar', '.001', '.part')
SAMPLED_HEADERS = 12
ASPECT_TOLERANCE = 0.05


def subfolders(folder: pathlib.Path) -> list[str]:
  """Names of the visible subfolders, sorted; [] if there is no folder."""
  try:
    with os.scandir(folder) as entries:
      return sorted(
        entry.name
        for entry in entries
        if not entry.name.startswith(('.', '__MACOSX', '@')) and entry.is_dir()
      )
  except (FileNotFoundError, NotADirectoryError):
    return []


def find_root(
  folder: pathlib.Path,
  is_root: Callable[[pathlib.Path], bool],
  found: report.Report,
  *,
  wanted: str,
) -> pathlib.Path | None:
  """The folder that is the root of a download, up to two levels below.

  Args:
    folder: where to begin.
    is_root: says whether a folder is the root.
    found: gets a note when the root is below, an error when there is none.
    wanted: what makes a root, for the error.
  """
  if not folder.is_dir():
    found.error(f'{folder} is not a folder')
    return None
  level = [folder]
  for depth in range(3):
    roots = [candidate for candidate in level if is_root(candidate)]
    if len(roots) == 1:
      if depth:
        found.note(f'using {roots[0].relative_to(folder)}/ in this folder')
      return roots[0]
    if roots:
      found.error(
        'several downloads here: '
        f'{report.listing(root.relative_to(folder) for root in roots)};'
        ' give --manual_dir one of them'
      )
      return None
    level = [
      parent / name
      for parent in level
      for name in subfolders(parent)
      if not name.isdigit()  # a class folder holds pictures only
    ]
  for above in (folder.parent, folder.parent.parent):
    if is_root(above):
      found.error(
        f'{folder.name}/ is a part of the download; give --manual_dir={above}'
      )
      return None
  archives = [f.name for f in folder.iterdir() if f.suffix in ARCHIVES]
  if archives:
    found.error(f'not unpacked yet: {report.listing(sorted(archives))}')
  inside = report.listing(f'{name}/' for name in subfolders(folder))
  found.error(f'no {wanted} here; there are: {inside or "no folders"}')
  return None


class Files:
  """Which files exist below a root; each folder is listed once."""

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._names: dict[str, frozenset[str]] = {}

  def names(self, folder: str) -> frozenset[str]:
    """File names in a folder below the root; empty if there is none."""
    if folder not in self._names:
      try:
        with os.scandir(self._root / folder) as entries:
          names = frozenset(e.name for e in entries if not e.is_dir())
      except (FileNotFoundError, NotADirectoryError):
        names = frozenset()
      self._names[folder] = names
    return self._names[folder]

  def __contains__(self, path: str) -> bool:
    folder, _, name = path.rpartition('/')
    return name in self.names(folder)

  def example(self, path: str) -> str:
    """What there is in the folder of a file that is missing, in words."""
    folder = path.rpartition('/')[0]
    names = [n for n in self.names(folder) if pictures.is_picture(n)]
    if names:
      return f'{folder}/ has {len(names)} pictures, such as {min(names)}'
    if (self._root / folder).is_dir():
      return f'{folder}/ has no picture'
    return f'there is no folder {folder}/'


def has_aspect(width: int, height: int, aspect: float) -> bool:
  """Whether width / height is `aspect`, to 5 percent."""
  return abs(width / height / aspect - 1) <= ASPECT_TOLERANCE


def sample(
  root: pathlib.Path,
  files: Sequence[str],
  *,
  what: str,
  aspect: float,
  hint: str,
  found: report.Report,
) -> None:
  """Reports a number of pictures with sizes read from a dozen headers.

  Args:
    root: of the download.
    files: of one kind, below the root; they exist.
    what: begins the line, such as 'train: 35532 panoramas'.
    aspect: width / height that pictures of this kind have.
    hint: what has probably happened where all of the sample have another.
    found: gets an error if all of the sample do, a warning if some.
  """
  sizes: dict[str, None] = {}
  strange, opened = [], 0
  for file in files[:: max(1, len(files) // SAMPLED_HEADERS)]:
    try:
      header = pictures.header(root / file)
    except OSError:
      found.warning(f'{file}: not a picture that Pillow can open')
      continue
    opened += 1
    sizes[header] = None
    width, height = map(int, header.split(' ')[0].split('x'))
    if not has_aspect(width, height, aspect):
      strange.append(f'{file} ({width}x{height})')
  found.ok(f'{what} (sample: {report.listing(sizes, limit=3) or "unreadable"})')
  if not strange:
    return
  text = (
    f'width / height should be {aspect:g}, but is not in'
    f' {report.listing(strange, limit=3)}'
  )
  if len(strange) == opened:
    found.error(f'{text}. {hint}')
  else:
    found.warning(f'{text}; the builder refuses such pictures')


def compare_count(
  what: str, count: int, official: int, found: report.Report
) -> None:
  """Warns where a count is not that of the official release."""
  if count != official:
    found.warning(f'{what}: {count}; the release has {official}')


def lines(path: pathlib.Path) -> list[str]:
  """The lines of a text file without ends, blank ones at the end left out.

  Raises:
    ValueError: it cannot be read, is no text or is empty.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read as text ({error})') from error
  found = [line.rstrip() for line in text.splitlines()]
  while found and not found[-1]:
    found.pop()
  if not found:
    raise ValueError(f'{path} is empty')
  return found


def repeated(items: Iterable[str]) -> list[str]:
  """Items that occur more than once, sorted."""
  seen: set[str] = set()
  again: set[str] = set()
  for item in items:
    (again if item in seen else seen).add(item)
  return sorted(again)
