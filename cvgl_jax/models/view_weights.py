"""Published weights for networks with one trunk a view.

The reference repositories of this family name the trunks 'model_1' (satellite),
'model_2' (street), 'model_3' (drone) and the head 'classifier'; inside a trunk
stand torchvision's names below 'model'. So do our modules, and one rule reads
both a checkpoint of the reference and ImageNet weights of a backbone.

Source: names of layumi/University1652-Baseline `model.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cvgl_jax.models import backbones, convnext, torch_weights


def fill(
  variables: Mapping[str, Any],
  source: Mapping[str, np.ndarray],
  *,
  trunks: Mapping[str, str],
  published_trunks: Mapping[str, str],
  num_classes: int,
  where: str,
  allowed_missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Takes a published checkpoint or ImageNet weights.

  Args:
    variables: of the network, {'params': tree, ...}.
    source: torch state dict as arrays. Names 'model_1.model.conv1.weight',
      'classifier.add_block.0.weight', ... fill everything (USAM included);
      torchvision names ('conv1.weight', ...), and all that
      `convnext.to_facebook` knows, fill every trunk and leave the head, GeM
      exponents and USAM as they are.
    trunks: view -> trunk in our network; views that share one have the same.
    published_trunks: view -> its trunk in the reference, whose checkpoints
      always have all of them.
    num_classes: training places of our network.
    where: the file, for messages.
    allowed_missing: variables that a checkpoint lacks (`torch_weights`).

  Returns:
    Variables of the same structure.

  Raises:
    ValueError: lists entries that are missing, extra or mis-shaped, and trunks
      that the network shares and the checkpoint does not; says which number of
      training places to set.
  """
  _check_num_classes(source, num_classes, where=where)
  ours = tuple(dict.fromkeys(trunks.values()))
  if not any(name.startswith('model_1.') for name in source):
    source = convnext.to_facebook(source)
    for trunk in ours:
      variables = torch_weights.convert_part(
        variables,
        (trunk, 'model'),
        source,
        where=f'{where} (ImageNet names)',
        allowed_extra=backbones.IMAGENET_HEADS,
        allowed_missing=(r'gem2/p',),
      )
    return variables
  aliases = {
    f'{published}.': f'{trunks[view]}.'
    for view, published in published_trunks.items()
    if trunks.get(view, published) != published
  }
  unused = sorted(set(published_trunks.values()) - set(ours))
  return torch_weights.convert(
    variables,
    torch_weights.drop_tied(source, aliases, where=where),
    where=where,
    allowed_extra=(
      *(rf'{trunk}\..*' for trunk in unused),
      # Never executed parts of torchvision, constant kernels of USAM.
      r'model_\d\.model\.(fc|classifier)\..*',
      r'model_\d\.usam_\d\.weight2?',
    ),
    allowed_missing=allowed_missing,
  )


def num_classes_of(source: Mapping[str, np.ndarray]) -> int:
  """Training places that a state dict classifies; 0 if it has no classifier."""
  last = source.get('classifier.classifier.0.weight')
  return 0 if last is None else len(last)


def _check_num_classes(
  source: Mapping[str, np.ndarray], expected: int, *, where: str
) -> None:
  """Refuses a checkpoint of another number of training places."""
  count = num_classes_of(source)
  if count and count != expected:
    raise ValueError(
      f'{where}: the checkpoint classifies {count} training places, the '
      f'method {expected}; set config.method.num_classes={count}'
    )
