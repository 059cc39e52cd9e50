"""FRGeo and TransGeo at full size, with weights in the released names."""

from cvgl_jax.methods import frgeo, transgeo
from tests import full_networks
from tests.golden_case import Case


def check(case: Case, method, networks, listing, names_of, **options) -> None:
  """Embeddings to 2e-5, statistics of the maps inside to 1e-4 (README)."""
  pictures = {
    view: full_networks.inputs(case, f'in/seed_{key}', f'in/shape_{key}')
    for view, key in (('panorama', 'q'), ('satellite', 'k'))
  }
  variables = full_networks.variables(
    method,
    {view: x.shape[1:3] for view, x in pictures.items()},
    full_networks.source(case, listing),
  )
  for (view, x), key in zip(pictures.items(), 'qk', strict=True):
    network = networks[view]
    embedding, maps = full_networks.run(
      method.network,
      variables['params'][network],
      x,
      **{name: option(view) for name, option in options.items()},
    )
    case.close(f'out/embed_{key}', embedding, rtol=2e-5, scale=1)
    for name in case.prefix(f'out/stat/{network}.'):
      value = full_networks.output(maps, names_of(maps, name))
      case.close(
        f'out/stat/{network}.{name}',
        full_networks.stats(value),
        rtol=1e-4,
        scale=1,
      )


def check_frgeo(case: Case) -> None:
  check(
    case,
    frgeo.Method(),
    frgeo.NETWORKS,
    'frgeo_full_names',
    lambda maps, name: full_networks.last_of(maps, name.replace('.', '_')),
    train=lambda view: False,
    cut=lambda view: view,
  )


def check_transgeo(case: Case) -> None:
  check(
    case,
    transgeo.Method(),
    transgeo.NETWORKS,
    'transgeo_full_names',
    lambda maps, name: name.replace('.', '_'),
  )


CHECKS = {'frgeo_full_': check_frgeo, 'transgeo_full_': check_transgeo}
