"""Pictures of the data set side by side; each function returns a PNG's bytes.

`ranking_panel` is the figure of layumi/University1652-Baseline `demo.py` and
its tutorial: the query and its ten best gallery pictures, titles green where
the place is right and red where it is not. `sheet` is that of
zqwlearning/FRGeo-Code: a query a row, its panorama wide, and frames that mean
what the caller says. `layout_pair` draws the parts that a method cuts pictures
into over a picture of each view.
"""

from collections.abc import Sequence
from typing import NamedTuple

import einops
import matplotlib
import numpy as np
from matplotlib import figure, patches

from cvgl_jax.report import figures

_SIDE_PX = 160  # of a picture in a panel
_MAX_WIDE = 4.0  # times its height: how wide a panorama is shown
_PITCH, _GAP = 1.06, 0.15  # in units of a picture's side
_ABOVE, _BELOW = 0.24, 0.17
_LABEL = 1.25  # of the column of labels
_INCHES = 1.05  # of a picture's side


class Tile(NamedTuple):
  """One picture of a panel.

  Attributes:
    image: uint8 [H, W, 3].
    title: such as '1'.
    caption: below the picture.
    colour: of the title, and of the frame.
    framed: whether there is a frame.
  """

  image: np.ndarray
  title: str
  caption: str
  colour: str
  framed: bool = True


def ranking_panel(tiles: Sequence[Tile]) -> bytes:
  """A row of pictures: the query, a gap, its best gallery pictures."""
  return sheet([tiles])


def sheet(rows: Sequence[Sequence[Tile]]) -> bytes:
  """Rows of pictures, the first of each (the query) as wide as it is."""
  first = min(max(max(_aspect(row[0].image) for row in rows), 1.0), _MAX_WIDE)
  starts = [0.0, first + (_PITCH - 1) + _GAP]
  starts += [starts[1] + _PITCH * i for i in range(1, max(map(len, rows)) - 1)]
  width = starts[max(map(len, rows)) - 1] + _PITCH
  if max(map(len, rows)) == 1:
    width = first + (_PITCH - 1)
  line = 1 + _ABOVE + _BELOW
  page = figure.Figure(
    figsize=(_INCHES * width, _INCHES * line * len(rows)), dpi=figures.DPI
  )
  # One set of axes, for they are slow to make.
  axes = page.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  for number, row in enumerate(rows):
    bottom = line * (len(rows) - 1 - number)
    for index, tile in enumerate(row):
      wide = first if index == 0 else 1.0
      _draw(axes, tile, left=starts[index], bottom=bottom, wide=wide)
  axes.set_xlim(-0.03, width - 0.03)
  axes.set_ylim(-_BELOW, line * len(rows) - _BELOW)
  return figures.png(page)


def grid(rows: Sequence[tuple[str, Sequence[Tile | None]]]) -> bytes:
  """Labelled rows of pictures below one another; None leaves a gap."""
  count = max(len(tiles) for _, tiles in rows)
  width, line = _LABEL + _PITCH * count, 1 + _ABOVE + _BELOW
  page = figure.Figure(
    figsize=(_INCHES * width, _INCHES * line * len(rows)), dpi=figures.DPI
  )
  axes = page.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  for number, (label, tiles) in enumerate(rows):
    bottom = line * (len(rows) - 1 - number)
    axes.text(
      0,
      bottom + 0.5,
      label,
      color=figures.NEUTRAL,
      fontsize=9,
      ha='left',
      va='center',
    )
    for index, tile in enumerate(tiles):
      if tile is not None:
        _draw(axes, tile, left=_LABEL + _PITCH * index, bottom=bottom, wide=1.0)
  axes.set_xlim(-0.03, width - 0.03)
  axes.set_ylim(-_BELOW, line * len(rows) - _BELOW)
  return figures.png(page)


def _draw(axes, tile, *, left, bottom, wide) -> None:
  """A picture inside `wide` x 1, centred, with title and caption."""
  aspect = _aspect(tile.image)
  # The longer side fills the room.
  width, height = min(wide, aspect), min(1.0, wide / aspect)
  corner = left + (wide - width) / 2, bottom + (1 - height) / 2
  axes.imshow(
    thumbnail(tile.image, round(wide * _SIDE_PX)),
    extent=(corner[0], corner[0] + width, corner[1], corner[1] + height),
    interpolation='antialiased',
  )
  if tile.framed:
    axes.add_patch(
      patches.Rectangle(
        corner, width, height, fill=False, edgecolor=tile.colour, linewidth=3
      )
    )
  middle = left + wide / 2
  axes.text(
    middle,
    bottom + (1 + height) / 2 + 0.06,
    tile.title,
    color=tile.colour,
    fontsize=9,
    fontweight='bold',
    ha='center',
    va='bottom',
  )
  axes.text(
    middle,
    bottom + (1 - height) / 2 - 0.05,
    tile.caption,
    color=figures.NEUTRAL,
    fontsize=7,
    ha='center',
    va='top',
  )


def layout_pair(
  pair: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> bytes:
  """Pictures with the parts that a method cuts them into, numbered.

  Args:
    pair: (title, image uint8 [H, W, 3], parts int [h, w]) of each picture;
      parts of equal number have the same colour, 0 is none.
  """
  widths = [min(_aspect(image), _MAX_WIDE) for _, image, _ in pair]
  tall = 2.3  # inches
  page = figure.Figure(
    figsize=(tall * (sum(widths) + 0.1 * len(widths)), tall * 1.2),
    dpi=figures.DPI,
    layout='constrained',
  )
  all_axes = page.subplots(1, len(pair), width_ratios=widths, squeeze=False)[0]
  colours = matplotlib.colormaps['tab10'].colors
  for axes, (title, image, parts) in zip(all_axes, pair, strict=True):
    axes.set_title(title, fontsize=9, loc='left')
    axes.set_xticks([])
    axes.set_yticks([])
    height, width = parts.shape
    extent = (0, width, height, 0)
    axes.imshow(thumbnail(image, 1280), extent=extent, aspect='auto')
    axes.set_box_aspect(min(1 / _aspect(image), 1.0))
    for part in np.unique(parts[parts > 0]):
      colour = colours[(int(part) - 1) % len(colours)]
      inside = parts == part
      shade = np.zeros((*parts.shape, 4))
      shade[inside] = (*colour, 0.24)
      axes.imshow(shade, extent=extent, aspect='auto', interpolation='nearest')
      for start, end in _borders(inside):
        axes.plot(*zip(start, end, strict=True), color='white', linewidth=2)
      rows, columns = np.nonzero(inside)
      axes.text(
        columns.mean() + 0.5,
        rows.mean() + 0.5,
        str(part),
        color='white',
        fontsize=15,
        fontweight='bold',
        ha='center',
        va='center',
        bbox={'boxstyle': 'circle,pad=0.25', 'facecolor': colour, 'lw': 0},
      )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
  return figures.png(page)


def _borders(inside: np.ndarray) -> list[tuple]:
  """Edges ((x0, y0), (x1, y1)) between cells inside and outside, as of [h, w]
  bool; those of the picture itself are left out."""
  edges = []
  for y, x in zip(*np.nonzero(inside[:, 1:] != inside[:, :-1]), strict=True):
    edges.append(((x + 1, y), (x + 1, y + 1)))
  for y, x in zip(*np.nonzero(inside[1:] != inside[:-1]), strict=True):
    edges.append(((x, y + 1), (x + 1, y + 1)))
  return edges


def thumbnail(image: np.ndarray, most_px: int) -> np.ndarray:
  """Blocks of pixels averaged: at most `most_px` high and wide."""
  step = -(-max(image.shape[:2]) // most_px)
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


def _aspect(image: np.ndarray) -> float:
  return image.shape[1] / image.shape[0]
