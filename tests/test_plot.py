"""Figures of the house: what they draw is what they were given."""

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from sparselib import plot


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
