"""Diagrams of the report; each function draws one and returns its PNG's bytes.

Panels with pictures of the data set are in `panels`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import sklearn.manifold
from matplotlib import colors, figure, ticker

from cvgl_jax.retrieval import metres

RIGHT, WRONG, NEUTRAL = '#1a7f37', '#cf222e', '#57606a'
TRUTH, SEMI = '#cf222e', '#1a7f37'  # of frames, see `panels.sheet`
_LINES = ('#0969da', '#bc4c00', '#1a7f37', '#8250df', '#9a6700', '#cf222e')
DPI = 110


class Bubble(NamedTuple):
  """A system in `cost_bubbles`.

  Attributes:
    name: of the system.
    gmac: billions of multiply-accumulates of both pictures of a pair.
    recall: R@1 in percent.
    parameters_m: millions; NaN where it is not known.
    own: whether it is the run of the report.
  """

  name: str
  gmac: float
  recall: float
  parameters_m: float
  own: bool


class Curve(NamedTuple):
  """A metric over the steps; [N] numbers each."""

  steps: Sequence[float]
  values: Sequence[float]


def small_multiples(curves: Mapping[str, Curve]) -> bytes:
  """One small diagram for every curve, three in a row."""
  columns = min(3, len(curves))
  rows = -(-len(curves) // columns)
  page = figure.Figure(
    figsize=(3.7 * columns, 2.3 * rows), dpi=DPI, layout='constrained'
  )
  for index, (name, curve) in enumerate(curves.items()):
    axes = page.add_subplot(rows, columns, index + 1)
    _style(axes)
    axes.plot(*_finite(curve), color=_LINES[0], linewidth=1.4)
    axes.set_title(name, fontsize=9, loc='left')
    axes.set_xlabel('step', fontsize=8)
  return png(page)


def metric_curves(
  curves: Mapping[str, Curve], published: Mapping[str, float]
) -> bytes:
  """Metrics of one evaluator in percent; published numbers as dashed lines."""
  page = figure.Figure(figsize=(5.6, 3.2), dpi=DPI, layout='constrained')
  axes = page.add_subplot()
  _style(axes)
  for index, (name, curve) in enumerate(curves.items()):
    colour = _LINES[index % len(_LINES)]
    axes.plot(
      *_finite(curve), color=colour, marker='o', markersize=3.5, label=name
    )
    if name in published:
      axes.axhline(
        published[name],
        color=colour,
        linestyle='--',
        linewidth=1,
        label=f'{name}, published',
      )
  axes.set_ylim(0, 102)
  axes.set_xlabel('step', fontsize=8)
  axes.set_ylabel('percent', fontsize=8)
  axes.legend(
    fontsize=8, frameon=False, loc='center left', bbox_to_anchor=(1, 0.5)
  )
  return png(page)


def match_curves(curves: Mapping[str, tuple[np.ndarray, int]]) -> bytes:
  """Recall@k over k, by evaluator.

  Args:
    curves: name -> ([Q] 0-based rank of the first positive, -1 for none; size
      of the gallery).
  """
  page = figure.Figure(figsize=(5.6, 3.2), dpi=DPI, layout='constrained')
  axes = page.add_subplot()
  _style(axes)
  for index, (name, (first, size)) in enumerate(curves.items()):
    found = np.bincount(first[first >= 0], minlength=size)[:size]
    recall = 100 * np.cumsum(found) / max(len(first), 1)
    axes.step(
      np.arange(1, size + 1),
      recall,
      where='post',
      color=_LINES[index % len(_LINES)],
      label=name,
    )
  axes.set_xscale('log')
  axes.set_xlim(left=1)
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%d'))
  axes.set_ylim(0, 102)
  axes.set_xlabel('k', fontsize=8)
  axes.set_ylabel('recall@k, percent', fontsize=8)
  axes.legend(fontsize=8, frameon=False, loc='lower right')
  return png(page)


def embedding_map(
  query: np.ndarray,
  gallery: np.ndarray,
  query_place: np.ndarray,
  gallery_place: np.ndarray,
  *,
  names: tuple[str, str] = ('query', 'gallery'),
) -> bytes:
  """t-SNE of features: a colour for every place, a marker for every view.

  Lines lead from the queries of a place to the middle of its gallery entries.

  Args:
    query: [N, D] features of some queries, drawn as dots.
    gallery: [M, D] features of some gallery entries, drawn as triangles.
    query_place: [N].
    gallery_place: [M].
    names: of the two in the legend.

  Raises:
    ValueError: fewer than five features.
  """
  features = np.concatenate([query, gallery])
  if len(features) < 5:
    raise ValueError(f't-SNE of {len(features)} features: at least 5 needed')
  flat = sklearn.manifold.TSNE(
    perplexity=min(30.0, (len(features) - 1) / 3),
    init='random',
    metric='cosine',
    # Below, the exact form is faster than starting the threads of the other.
    method='exact' if len(features) <= 400 else 'barnes_hut',
    random_state=0,
  ).fit_transform(features)  # [N + M, 2]
  page = figure.Figure(figsize=(6.4, 5.2), dpi=DPI, layout='constrained')
  axes = page.add_subplot()
  axes.set_xticks([])
  axes.set_yticks([])
  places, colour = np.unique(
    np.concatenate([query_place, gallery_place]), return_inverse=True
  )
  palette = _palette(len(places))
  is_query = np.arange(len(flat)) < len(query)
  for index in range(len(places)):
    starts, ends = (
      flat[(colour == index) & side] for side in (is_query, ~is_query)
    )
    for start in starts if len(ends) else ():
      line = np.stack([start, np.median(ends, axis=0)])
      axes.plot(*line.T, color=palette[index], linewidth=0.7, zorder=0)
  for chosen, marker, size, edge, name in (
    (is_query, 'o', 16, 'none', names[0]),
    (~is_query, '^', 42, 'black', names[1]),
  ):
    axes.scatter(
      *flat[chosen].T,
      c=palette[colour[chosen]],
      marker=marker,
      s=size,
      linewidths=0.5,
      edgecolors=edge,
      label=name,
    )
  for index, place in enumerate(places if len(places) <= 20 else ()):
    middle = np.median(flat[colour == index], axis=0)
    axes.annotate(
      str(place),
      middle,
      fontsize=7,
      ha='center',
      xytext=(0, 5),
      textcoords='offset points',
    )
  legend = axes.legend(fontsize=8, loc='best')
  for handle in legend.legend_handles:
    handle.set(facecolor=NEUTRAL)
  return png(page)


def _palette(count: int) -> np.ndarray:
  """[count, 4] colours; beyond twenty, neighbours in number look different."""
  if count <= 20:
    return np.array(matplotlib.colormaps['tab20'].colors)[:count]
  hue = (np.arange(count) * 0.618034) % 1.0
  dark = np.where(np.arange(count) % 2, 0.6, 0.9)
  return colors.hsv_to_rgb(np.stack([hue, np.full(count, 0.85), dark], -1))


def metre_curves(errors_m: Mapping[str, np.ndarray]) -> bytes:
  """Share of queries whose best answer is within a distance, by evaluator.

  Args:
    errors_m: name -> [Q] metres.
  """
  page = figure.Figure(figsize=(5.6, 3.2), dpi=DPI, layout='constrained')
  axes = page.add_subplot()
  _style(axes)
  for index, (name, error_m) in enumerate(errors_m.items()):
    found = metres.metre_accuracy(error_m)
    axes.plot(
      found.thresholds_m,
      100 * found.accuracy,
      color=_LINES[index % len(_LINES)],
      label=name,
    )
  most = max(float(np.max(error_m)) for error_m in errors_m.values())
  axes.set_xscale('log')
  axes.set_xlim(1, max(10.0, most))
  axes.set_ylim(0, 102)
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axes.set_xlabel('metres', fontsize=8)
  axes.set_ylabel('queries answered within, percent', fontsize=8)
  axes.legend(fontsize=8, frameon=False, loc='upper left')
  return png(page)


def cost_bubbles(bubbles: Sequence[Bubble]) -> bytes:
  """Accuracy over the cost of a pair; the area of a bubble is its parameters."""
  page = figure.Figure(figsize=(6.0, 3.9), dpi=DPI, layout='constrained')
  axes = page.add_subplot()
  _style(axes)
  # Best first: so their labels are moved apart.
  others = sorted((b for b in bubbles if not b.own), key=lambda b: -b.recall)
  for index, bubble in enumerate([*others, *(b for b in bubbles if b.own)]):
    colour = RIGHT if bubble.own else _LINES[index % 2]
    known = np.isfinite(bubble.parameters_m)
    axes.scatter(
      bubble.gmac,
      bubble.recall,
      s=9 * bubble.parameters_m if known else 60,
      color=colour if known else 'none',
      edgecolors=colour,
      alpha=0.55,
      linewidths=2 if bubble.own else 1,
    )
  cost = np.array([bubble.gmac for bubble in bubbles])
  recall = np.array([bubble.recall for bubble in bubbles])
  axes.set_xscale('log')
  axes.set_xlim(cost.min() / 4, cost.max() * 2)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  span = max(float(np.ptp(recall)), 2.0)
  axes.set_ylim(recall.min() - 0.4 * span, recall.max() + 0.4 * span)
  axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
  axes.set_ylim(recall.min() - 0.4 * span, recall.max() + 0.4 * span)
  axes.set_xlabel('forward pass of a pair, GMAC', fontsize=8)
  axes.set_ylabel('R@1, percent', fontsize=8)
  _label_bubbles(axes, others, [b for b in bubbles if b.own])
  return png(page)


def _label_bubbles(
  axes, others: Sequence[Bubble], own: Sequence[Bubble]
) -> None:
  """Own labels on the left: a run often lies where its publication does.

  Args:
    axes: with their final limits.
    others: best first; where their labels would meet, the worse move down.
    own: labelled in bold.
  """
  axes.figure.draw_without_rendering()  # lays the page out
  line = {
    'arrowstyle': '-',
    'color': NEUTRAL,
    'linewidth': 0.6,
    'relpos': (0, 0.5),
    'shrinkA': 0,
    'shrinkB': 0,
  }
  placed = []  # (GMAC, height of the label in points)
  for bubble in [*others, *own]:
    known = np.isfinite(bubble.parameters_m)
    size = f'{bubble.parameters_m:.3g} M' if known else 'size not stated'
    away = 5 + 1.5 * np.sqrt(bubble.parameters_m if known else 7)
    away = away if bubble.own else max(away, 22)  # clear of the next bubble
    at = (bubble.gmac, bubble.recall)
    height = axes.transData.transform(at)[1] * 72 / axes.figure.dpi
    wanted = height
    if not bubble.own:
      near = [h for gmac, h in placed if 1 / 3 < gmac / bubble.gmac < 3]
      wanted = min([height, *(h - 24 for h in near)])
      placed.append((bubble.gmac, wanted))
    axes.annotate(
      f'{bubble.name}\n{round(bubble.recall, 2):g} %, {size}',
      at,
      xytext=(-away if bubble.own else away, wanted - height),
      textcoords='offset points',
      fontsize=8,
      ha='right' if bubble.own else 'left',
      va='center',
      fontweight='bold' if bubble.own else 'normal',
      arrowprops=line if wanted < height else None,
    )


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
  steps, values = np.asarray(curve.steps), np.asarray(curve.values)
  kept = np.isfinite(values)
  return steps[kept], values[kept]


def _style(axes) -> None:
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.3, linewidth=0.6)
  axes.tick_params(labelsize=8)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))


def png(page: figure.Figure) -> bytes:
  """A figure as the bytes of a PNG file."""
  buffer = io.BytesIO()
  page.savefig(buffer, format='png')
  return buffer.getvalue()
