"""PNG pictures of the report; each function draws one and returns its bytes.

The ranking panel is the figure of layumi/University1652-Baseline `demo.py` and
its tutorial: the query and its ten best gallery pictures, titles green where
the place is right and red where it is not.
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import einops
import numpy as np
import sklearn.manifold
from matplotlib import figure, patches, ticker

RIGHT, WRONG, NEUTRAL = '#1a7f37', '#cf222e', '#57606a'
_LINES = ('#0969da', '#bc4c00', '#1a7f37', '#8250df', '#9a6700', '#cf222e')
_DPI = 110
_MAX_PIXELS = 160  # side of a picture in a panel


class Tile(NamedTuple):
  """One picture of a ranking panel.

  Attributes:
    image: uint8 [H, W, 3].
    title: such as '1'.
    caption: below the picture.
    colour: of frame and title.
  """

  image: np.ndarray
  title: str
  caption: str
  colour: str


class Curve(NamedTuple):
  """A metric over the steps; [N] numbers each."""

  steps: Sequence[float]
  values: Sequence[float]


def ranking_panel(tiles: Sequence[Tile]) -> bytes:
  """A row of pictures: the query, a gap, its best gallery pictures."""
  # In units of a picture's side; one set of axes, for they are slow to make.
  pitch, gap, above, below = 1.06, 0.15, 0.24, 0.17
  width = pitch * len(tiles) + gap
  page = figure.Figure(
    figsize=(1.05 * width, 1.05 * (1 + above + below)), dpi=_DPI
  )
  axes = page.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  for index, tile in enumerate(tiles):
    left = pitch * index + (gap if index else 0)
    image = _thumbnail(tile.image)
    # The longer side fills the square.
    high, wide = np.array(image.shape[:2]) / max(image.shape[:2])
    corner = left + (1 - wide) / 2, (1 - high) / 2
    axes.imshow(
      image,
      extent=(corner[0], corner[0] + wide, corner[1], corner[1] + high),
      interpolation='antialiased',
    )
    axes.add_patch(
      patches.Rectangle(
        corner, wide, high, fill=False, edgecolor=tile.colour, linewidth=3
      )
    )
    middle = left + 0.5
    axes.text(
      middle,
      1.06,
      tile.title,
      color=tile.colour,
      fontsize=9,
      fontweight='bold',
      ha='center',
      va='bottom',
    )
    axes.text(
      middle,
      -0.05,
      tile.caption,
      color=NEUTRAL,
      fontsize=7,
      ha='center',
      va='top',
    )
  axes.set_xlim(-0.03, width - 0.03)
  axes.set_ylim(-below, 1 + above)
  return _png(page)


def small_multiples(curves: Mapping[str, Curve]) -> bytes:
  """One small diagram for every curve, three in a row."""
  columns = min(3, len(curves))
  rows = -(-len(curves) // columns)
  page = figure.Figure(
    figsize=(3.7 * columns, 2.3 * rows), dpi=_DPI, layout='constrained'
  )
  for index, (name, curve) in enumerate(curves.items()):
    axes = page.add_subplot(rows, columns, index + 1)
    _style(axes)
    axes.plot(*_finite(curve), color=_LINES[0], linewidth=1.4)
    axes.set_title(name, fontsize=9, loc='left')
    axes.set_xlabel('step', fontsize=8)
  return _png(page)


def metric_curves(
  curves: Mapping[str, Curve], published: Mapping[str, float]
) -> bytes:
  """Metrics of one evaluator in percent; published numbers as dashed lines."""
  page = figure.Figure(figsize=(5.6, 3.2), dpi=_DPI, layout='constrained')
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
  return _png(page)


def match_curves(curves: Mapping[str, tuple[np.ndarray, int]]) -> bytes:
  """Recall@k over k, by evaluator.

  Args:
    curves: name -> ([Q] 0-based rank of the first positive, -1 for none; size
      of the gallery).
  """
  page = figure.Figure(figsize=(5.6, 3.2), dpi=_DPI, layout='constrained')
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
  return _png(page)


def embedding_map(
  query: np.ndarray,
  gallery: np.ndarray,
  query_place: np.ndarray,
  gallery_place: np.ndarray,
) -> bytes:
  """t-SNE of features, a colour for every place.

  Args:
    query: [N, D] features of some queries, drawn as dots.
    gallery: [M, D] features of some gallery entries, drawn as triangles.
    query_place: [N].
    gallery_place: [M].

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
  page = figure.Figure(figsize=(6.4, 5.2), dpi=_DPI, layout='constrained')
  axes = page.add_subplot()
  axes.set_xticks([])
  axes.set_yticks([])
  places, colour = np.unique(
    np.concatenate([query_place, gallery_place]), return_inverse=True
  )
  is_query = np.arange(len(flat)) < len(query)
  for chosen, marker, size, name in (
    (is_query, 'o', 16, 'query'),
    (~is_query, '^', 42, 'gallery'),
  ):
    axes.scatter(
      *flat[chosen].T,
      c=colour[chosen] % 20,
      cmap='tab20',
      vmin=0,
      vmax=19,
      marker=marker,
      s=size,
      linewidths=0.5,
      edgecolors='black' if name == 'gallery' else 'none',
      label=name,
    )
  for index, place in enumerate(places):
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
    handle.set(array=None, facecolor=NEUTRAL)
  return _png(page)


def _thumbnail(image: np.ndarray) -> np.ndarray:
  """Blocks of pixels averaged: at most _MAX_PIXELS high and wide."""
  step = -(-max(image.shape[:2]) // _MAX_PIXELS)
  height, width = (n // step * step for n in image.shape[:2])
  if step == 1 or not height or not width:
    return image
  mean = einops.reduce(
    image[:height, :width].astype(np.float32),
    '(h dy) (w dx) c -> h w c',
    'mean',
    dy=step,
    dx=step,
  )
  return mean.astype(np.uint8)


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
  steps, values = np.asarray(curve.steps), np.asarray(curve.values)
  kept = np.isfinite(values)
  return steps[kept], values[kept]


def _style(axes) -> None:
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.3, linewidth=0.6)
  axes.tick_params(labelsize=8)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))


def _png(page: figure.Figure) -> bytes:
  buffer = io.BytesIO()
  page.savefig(buffer, format='png')
  return buffer.getvalue()
