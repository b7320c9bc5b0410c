"""The house style, and the figures that more than one page draws.

Colors are Okabe and Ito's, which color-blind readers can distinguish; lines differ in dash too.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator
from numpy.typing import ArrayLike

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
BLACK = "#222222"
GRAY = "#8A8A8A"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

STYLE: Any = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def subplots(
    rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Switch to the house style and return ``plt.subplots``, 3.2 inches high per row by default."""
    options.setdefault(
        "figsize",
        (5.0 if columns == 1 else min(8.0, 3.6 * columns), 3.2 * rows),
    )
    plt.rcParams.update(STYLE)
    _sharpen()
    return plt.subplots(rows, columns, **options)


def _sharpen() -> None:
    """Let a notebook show figures of the same size with twice as many pixels."""
    if "inline" in plt.get_backend():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


@final
class Percent(Formatter):
    """Labels shares in per cent, with the fewest decimals that tell where the ticks are.

    A label is off by at most a hundredth of the distance between two ticks.
    """

    decimals = 0

    def set_locs(self, locs: ArrayLike) -> None:
        """Choose the decimals for these ticks."""
        places = np.asarray(locs, dtype=float)
        super().set_locs(places.tolist())
        ticks = np.unique(100 * places)
        step = np.diff(ticks).min(initial=1.0)
        self.decimals = 0
        while (
            self.decimals < 9
            and np.abs(ticks - ticks.round(self.decimals)).max(initial=0)
            > step / 100
        ):
            self.decimals += 1

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick."""
        return f"{100 * x:.{self.decimals}f}%"


def curves(
    axes: Axes,
    series: Mapping[str, ArrayLike],
    x: Sequence[float] | np.ndarray | None = None,
    percent: bool = False,
) -> Axes:
    """Draw one line per name; several runs, shape (runs, points), become their mean and range.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    series : mapping
        Name to values of shape (points,) or (runs, points).
    x : sequence, optional
        Abscissae; 1, 2, ... otherwise.
    percent : bool
        Values are shares; label them in per cent.
    """
    for (name, values), color, dash in zip(series.items(), COLORS, DASHES):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        place = np.arange(1, runs.shape[1] + 1) if x is None else np.asarray(x)
        axes.plot(place, runs.mean(0), color=color, linestyle=dash, label=name)
        if len(runs) > 1:
            axes.fill_between(
                place, runs.min(0), runs.max(0), color=color, alpha=0.15, lw=0
            )
    if percent:
        _label_in_percent(axes)
    if len(series) > 1:
        axes.legend()
    return axes


def _label_in_percent(axes: Axes) -> None:
    """Label shares; no step is a quarter of a power of ten, which takes one more decimal."""
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(Percent())


def dots(
    axes: Axes,
    groups: Mapping[str, ArrayLike],
    paper: float | None = None,
    percent: bool = True,
) -> Axes:
    """Draw every run as a dot in the column of its group, with the mean of the group as a bar.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    groups : mapping
        Name to one number per run.
    paper : float, optional
        The paper's number, a gray line.
    percent : bool
        Numbers are shares; label them in per cent.
    """
    for place, (values, color) in enumerate(
        zip(groups.values(), itertools.cycle(COLORS))
    ):
        values = np.asarray(values, dtype=float)
        axes.plot(
            np.full(len(values), place),
            values,
            "o",
            color=color,
            alpha=0.55,
            ms=5,
        )
        axes.plot(
            [place - 0.25, place + 0.25], [values.mean()] * 2, color=color
        )
    if paper is not None:
        axes.axhline(paper, color=GRAY, lw=1)
        label: Any = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
        }
        axes.annotate(
            "paper",
            (1, paper),
            (-2, 2),
            ha="right",
            color=GRAY,
            fontsize=9,
            **label,
        )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    if percent:
        _label_in_percent(axes)
    return axes


def printed(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    label: str = "paper",
    colors: Sequence[str] | str = "white",
) -> Axes:
    """Mark numbers that a paper prints, as diamonds with a dark edge, above everything else.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    x, y : sequence
        Where they lie.
    label : str
        What a legend calls them.
    colors : str or sequence of str
        Of each diamond, or of all; those of the lines beside which they stand.
    """
    axes.scatter(
        x,
        y,
        s=34,
        marker="D",
        c=colors,
        edgecolors=BLACK,
        linewidths=1,
        zorder=5,
        clip_on=False,
        label=label,
    )
    return axes


def heat(
    axes: Axes,
    ratios: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
) -> None:
    """Draw ratios as a map of numbers: orange below 1, blue above, on a logarithmic scale.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    ratios : array, shape (rows, columns)
        What to draw; the first row comes lowest.
    rows, columns : sequence
        Labels.
    """
    palette = LinearSegmentedColormap.from_list("heat", [ORANGE, "white", BLUE])
    shades = np.clip(np.log2(ratios) / 4, -1, 1)
    axes.imshow(
        shades, cmap=palette, vmin=-1, vmax=1, aspect="auto", origin="lower"
    )
    for (row, column), ratio in np.ndenumerate(ratios):
        color = "white" if abs(shades[row, column]) > 0.75 else BLACK
        text = f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color=color,
            fontsize=8,
        )
    axes.set_xticks(range(len(columns)), list(map(str, columns)))
    axes.set_yticks(range(len(rows)), list(map(str, rows)))
    axes.grid(False)


def topologies(axes: Iterable[Axes], masks: Mapping[str, ArrayLike]) -> None:
    """Draw topologies as small multiples: connections kept since the one before, and new ones.

    Parameters
    ----------
    axes : iterable of Axes
        One for each mask.
    masks : mapping
        Title to boolean matrix (rows, columns), in order of time.
    """
    palette = ListedColormap(["white", "#9AA5B1", VERMILION])
    before = None
    for panel, (title, mask) in zip(axes, masks.items()):
        here = np.asarray(mask, dtype=int)
        new = np.zeros_like(here) if before is None else here * (1 - before)
        panel.imshow(
            here + new, cmap=palette, vmin=0, vmax=2, interpolation="none"
        )
        panel.set(title=title, xticks=[], yticks=[])
        panel.grid(False)
        before = here


class Links(NamedTuple):
    """Connections of one layer, as `network` draws them.

    Attributes
    ----------
    layer : int
        They lead from this column of neurons to the next one.
    positions : array
        Flat positions in the weight matrix: ``target * sources + source``.
    widths : array or float
        Of the lines, in points.
    color, dash : str
        Of all of them.
    """

    layer: int
    positions: ArrayLike
    widths: ArrayLike = 1.0
    color: str = GRAY
    dash: str = "-"


def network(axes: Axes, sizes: Sequence[int], links: Iterable[Links]) -> None:
    """Draw neurons in a column per layer, and connections between them, as in Ertl's Figure 2.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    sizes : sequence of int
        Neurons of each column, from the input on.
    links : iterable of Links
        What connects them; later ones lie above.
    """
    heights = [np.arange(size) - (size - 1) / 2 for size in sizes]
    for order, link in enumerate(links):
        left, right = heights[link.layer], heights[link.layer + 1]
        positions = np.asarray(link.positions, dtype=int)
        targets, sources = np.divmod(positions, len(left))
        ends = [
            [(link.layer, left[source]), (link.layer + 1, right[target])]
            for source, target in zip(sources, targets)
        ]
        widths = np.broadcast_to(np.asarray(link.widths), positions.shape)
        axes.add_collection(
            LineCollection(
                ends,
                linewidths=widths,
                colors=link.color,
                linestyles=link.dash,
                zorder=1 + order / 100,
            )
        )
    for column, height in enumerate(heights):
        axes.scatter(
            np.full(len(height), column),
            height,
            s=60,
            color="white",
            edgecolor=BLACK,
            zorder=3,
        )
    tallest = max(sizes) / 2
    axes.set(xlim=(-0.2, len(sizes) - 0.8), ylim=(tallest, -tallest))
    axes.axis("off")


def compressed_rows(
    axes: Axes,
    matrix: ArrayLike,
    crow_indices: ArrayLike,
    col_indices: ArrayLike,
    values: ArrayLike,
) -> None:
    """Draw a small matrix beside its three CSR arrays, one color per row, as in Ertl's Figure 1."""
    matrix = np.asarray(matrix)
    crow = np.asarray(crow_indices)
    rows, columns = matrix.shape
    colors = [COLORS[row % len(COLORS)] for row in range(rows)]
    for (row, column), value in np.ndenumerate(matrix):
        _cell(axes, column, row, f"{value:g}", colors[row] if value else None)
    left = columns + 1.5
    arrays = {
        "crow_indices": crow,
        "col_indices": col_indices,
        "values": values,
    }
    owner = np.repeat(np.arange(rows), np.diff(crow))
    for line, (name, array) in enumerate(arrays.items()):
        y = 0.6 + 1.75 * line
        axes.text(
            left, y - 0.62, name, va="bottom", family="monospace", fontsize=9
        )
        for place, entry in enumerate(np.asarray(array)):
            row = (
                owner[place] if name != "crow_indices" else min(place, rows - 1)
            )
            shown = (
                colors[row] if name != "crow_indices" or place < rows else None
            )
            _cell(axes, left + 0.5 + place, y, f"{entry:g}", shown)
    longest = max(len(owner), rows + 1)
    tallest = max(rows, 5)  # as the arrays, which take the height of five rows
    axes.set(
        xlim=(-0.6, left + longest + 0.6),
        ylim=(tallest - 0.2, -0.8),
        aspect="equal",
    )
    axes.axis("off")


def _cell(
    axes: Axes,
    x: int | float,
    y: int | float,
    text: str,
    color: str | None,
) -> None:
    face = color or "#F2F2F2"
    axes.add_patch(plt.Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, color=face))
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=9,
        color="white" if color else GRAY,
    )
