"""The feature recombination module on given maps, and its gradient."""

import einops
import jax
import jax.numpy as jnp

from cvgl_jax.models import layers, recombination
from tests import torch_names
from tests.golden_case import Case


def check_frm(case: Case) -> None:
  x = jnp.asarray(torch_names.nhwc(case['in/x']))
  norm = {
    'scale': jnp.asarray(case['param/norm.weight']),
    'bias': jnp.asarray(case['param/norm.bias']),
  }
  # The README: square maps are cut as satellite pictures.
  cut = 'satellite' if x.shape[1] == x.shape[2] else 'panorama'

  def recombined(x):
    parts = recombination.recombine(x, cut=cut)
    parts = layers.layer_norm().apply({'params': norm}, parts)
    return einops.rearrange(parts, 'b p c -> b (p c)')

  y, pull = jax.vjp(recombined, x)
  [gradient] = pull(jnp.asarray(case['in/cotangent']))
  case.close('out/y', y, rtol=5e-6, scale=1)
  case.close('out/grad_x', torch_names.nchw(gradient), rtol=5e-6, scale=1)


CHECKS = {'frm_': check_frm}
