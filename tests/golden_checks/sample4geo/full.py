"""Sample4Geo's ConvNeXt-B at full size, with weights in the released names."""

import numpy as np

from cvgl_jax.methods import sample4geo
from tests import full_networks
from tests.golden_case import Case


def check_convnext_base(case: Case) -> None:
  method = sample4geo.Method()
  pictures = {
    view: full_networks.inputs(case, f'in/seed{i}', f'in/shape{i}')
    for i, view in enumerate(method.views, 1)
  }
  variables = full_networks.variables(
    method,
    {view: x.shape[1:3] for view, x in pictures.items()},
    full_networks.source(case, 'convnext_base_names'),
  )
  rows = {name: [] for name in case.prefix('out/stat/')}
  for i, x in enumerate(pictures.values(), 1):
    embedding, maps = full_networks.run(
      method.network, variables['params']['model'], x, train=False
    )
    case.close(f'out/features{i}', embedding, rtol=2e-5, scale=1)
    for name in rows:
      last = full_networks.last_of(maps, name.replace('.', '_'))
      rows[name].append(full_networks.stats(full_networks.output(maps, last)))
  for name, values in rows.items():
    case.close(f'out/stat/{name}', np.array(values), rtol=1e-4, scale=1)


CHECKS = {'convnext_base_full': check_convnext_base}
