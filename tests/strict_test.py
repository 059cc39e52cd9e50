import dataclasses
from typing import Literal

import pytest

from cvgl_jax import strict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  margin: float = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  dim: int = 512
  temperature: float = 0.07
  pool: Literal['avg', 'max'] = 'avg'
  size: tuple[int, int] = (2, 2)
  cap: float | None = None
  inner: Inner = dataclasses.field(default_factory=Inner)
  flag: bool = False

  def __post_init__(self):
    if self.dim < 1:
      raise ValueError(f'dim: {self.dim} must be at least 1')


def test_values_reach_the_dataclass_and_lists_become_tuples():
  made = strict.make(
    Section, {'dim': 8, 'size': [3, 4], 'inner': {'margin': 1}}, 'config.x'
  )
  assert made == Section(dim=8, size=(3, 4), inner=Inner(margin=1.0))
  assert isinstance(made.inner.margin, float)


def test_an_unknown_key_names_the_nearest_and_all_valid_ones():
  with pytest.raises(ValueError) as error:
    strict.make(Section, {'temprature': 0.1}, 'config.method')
  text = str(error.value)
  assert "config.method: unknown key 'temprature'" in text
  assert "did you mean ['temperature']" in text and "'pool'" in text


@pytest.mark.parametrize(
  ('key', 'value', 'expected'),
  [
    ('dim', 'wide', 'config.method.dim'),
    ('dim', 1.5, 'expected int'),
    ('dim', True, 'expected int'),
    ('flag', 1, 'expected bool'),
    ('pool', 'average', "one of ('avg', 'max')"),
    ('dim', 0, 'must be at least 1'),
    ('inner', {'margn': 1.0}, 'config.method.inner'),
  ],
)
def test_a_wrong_value_names_its_key(key, value, expected):
  with pytest.raises(ValueError, match=r'config\.method') as error:
    strict.make(Section, {key: value}, 'config.method')
  assert expected in str(error.value)


def test_an_unset_placeholder_means_the_default():
  assert strict.make(Section, {'dim': None, 'cap': None}, 'c') == Section()


def test_a_missing_module_lists_those_that_exist():
  with pytest.raises(ValueError, match='university1652') as error:
    strict.load('cvgl_jax.methods', 'univrsity1652', 'Method')
  assert 'did you mean' in str(error.value)


def test_a_module_without_the_symbol_is_said():
  with pytest.raises(ValueError, match='has no Nothing'):
    strict.load('cvgl_jax.methods', 'university1652', 'Nothing')
