"""What a forward pass costs, without running it.

Papers state the multiply-accumulates of convolutions and matrix products
(often as "GFLOPs"); XLA counts every floating-point operation, two for a
multiply-accumulate and those of normalisations and activations too. Both are
given here: the first to compare with publications, the second to compare with
what an accelerator can do.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Cost(NamedTuple):
  """Of one call.

  Attributes:
    macs: multiply-accumulates of convolutions and matrix products, padding
      counted as pixels (as ptflops does).
    flops: all floating-point operations, as XLA's cost analysis counts the
      program before it is optimised.
  """

  macs: float
  flops: float


def forward(function: Callable[..., Any], *args: Any) -> Cost:
  """The cost of `function(*args)`; nothing is computed or compiled.

  Args:
    function: of JAX.
    *args: arrays, or `jax.ShapeDtypeStruct`s for them, in any trees.
  """
  traced = jax.jit(function).trace(*args)
  analysis = traced.lower().cost_analysis() or {}
  return Cost(_macs(traced.jaxpr.jaxpr), float(analysis.get('flops', 0.0)))


def _macs(jaxpr: core.Jaxpr) -> float:
  return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: core.JaxprEqn) -> float:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape
    return _size(equation) * math.prod(left[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    out_axis = params['dimension_numbers'].rhs_spec[0]
    # The kernel's input channels are those of one group.
    return _size(equation) * math.prod(kernel) / kernel[out_axis]
  inner = [_macs(each) for each in _jaxprs(params)]
  if name == 'cond':
    return max(inner)
  return sum(inner) * (params['length'] if name == 'scan' else 1)


def _size(equation: core.JaxprEqn) -> int:
  return math.prod(equation.outvars[0].aval.shape)


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
  """The programs inside an equation: of calls, branches, loops.

  A custom derivative has a program for the forward pass and functions for the
  others, which are no jaxprs yet.
  """
  found = []
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        found.append(item.jaxpr)
      elif isinstance(item, core.Jaxpr):
        found.append(item)
  return found
