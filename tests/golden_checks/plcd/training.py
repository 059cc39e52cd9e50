"""One training step, two whole ones, the optimiser, the moving average."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvgl_jax import state as state_lib
from cvgl_jax.losses import classification, peer
from cvgl_jax.methods import plcd
from cvgl_jax.models import backbones, layers, peer_network, resnet
from cvgl_jax.optim import build, ema
from tests import formula_weights, full_networks
from tests.golden_case import Case
from tests.torch_names import leaf, nhwc

VIEWS = {0: ('satellite', 'drone'), 1: ('street', 'drone')}


def check_step(case: Case) -> None:
  """Mining, losses and gradients of given features."""
  arrays = {k: jnp.asarray(case[f'in/{k}']) for k in ('f', 'pf')}
  logits = {k: jnp.asarray(case[f'in/{k}']) for k in ('outputs', 'outputs2')}
  labels = jnp.asarray(case['in/labels'], jnp.int32)
  batch, rows = len(arrays['f']), len(arrays['pf'])
  case.equal('in/opt_batchsize', batch)
  peer_labels = jnp.repeat(labels, rows // batch)
  case.equal('out/pos_labels', peer_labels)
  generation, hiera = case.scalar('in/opt_gen'), case.scalar('in/opt_hiera')
  teacher = None
  if generation:
    taught = [case['in/pf_teacher'][None]]
    if hiera:
      arrays['part_f'] = jnp.asarray(case['in/part_f'])
      taught.append(case['in/part_f_teacher'])
    teacher = case['in/f_teacher'], np.concatenate(taught).swapaxes(0, 1)
  mined = peer.mine(
    peer.scores(arrays['f'], arrays['pf']),
    labels,
    peer_labels,
    easy_positive=bool(case.scalar('in/opt_easy_pos')),
    negatives=10,
  )
  case.equal('out/pos_index', mined.positive)
  case.equal('out/neg_index', mined.negatives)

  def ranking(arrays):
    score = peer.scores(arrays['f'], arrays['pf'])
    return peer.ranking(score, mined, pairing='tiled')

  def distilled(arrays):
    rows = arrays['pf'][None]
    if 'part_f' in arrays:
      rows = jnp.concatenate([rows, arrays['part_f']])
    return peer.distillation(
      (arrays['f'], rows.swapaxes(0, 1)), teacher, tau=case.scalar('in/opt_tau')
    )

  def identity(logits):
    return classification.cross_entropy(
      logits['outputs'], labels
    ) + classification.cross_entropy(logits['outputs2'], peer_labels)

  weight = [case.scalar(f'in/opt_lambda{i}') for i in (1, 2, 3)]
  loss1, grad1 = jax.value_and_grad(ranking)(arrays)
  loss2, grad2 = jax.value_and_grad(identity)(logits)
  total, grads = weight[0] * loss1 + weight[1] * loss2, grad1
  grads = jax.tree.map(lambda g: weight[0] * g, grad1)
  if generation:
    loss3, grad3 = jax.value_and_grad(distilled)(arrays)
    case.close('out/loss_part', loss3, rtol=1e-6)
    total += weight[2] * loss3
    grads = jax.tree.map(lambda a, b: a + weight[2] * b, grads, grad3)
    for name in ('f', 'pf'):
      case.close(f'out/d_loss_part_d_{name}', grad3[name], rtol=1e-6)
  else:
    # tau belongs to the distillation, which generation 0 has not.
    case.ignore('in/opt_tau', 'no distillation in generation 0')
  case.close('out/loss1', loss1, rtol=1e-6)
  case.close('out/loss2', loss2, rtol=1e-6)
  case.close('out/loss', total, rtol=1e-6)
  for name in ('f', 'pf'):
    case.close(f'out/d_loss1_d_{name}', grad1[name], rtol=1e-6)
  for name, grad in grads.items():
    case.close(f'out/grad_{name}', grad, rtol=1e-6)
  for name, grad in grad2.items():
    case.close(f'out/grad_{name}', weight[1] * grad, rtol=1e-6)
  check_scores(case, arrays, mined)


def check_scores(case: Case, arrays, mined: peer.Mined) -> None:
  """What the loss compares, from the rows that were chosen."""
  f, pf = (np.asarray(arrays[name], np.float64) for name in ('f', 'pf'))
  positive = (f * pf[mined.positive]).sum(axis=1)
  index = np.asarray(mined.negatives)
  negative = np.einsum('bd,bnd->bn', f, pf[index]) * (index >= 0)
  case.close('out/nscore', negative.reshape(-1), rtol=1e-6)
  tiled = np.tile(positive, index.shape[1])
  case.close('out/pscore_tiled', tiled, rtol=1e-6)


@contextlib.contextmanager
def one_block_a_stage():
  """The trunk of these files: torchvision's ResNet(Bottleneck, [1, 1, 1, 1])."""
  names = backbones.NAMES
  resnet.VARIANTS['resnet_tiny'] = (resnet.Bottleneck, (1, 1, 1, 1))
  backbones.NAMES = (*names, 'resnet_tiny')
  try:
    yield 'resnet_tiny'
  finally:
    del resnet.VARIANTS['resnet_tiny']
    backbones.NAMES = names


def check_train(case: Case) -> None:
  """Two steps of the unmodified training function, with the teacher's pass."""
  with one_block_a_stage() as backbone:
    generation = case.scalar('in/opt_gen')
    method = plcd.Method(
      num_classes=case.scalar('in/num_classes'),
      views=VIEWS[min(generation, 1)],
      generation=generation,
      regions=case.scalar('in/opt_hiera'),
      easy_positive=bool(case.scalar('in/opt_easy_pos')),
      lambda_metric=case.scalar('in/opt_lambda1'),
      lambda_identity=case.scalar('in/opt_lambda2'),
      lambda_distill=case.scalar('in/opt_lambda3'),
      tau=case.scalar('in/opt_tau'),
      backbone=backbone,
      droprate=0.0,
    )
    # In float64: batch norms over few samples amplify the rounding of a step.
    with jax.enable_x64(True), nn.intercept_methods(convolved_by_products):
      run_steps(case, method)


def convolved_by_products(call, args, kwargs, context):
  """A convolution as matrix products: XLA has no fast one in float64."""
  module = context.module
  if not isinstance(module, nn.Conv) or module.is_initializing():
    return call(*args, **kwargs)
  kernel = module.get_variable('params', 'kernel')
  x = jnp.pad(args[0], [(0, 0), *module.padding, (0, 0)])
  # Windows are made again in the backward pass: they are large.
  return jax.checkpoint(windows_times, static_argnums=2)(
    x, kernel, module.strides
  )


def windows_times(x, kernel, strides):
  (rows, columns), (down, right) = kernel.shape[:2], strides
  height = (x.shape[1] - rows) // down + 1
  width = (x.shape[2] - columns) // right + 1
  windows = [
    x[:, i : i + height * down : down, j : j + width * right : right]
    for i in range(rows)
    for j in range(columns)
  ]
  flat = kernel.reshape(-1, kernel.shape[-1])
  return jnp.concatenate(windows, axis=-1) @ flat


def run_steps(case: Case, method: plcd.Method) -> None:
  source = full_networks.source(case, 'train_tiny_names')
  names = list(source)
  size = (case.scalar('in/image_size'),) * 2
  sizes = dict.fromkeys(method.views, size)
  trained = lambda entries: full_networks.variables(
    method, sizes, {k: v for k, v in entries.items() if '.fc.' not in k}
  )
  tx, _ = build.make(
    build.Optimizer(
      name='sgd',
      lr=case.scalar('in/opt_lr'),
      momentum=0.9,
      nesterov=True,
      weight_decay=5e-4,
      groups={'classifier': 1.0, 'backbone': 0.1},
    ),
    steps_per_epoch=1000,
    total_epochs=1,
    labels=method.label,
  )
  state = state_lib.make_state(doubled(trained(source)), tx, ema=False)
  if method.needs_teacher:
    # The same rule with other names.
    other = {
      name: formula_weights.entry(f'teacher.{name}', value.shape)
      for name, value in source.items()
    }
    state = state.replace(teacher=doubled(trained(other)))
  step = jax.jit(
    state_lib.make_train_step(
      method, tx, augment=lambda key, image, view: image, seed=0
    )
  )
  labels = jnp.asarray(case['in/labels'], jnp.int32)
  # Ours keeps the teacher as it is; the reference moves what nothing reads.
  moved, moving = state.teacher, jax.jit(teachers_statistics, static_argnums=0)
  logged, before = [], entries_of(state, names, source)
  for i, seed in enumerate(case['in/seeds']):
    batch = batch_of(seed, labels, size, method.views)
    if method.needs_teacher:
      moved = {**moved, 'batch_stats': moving(method, moved, batch)}
    state, metrics = step(state, batch)
    logged.append(metrics)
    after = entries_of(state, names, source)
    check_entries(case, i, before, after)
    before = after
  for ours, key in (
    ('loss', 'loss_total'),
    ('metric', 'loss1'),
    (f'ce/{method.views[0]}', 'ce_x1'),
    ('ce/drone', 'ce_x2'),
    ('distill', 'loss_part'),
  ):
    if f'out/{key}' in case:
      expected, got = case[f'out/{key}'], [float(m[ours]) for m in logged]
      np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5)
  assert case.scalar('in/batchsize') == len(labels)
  if method.needs_teacher:
    mean = leaf(moved['batch_stats'], 'classifier.add_block.1.running_mean')
    key = 'out/teacher.classifier.add_block.1.running_mean'
    case.close(key, mean, rtol=1e-4)


def doubled(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def batch_of(seed, labels, size, views):
  """What the files are of: normalised noise, here as pixels."""
  rng = np.random.default_rng(seed)
  anchors = rng.standard_normal((len(labels), 3, *size)).astype(np.float32)
  shape = (len(labels), 6, 3, *size)
  peers = rng.standard_normal(shape).astype(np.float32)
  pixels = lambda x: (nhwc(x) * layers.STD + np.array(layers.MEAN)) * 255
  return {
    views[0]: {
      'image': jnp.asarray(pixels(anchors)),
      'label': labels,
    },
    views[1]: {
      'image': jnp.asarray(pixels(peers.reshape(-1, 3, *size))),
      'label': jnp.repeat(labels, 6),
    },
  }


def teachers_statistics(method, teacher, batch):
  """Running statistics after a pass of the teacher in training mode."""
  pictures = [
    layers.normalize_image(batch[view]['image']) for view in method.views
  ]
  _, after = method.network.apply(
    teacher,
    *pictures,
    parts=0,
    recorded_parts=peer_network.REGIONS,
    train=True,
    method='both',
    mutable=['batch_stats'],
  )
  return after['batch_stats']


def entries_of(state, names, source) -> dict[str, np.ndarray]:
  """The state dict of a train state; what ours lacks stays as it was."""
  variables = {'params': state.params, **state.mutable}
  entries = {}
  for name in names:
    if '.fc.' in name:
      entries[name] = source[name]
      continue
    kind = 'batch_stats' if 'running_' in name else 'params'
    entries[name] = np.asarray(leaf(variables[kind], name), np.float64)
  return entries


def check_entries(case, i, before, after) -> None:
  names = list(after)
  moved = np.array([np.linalg.norm(after[n] - before[n]) for n in names])
  expected = case['out/update_l2'][i]
  # A bias before a batch norm has no gradient; what it does is rounding.
  floor = 1e-6 * expected.max()
  np.testing.assert_allclose(moved, expected, rtol=0.01, atol=floor)
  stats = np.array([statistics(after[n]) for n in names])
  expected = case['out/param_stats'][i]
  # A sum of n terms cancels: its rounding is to be seen beside sqrt(n) |x|.
  largest = np.sqrt([after[n].size for n in names]) * expected[:, 1]
  error = np.abs(stats - expected)
  assert (error[:, 0] <= 1e-5 * largest).all()
  np.testing.assert_allclose(
    stats[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4
  )
  for key in case.keys('out/classifier.'):
    np.testing.assert_allclose(
      after[key.removeprefix('out/')], case[key][i], rtol=1e-4, atol=1e-5
    )


def statistics(value: np.ndarray) -> list[float]:
  """Sum, L2 norm, first four values (zero padded)."""
  flat = value.reshape(-1)
  head = np.zeros(4)
  head[: min(4, flat.size)] = flat[:4]
  return [flat.sum(), np.linalg.norm(flat), *head]


def check_sgd(case: Case) -> None:
  """Head at lr, everything else at a tenth; a factor 0.1 after the steps."""
  names = [n for n in case.prefix('param/') if not n.startswith('unused')]
  params = {name: jnp.asarray(case[f'param/{name}']) for name in names}
  grads = {name: case[f'in/grad/{name}'] for name in names}
  steps = len(grads[names[0]])
  ends = case['in/epoch_end_after_step']
  config = build.Optimizer(
    name='sgd',
    lr=case.scalar('in/lr'),
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    groups={'classifier': 1.0, 'backbone': 0.1},
    schedule='step',
    # 40 epochs end at once after this step, so a step is an epoch here.
    step_at_epochs=tuple(float(end + 1) for end in ends),
    gamma=0.1,
  )
  group = plcd.Method().label
  label = lambda path: group(path.replace('.', '/'))
  tx, schedule = build.make(
    config, steps_per_epoch=1, total_epochs=steps, labels=label
  )
  state, rates = tx.init(params), []
  update = jax.jit(tx.update)
  for i in range(steps):
    now = {name: jnp.asarray(grads[name][i]) for name in names}
    updates, state = update(now, state, params)
    params = optax.apply_updates(params, updates)
    for name in names:
      np.testing.assert_allclose(
        params[name],
        case[f'out/param/{name}'][i],
        rtol=0,
        atol=1e-6 * np.abs(case[f'out/param/{name}'][i]).max(),
      )
    rates.append([0.1 * float(schedule(i)), float(schedule(i))])
  case.close('out/lr_base_classifier', rates, rtol=1e-6)
  case.ignore('param/unused.*', 'never in the loss: not in our tree')
  case.ignore('out/param/unused.*', 'never in the loss: not in our tree')


def check_ema(case: Case) -> None:
  target, source = case.prefix('in/target/'), case.prefix('in/source/')
  is_buffer = lambda name: 'running_' in name
  averaged = ema.update(
    {k: jnp.asarray(v) for k, v in target.items() if not is_buffer(k)},
    {k: jnp.asarray(v) for k, v in source.items() if not is_buffer(k)},
    decay=case.scalar('in/beta'),
  )
  for name, value in target.items():
    if is_buffer(name):
      case.equal(f'out/target/{name}', value)
    else:
      case.close(f'out/target/{name}', averaged[name], rtol=1e-6)
  case.ignore('in/source/*', 'running statistics of the source are not read')


CHECKS = {
  'step_': check_step,
  'train_tiny_': check_train,
  'sgd_two_groups': check_sgd,
  'ema': check_ema,
}
