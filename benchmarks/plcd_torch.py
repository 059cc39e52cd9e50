"""The PyTorch side of `benchmarks.plcd_step`; needs torch.

Plain torch.nn, written after what the published code computes: a trunk for each
view, one head for both, which runs on region after region.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cvgl_jax.methods import plcd
from cvgl_jax.models import layers, peer_network
from cvgl_jax.optim import build


class Block(nn.Module):
  """Of a ResNet: two 3x3, or 1x1, 3x3 with the stride, 1x1 times four."""

  def __init__(self, inputs: int, outputs: int, *, stride: int, basic: bool):
    super().__init__()
    width = outputs if basic else outputs // 4
    layout = (  # kernel, channels, stride
      ((3, outputs, stride), (3, outputs, 1))
      if basic
      else ((1, width, 1), (3, width, stride), (1, outputs, 1))
    )
    parts, before = [], inputs
    for kernel, channels, by in layout:
      parts += [
        unit(before, channels, kernel, stride=by),
        nn.ReLU(inplace=True),
      ]
      before = channels
    self.body = nn.Sequential(*parts[:-1])
    same = stride == 1 and inputs == outputs
    self.shortcut = None if same else unit(inputs, outputs, 1, stride=stride)

  def forward(self, x):
    short = x if self.shortcut is None else self.shortcut(x)
    return torch.relu(self.body(x) + short)


def unit(inputs: int, outputs: int, kernel: int, *, stride: int):
  """Convolution and batch norm."""
  convolution = nn.Conv2d(
    inputs, outputs, kernel, stride, kernel // 2, bias=False
  )
  return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def trunk(backbone: str) -> tuple[nn.Module, int]:
  """ResNet-18 or -50 without pooling, and its channels."""
  basic = backbone == 'resnet18'
  depths = (2, 2, 2, 2) if basic else (3, 4, 6, 3)
  parts = [unit(3, 64, 7, stride=2), nn.ReLU(inplace=True)]
  parts.append(nn.MaxPool2d(3, 2, 1))
  channels = 64
  for stage, depth in enumerate(depths):
    outputs = 64 * 2**stage * (1 if basic else 4)
    for i in range(depth):
      stride = 2 if stage and not i else 1
      parts.append(Block(channels, outputs, stride=stride, basic=basic))
      channels = outputs
  return nn.Sequential(*parts), channels


class Network(nn.Module):
  """Two trunks and a head.

  Attributes:
    trunks: of the anchors, of the drone pictures.
    head: 'bottleneck' gives the feature, 'classifier' its logits.
  """

  def __init__(self, method: plcd.Method):
    super().__init__()
    first, channels = trunk(method.backbone)
    self.trunks = nn.ModuleList([first, trunk(method.backbone)[0]])
    bottleneck = nn.Sequential(
      nn.Linear(channels, method.dim),
      nn.BatchNorm1d(method.dim),
      nn.Dropout(method.droprate),
    )
    self.head = nn.ModuleDict(
      {
        'bottleneck': bottleneck,
        'classifier': nn.Linear(method.dim, method.num_classes),
      }
    )

  def describe(self, feature_map):
    """Feature and logits of a map or of a region of one."""
    vector = functional.adaptive_max_pool2d(feature_map, 1).flatten(1)
    h = self.head['bottleneck'](functional.normalize(vector))
    return h.float(), self.head['classifier'](h).float()


def losses(method: plcd.Method, found, taught, labels):
  """The loss of a batch.

  Args:
    method: its weights.
    found: (feature, logits) of the anchors, of every region, and of whole drone
      pictures.
    taught: the same of the teacher, or None.
    labels: of the anchors, of the drone pictures.
  """
  unit_features = lambda of: [functional.normalize(h) for h, _ in of]

  def shares(of):
    """Logarithms of softmax(similarities), [B, n B (1 + R)]."""
    anchor, *regions, whole = unit_features(of)
    rows = torch.cat([whole, *regions[: method.regions]])
    return functional.log_softmax(anchor @ rows.T / method.tau, dim=1)

  anchor, *_, whole = unit_features(found)
  score = anchor @ whole.T
  batch = torch.arange(len(score), device=score.device)
  positive = score.view(len(score), len(score), -1)[batch, batch].amax(1)
  same = labels[0][:, None] == labels[1][None]
  negative = score.masked_fill(same, -torch.inf).topk(method.negatives).values
  tiled = positive.repeat(method.negatives)  # as published
  ranking = functional.softplus(negative.flatten() - tiled).mean()
  entropy = functional.cross_entropy
  identity = entropy(found[0][1], labels[0]) + entropy(found[-1][1], labels[1])
  loss = method.lambda_metric * ranking + method.lambda_identity * identity
  if taught is not None:
    loss = loss + method.lambda_distill * functional.kl_div(
      shares(found), shares(taught), reduction='batchmean', log_target=True
    )
  return loss


def runs(
  method: plcd.Method,
  batch: dict,
  clock: Any,
  *,
  options: build.Optimizer,
  compiled: bool,
) -> tuple[Callable[[], None], Callable[[], None]]:
  """(a train step, the same with its parts timed), on torch's best device.

  Args:
    method: of the PLCD to train.
    batch: of NumPy arrays.
    clock: has `start()` and `mark(part)`.
    options: of SGD.
    compiled: by torch.compile; trunks, head and losses apart.
  """
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True
  student, teacher = (
    Network(method).to(device, memory_format=torch.channels_last).train()
    for _ in range(2)
  )
  optimizer = torch.optim.SGD(
    [
      {'params': part.parameters(), 'lr': factor * options.lr}
      for part, factor in (
        (student.trunks, options.groups['backbone']),
        (student.head, options.groups['classifier']),
      )
    ],
    momentum=options.momentum,
    nesterov=options.nesterov,
    weight_decay=options.weight_decay,
  )
  mean = torch.tensor(layers.MEAN, device=device).view(1, 3, 1, 1)
  std = torch.tensor(layers.STD, device=device).view(1, 3, 1, 1)
  # A permuted NHWC array is NCHW in the channels-last format.
  images = [
    torch.from_numpy(batch[view]['image']).to(device).permute(0, 3, 1, 2)
    for view in method.views
  ]
  labels = [
    torch.from_numpy(batch[view]['label']).long().to(device)
    for view in method.views
  ]
  amp = method.dtype == 'bfloat16'

  def maps_of(net, x):
    with torch.autocast(device, torch.bfloat16, enabled=amp):
      return [f(part) for f, part in zip(net.trunks, x, strict=True)]

  def described(net, maps):
    with torch.autocast(device, torch.bfloat16, enabled=amp):
      found = [net.describe(maps[0])]
      if method.generation:
        for y0, y1, x0, x1 in peer_network.windows(*maps[1].shape[2:]):
          found.append(net.describe(maps[1][:, :, y0:y1, x0:x1]))
      return [*found, net.describe(maps[1])]

  def loss_of(found, taught):
    return losses(method, found, taught, labels)

  if compiled:
    maps_of, described, loss_of = map(
      torch.compile, (maps_of, described, loss_of)
    )

  def step(mark):
    optimizer.zero_grad(set_to_none=True)
    x = [(part.float() / 255 - mean) / std for part in images]
    maps = maps_of(student, x)
    mark("student's trunks")
    found = described(student, maps)
    mark('regions and head')
    taught = None
    if method.needs_teacher:
      with torch.no_grad():
        taught = described(teacher, maps_of(teacher, x))
      mark("teacher's forward")
    loss = loss_of(found, taught)
    mark('losses')
    loss.backward()
    mark('backward')
    optimizer.step()
    mark('optimiser')

  def wait():
    if device == 'cuda':
      torch.cuda.synchronize()

  def whole():
    step(lambda part: None)
    wait()

  def mark(part):
    wait()
    clock.mark(part)

  def parts():
    clock.start()
    step(mark)

  return whole, parts
