"""Variables of several networks in one tree: {collection: {network: tree}}.

Networks that are embedded one by one, each on its own view, need no module
around them; these functions keep their variables apart by name, with the names
of the published checkpoints at the top ('query_net', 'reference_net').
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax


def init(
  networks: Mapping[str, nn.Module],
  rng: jax.Array,
  pictures: Mapping[str, jax.Array],
  *,
  options: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Random variables of every network.

  Args:
    networks: by name.
    rng: every network gets a key of its own.
    pictures: name -> [B, H, W, 3], normalised.
    options: name -> keywords of the network's call.
  """
  variables = {}
  for i, (name, network) in enumerate(networks.items()):
    own = network.init(
      jax.random.fold_in(rng, i), pictures[name], **options[name]
    )
    for collection, tree in own.items():
      variables.setdefault(collection, {})[name] = tree
  return variables


def train(
  network: nn.Module,
  name: str,
  params: Mapping[str, Any],
  mutable: Mapping[str, Any],
  x: jax.Array,
  *,
  rng: jax.Array,
  **options: Any,
) -> tuple[jax.Array, dict[str, Any]]:
  """One training pass of a network.

  Args:
    network: takes `train`.
    name: of the network.
    params: {network: tree}.
    mutable: {collection: {network: tree}}.
    x: [B, H, W, 3], normalised.
    rng: of the random stream 'dropout'.
    **options: of the network's call.

  Returns:
    (output, `mutable` after the pass, with the same structure).
  """
  own = {c: tree[name] for c, tree in mutable.items() if name in tree}
  output, after = network.apply(
    {'params': params[name], **own},
    x,
    train=True,
    mutable=list(own),
    rngs={'dropout': rng},
    **options,
  )
  mutable = {
    c: {**tree, name: after[c]} if c in own else tree
    for c, tree in mutable.items()
  }
  return output, mutable


def evaluate(
  network: nn.Module,
  name: str,
  variables: Mapping[str, Any],
  x: jax.Array,
  **options: Any,
) -> jax.Array:
  """The output of a network in evaluation mode; arguments as in `train`."""
  own = {c: tree[name] for c, tree in variables.items() if name in tree}
  return network.apply(own, x, train=False, **options)
