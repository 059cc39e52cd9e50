"""Configuration sections to objects, and modules by name, both with errors
that a user can act on.

Every section of a config becomes a frozen dataclass through `make`: a key that
the dataclass does not have is an error that names the nearest valid key, so a
misspelt option never trains silently with a default. Components (methods,
evaluators, data sets) are found by module name through `load`; there is no
registry to fill.
"""

import dataclasses
import difflib
import importlib
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar('T')


def make(cls: type[T], section: Mapping[str, Any], where: str) -> T:
  """Builds a dataclass from a config section.

  Args:
    cls: a dataclass; its fields are the valid keys, their defaults are the
      defaults.
    section: key -> value. Nested sections are built too where a field's type
      is a dataclass. A value of None (an unset placeholder) means "use the
      default" for a field that does not accept None.
    where: the name of the section in error messages, such as 'config.method'.

  Returns:
    An instance of `cls`.

  Raises:
    ValueError: an unknown key (with the nearest valid one), a value of the
      wrong type, or a missing required key.
  """
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  hints = typing.get_type_hints(cls)
  unknown = [key for key in section if key not in fields]
  if unknown:
    key = unknown[0]
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f'; did you mean {near}?' if near else '.'
    raise ValueError(
      f'{where}: unknown key {key!r}{hint} {cls.__name__} takes {sorted(fields)}'
    )
  values = {}
  for key, value in section.items():
    accepted = _accepted(hints[key])
    if value is None and type(None) not in accepted:
      continue
    values[key] = _coerce(value, accepted, hints[key], f'{where}.{key}')
  missing = [
    name
    for name, f in fields.items()
    if name not in values
    and f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise ValueError(
      f'{where}: missing {missing}; {cls.__name__} takes {sorted(fields)}'
    )
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def load(package: str, name: str, symbol: str) -> Any:
  """Returns `symbol` of the module `package.name`.

  Raises:
    ValueError: there is no such module (the message lists those that exist)
      or the module lacks the symbol.
  """
  folder = importlib.import_module(package)
  names = sorted(
    path.stem
    for root in folder.__path__
    for path in pathlib.Path(root).glob('*.py')
    if path.stem != '__init__'
  )
  if name not in names:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f'; did you mean {near}?' if near else ''
    raise ValueError(
      f'no module {name!r} in {package}{hint}; there are {names}'
    )
  module = importlib.import_module(f'{package}.{name}')
  if not hasattr(module, symbol):
    raise ValueError(f'{package}.{name} has no {symbol}')
  return getattr(module, symbol)


def _accepted(hint: Any) -> tuple[type, ...]:
  """The runtime types of an annotation; () when it says nothing usable."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return tuple(t for arg in typing.get_args(hint) for t in _accepted(arg))
  if origin is typing.Literal:
    return tuple({type(value) for value in typing.get_args(hint)})
  if origin is not None:
    return (origin,)
  return (hint,) if isinstance(hint, type) else ()


def _coerce(value: Any, accepted: tuple, hint: Any, where: str) -> Any:
  """Checks one value; lists become tuples, integers become floats."""
  for kind in accepted:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
      return make(kind, value, where)
  if isinstance(value, Mapping):
    value = {key: value[key] for key in value}
  if isinstance(value, list) and list not in accepted:
    value = tuple(value)
  whole_number = isinstance(value, int) and not isinstance(value, bool)
  if whole_number and float in accepted and int not in accepted:
    value = float(value)
  is_bool_for_number = isinstance(value, bool) and bool not in accepted
  if accepted and (not isinstance(value, accepted) or is_bool_for_number):
    names = ' or '.join(kind.__name__ for kind in accepted)
    raise ValueError(f'{where}: got {value!r}, expected {names}')
  if typing.get_origin(hint) is tuple and isinstance(value, tuple):
    value = _coerce_elements(value, typing.get_args(hint), where)
  if typing.get_origin(hint) is typing.Literal:
    choices = typing.get_args(hint)
    if value not in choices:
      near = difflib.get_close_matches(str(value), map(str, choices), n=1)
      tip = f'; did you mean {near}?' if near else ''
      raise ValueError(
        f'{where}: got {value!r}, expected one of {choices}{tip}'
      )
  return value


def _coerce_elements(value: tuple, hints: tuple, where: str) -> tuple:
  """Checks the elements of `tuple[X, ...]` or `tuple[X, Y]`."""
  if len(hints) == 2 and hints[1] is Ellipsis:
    hints = (hints[0],) * len(value)
  if len(hints) != len(value):
    raise ValueError(f'{where}: got {value!r}, expected {len(hints)} values')
  return tuple(
    _coerce(element, _accepted(hint), hint, where)
    for element, hint in zip(value, hints, strict=True)
  )
