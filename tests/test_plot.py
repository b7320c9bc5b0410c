"""Figures of the house: what they draw is what they were given."""

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from sparselib import plot


@pytest.fixture(autouse=True)
def _defaults():
    """Start each test from the settings of matplotlib itself, whatever ran before."""
    with plt.rc_context():
        plt.rcdefaults()
        yield


@pytest.fixture
def axes():
    figure, axes = plot.subplots()
    yield axes
    plt.close(figure)


def test_one_line_per_name_and_a_band_for_several_runs(axes) -> None:
    plot.curves(axes, {"one": [0.1, 0.2], "runs": [[0.0, 0.4], [0.2, 0.8]]}, percent=True)
    one, runs = axes.get_lines()
    assert one.get_ydata().tolist() == [0.1, 0.2]
    np.testing.assert_allclose(runs.get_ydata(), [0.1, 0.6])
    assert one.get_xdata().tolist() == [1, 2]
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).extents.tolist() == pytest.approx([1, 0.0, 2, 0.8])


def test_printed_numbers_lie_where_the_paper_has_them_in_the_colors_of_their_lines(axes) -> None:
    plot.printed(axes, [0.9, 0.99], [97.3, 92.88], colors=plot.COLORS[:2])
    (marks,) = axes.collections
    assert marks.get_offsets().tolist() == [[0.9, 97.3], [0.99, 92.88]]
    assert [to_hex(color).upper() for color in marks.get_facecolors()] == [*plot.COLORS[:2]]
    axes.plot([0.9, 0.99], [97, 93])
    assert marks.get_zorder() > max(line.get_zorder() for line in axes.get_lines())
    axes.legend()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["paper"]


def test_every_run_is_a_dot_with_its_mean_as_a_bar(axes) -> None:
    plot.dots(axes, {"a": [0.1, 0.3], "b": [0.5]}, paper=0.4)
    lines = [line.get_ydata() for line in axes.get_lines()]
    assert [np.asarray(line).tolist() for line in lines[::2]] == [[0.1, 0.3], [0.5], [0.4, 0.4]]
    np.testing.assert_allclose(lines[1], [0.2, 0.2])
    assert [text.get_text() for text in axes.texts] == ["paper"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (-0.1, 0.1, ["-10%", "-5%", "0%", "5%", "10%"]),
        (0.9730, 0.9750, ["97.30%", "97.35%", "97.40%", "97.45%", "97.50%"]),
        (0.966, 0.978, ["96.6%", "96.8%", "97.0%", "97.2%", "97.4%", "97.6%", "97.8%"]),
    ],
)
def test_labels_in_per_cent_have_the_decimals_that_they_need(axes, low, high, labels) -> None:
    for draw in (plot.dots, plot.curves):
        draw(axes, {"a": [low, high]}, percent=True)
        axes.set_ylim(low, high)
        axes.figure.canvas.draw()
        assert [
            label.get_text().replace("\N{MINUS SIGN}", "-") for label in axes.get_yticklabels()
        ] == labels


@given(st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=7, unique=True))
def test_labels_in_per_cent_lie_where_their_ticks_do(places) -> None:
    formatter = plot.Percent()
    labels = formatter.format_ticks(places)
    shown = np.array([float(label.removesuffix("%")) / 100 for label in labels])
    step = np.diff(np.sort(places)).min()
    np.testing.assert_allclose(shown, places, rtol=0, atol=max(step / 50, 1e-11))
    fewer = [f"{100 * place:.{max(formatter.decimals - 1, 0)}f}" for place in places]
    if formatter.decimals:  # one less would move a label, or make two alike
        moved = np.abs(np.array(fewer, dtype=float) / 100 - places).max()
        assert moved >= min(step, 0.01) / 101


def test_a_map_of_ratios_is_white_at_one_and_its_first_row_is_lowest(axes) -> None:
    ratios = np.array([[1.0, 0.5, 16.0], [1 / 64, 2.0, 64.0]])
    plot.heat(axes, ratios, rows=["few", "many"], columns=[10, 20, 30])
    (image,) = axes.images
    colors = [to_hex(color) for row in image.to_rgba(image.get_array()) for color in row]
    np.testing.assert_allclose(to_rgb(colors[0]), to_rgb("white"), atol=0.01)
    assert [colors[3], colors[2], colors[5]] == [plot.ORANGE.lower(), *[plot.BLUE.lower()] * 2]
    bottom, top = axes.get_ylim()
    assert bottom < 0 < 1 < top
    shown = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert [shown[place][0] for place in ((0, 0), (1, 0), (2, 0))] == ["1.0", "0.5", "16"]
    assert [shown[place][0] for place in ((0, 1), (1, 1), (2, 1))] == ["0.0", "2.0", "64"]
    assert {place for place, (_, color) in shown.items() if color == "white"} == {
        *((2, 0), (0, 1), (2, 1))
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "20", "30"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["few", "many"]


def test_connections_that_are_new_have_a_color_of_their_own() -> None:
    figure, panels = plot.subplots(1, 2)
    plot.topologies(panels, {"before": [[1, 0], [1, 0]], "after": [[1, 1], [0, 0]]})
    first, second = (panel.images[0].get_array().tolist() for panel in panels)
    assert first == [[1, 0], [1, 0]]
    assert second == [[1, 2], [0, 0]]
    assert [panel.get_title(loc="left") for panel in panels] == ["before", "after"]
    plt.close(figure)


def test_each_number_of_compressed_rows_stands_in_a_square_of_its_rows_color(axes) -> None:
    matrix = np.array([[0, 2, 0], [3, 0, 4], [0, 0, 5]])
    plot.compressed_rows(axes, matrix, [0, 1, 3, 4], [1, 0, 2, 2], [2, 3, 4, 5])
    names = ("crow_indices", "col_indices", "values")
    numbers = [text for text in axes.texts if text.get_text() not in names]
    assert len(numbers) == len(axes.texts) - 3
    squares = {tuple(np.round(box.get_center(), 6)): box for box in axes.patches}
    assert len(numbers) == len(squares) == len(axes.patches) == 9 + 4 + 4 + 4
    found = {}
    for text in numbers:
        box = squares[tuple(np.round(text.get_position(), 6))]
        found.setdefault(to_hex(box.get_facecolor()).upper(), []).append(text.get_text())
    # in the matrix, of crow_indices, col_indices and values
    assert found[plot.COLORS[0]] == ["2", "0", "1", "2"]
    assert found[plot.COLORS[1]] == ["3", "4", "1", "0", "2", "3", "4"]
    assert found[plot.COLORS[2]] == ["5", "3", "2", "5"]
    # nothing is cut, and less than a square is empty around it
    corners = np.concatenate([box.get_bbox().get_points() for box in axes.patches])
    frame = np.array([axes.get_xlim(), sorted(axes.get_ylim())]).T
    margin = np.array([corners.min(0) - frame[0], frame[1] - corners.max(0)])
    assert (margin > 0).all()
    assert (margin < 0.75).all()
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_a_connection_is_a_line_between_the_two_neurons_of_its_position(axes) -> None:
    weights = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 4.0]])  # two neurons read three
    positions = np.flatnonzero(weights)
    links = plot.Links(0, positions, weights.flat[positions], plot.BLUE)
    plot.network(axes, [3, 2], [links])
    lines = axes.collections[0]
    ends = [segment.tolist() for segment in lines.get_segments()]
    low, high = -0.5, 0.5  # of the two neurons; the three lie at -1, 0, 1
    assert ends == [[[0, 0], [1, low]], [[0, -1], [1, high]], [[0, 1], [1, high]]]
    assert list(lines.get_linewidths()) == [2, 1, 4]


def test_columns_hold_as_many_neurons_as_layers_and_links_only_what_is_there(axes) -> None:
    plot.network(axes, [4, 1, 2], [])
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [4, 1, 2]
    with pytest.raises(IndexError):  # no second neuron to lead to
        plot.network(axes, [4, 1], [plot.Links(0, [5])])
