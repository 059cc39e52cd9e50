"""Findings about a download: what is there, what is missing or misplaced."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

MARKS = {
  'ok': 'ok     ',
  'note': 'note   ',
  'warning': 'WARNING',
  'error': 'ERROR  ',
}


@dataclasses.dataclass
class Report:
  """Lines with a level; one error makes the download unusable.

  Attributes:
    title: the first line.
    expected: the layout that the builder wants, shown when it is unusable.
    findings: (level, text); levels are the keys of MARKS.
  """

  title: str
  expected: str
  findings: list[tuple[str, str]] = dataclasses.field(default_factory=list)

  def ok(self, text: str) -> None:
    self.findings.append(('ok', text))

  def note(self, text: str) -> None:
    self.findings.append(('note', text))

  def warning(self, text: str) -> None:
    self.findings.append(('warning', text))

  def error(self, text: str) -> None:
    self.findings.append(('error', text))

  @property
  def usable(self) -> bool:
    return all(level != 'error' for level, _ in self.findings)

  def select(self, level: str) -> list[str]:
    """The texts of one level."""
    return [text for found, text in self.findings if found == level]

  def text(self) -> str:
    """The whole report; ends with the verdict."""
    lines = [self.title]
    lines += [f'  {MARKS[level]} {text}' for level, text in self.findings]
    if self.usable:
      count = len(self.select('warning'))
      lines.append(f'usable, {count} warnings' if count else 'usable')
    else:
      lines += ['not usable. The builder expects', self.expected.rstrip()]
    return '\n'.join(lines) + '\n'


def listing(items: Iterable[object], *, limit: int = 8) -> str:
  """'a b c ... (12 in all)'."""
  items = list(items)
  text = ' '.join(str(item) for item in items[:limit])
  return text if len(items) <= limit else f'{text} ... ({len(items)} in all)'


def nearest(name: str, valid: Sequence[str]) -> str | None:
  """The valid name that a folder was probably meant to have."""
  plain = {entry.lower().replace('-', '_'): entry for entry in valid}
  near = difflib.get_close_matches(
    name.lower().replace('-', '_').replace(' ', '_'), plain, n=1, cutoff=0.75
  )
  return plain[near[0]] if near else None
