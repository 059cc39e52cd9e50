"""The train state before the first step, born sharded."""

from collections.abc import Callable
from typing import Any

import jax

from cvgl_jax import experiment, mining, settings, sharding
from cvgl_jax import state as state_lib


def maker(
  method: Any,
  tx: Any,
  checked: settings.Settings,
  mesh: jax.sharding.Mesh,
  *,
  miner: mining.Miner,
) -> tuple[Callable[[], state_lib.State], Any, Any]:
  """How to make the state before the first step; its shapes and shardings.

  Nothing is computed or read until the maker is called: a resumed run needs
  neither a second copy of the state nor the files of `config.init`. The shapes
  and shardings have the teacher, if there is one; what is made does not.
  """
  sizes = experiment.network_sizes(checked, method.views)
  build_state = lambda variables: state_lib.make_state(
    variables,
    tx,
    ema=checked.train.ema_decay > 0,
    mining=miner.initial(method, variables, sizes),
  )
  from_random = lambda: build_state(experiment.init_variables(method, checked))
  shapes = jax.eval_shape(from_random)
  if getattr(method, 'needs_teacher', False):
    shapes = shapes.replace(teacher=experiment.init_shapes(method, checked))
  shardings = sharding.state_sharding(
    shapes,
    mesh,
    fsdp=checked.train.fsdp,
    fsdp_min_size=checked.train.fsdp_min_size,
  )
  own = shardings.replace(teacher=None)

  def make() -> state_lib.State:
    if checked.init == settings.Init():
      return jax.jit(from_random, out_shardings=own)()
    variables = experiment.variables_before_training(method, checked, mesh)
    return jax.jit(build_state, out_shardings=own)(variables)

  return make, shapes, shardings
