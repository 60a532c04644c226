from __future__ import annotations

import math
import struct
from itertools import combinations

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure

from rambo_trl.experiment.learning_curve import format_value, plot_learning_curve, smoothed

REFERENCES = {"title": "a run", "behaviour_mean": 10.0, "behaviour_best": 25.0}
UNKNOWN = {"title": "a run", "behaviour_mean": None, "behaviour_best": None}


def make_rows(num_epochs: int, **columns) -> list[dict[str, float | int | None]]:
    return [
        {"epoch": epoch, "score": 1.5 * epoch if epoch % 2 == 0 else None, "mean_q": 2.0 * epoch}
        | {name: function(epoch) for name, function in columns.items()}
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure that was saved, in order."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def summary(figure: Figure) -> str:
    return figure.axes[0].get_title(loc="left")


def test_writes_a_png_of_the_promised_size_and_leaves_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    path = plot_learning_curve(
        make_rows(20), tmp_path / "new" / "curve.png", cloned=12.0, **REFERENCES
    )
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1040, 728)
    assert dict(matplotlib.rcParams) == before and matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize("title", ["a run", "x" * 150])
def test_names_every_reference_in_a_legend_that_fits(tmp_path, drawn, title):
    plot_learning_curve(
        make_rows(20), tmp_path / "a.png", cloned=5.0, policy_label="$_$", num_final=4,
        **REFERENCES | {"title": title},
    )  # fmt: skip
    (figure,) = drawn
    names = ["data's best episode: 25.0", "data's mean: 10.0", "behaviour cloning: 5.0"]
    assert labels(figure) == [*names, r"\$_\$: 25.5"]
    heights = [handle.get_ydata()[0] for handle in figure.legends[0].legend_handles]
    assert len(heights) == 4
    lines = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
    assert [lines[name] for name in [*names, "$_$: 25.5"]] == [25.0, 10.0, 5.0, 25.5]
    figure.draw_without_rendering()
    parts = [figure.legends[0], figure._suptitle, figure.axes[0].title, *figure.axes]
    extents = [part.get_window_extent() for part in parts]
    whole = figure.bbox
    assert all(x.x0 >= 0 and x.y0 >= 0 and x.x1 <= whole.x1 and x.y1 <= whole.y1 for x in extents)
    assert not any(a.overlaps(b) for a, b in combinations(extents, 2) if a.width and b.width)


def test_final_score_is_the_mean_of_the_last_evaluations(tmp_path, drawn):
    plot_learning_curve(make_rows(20), tmp_path / "a.png", num_final=4, **REFERENCES)
    expected = np.mean([1.5 * epoch for epoch in (14, 16, 18, 20)])
    said = f"mean of the last 4 evaluations: {expected:.1f}, {expected - 10:.1f} above the data's "
    assert summary(drawn[0]) == f"{said}mean and above its best episode"
    top, bottom = drawn[0].axes
    assert top.get_xlim() == bottom.get_xlim()
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), 2.0 * np.arange(1, 21))
    rows = make_rows(6, score=lambda epoch: 4.0)
    plot_learning_curve(rows, tmp_path / "a.png", num_final=1, **REFERENCES)
    assert summary(drawn[1]) == "last evaluation: 4.0, 6.0 below the data's mean"
    with pytest.raises(ValueError, match="num_final"):
        plot_learning_curve(rows, tmp_path / "a.png", num_final=0, **REFERENCES)


def test_data_without_a_whole_episode_have_no_lines(tmp_path, drawn):
    plot_learning_curve(make_rows(20), tmp_path / "a.png", num_final=1, **UNKNOWN)
    assert labels(drawn[0]) == ["policy: 30.0"]
    assert summary(drawn[0]).endswith("; no episode of the data is whole")


@pytest.mark.parametrize(
    "rows",
    [
        [{"epoch": 1, "score": 3.0}],
        make_rows(2, score=lambda epoch: math.nan),
        make_rows(2, score=lambda epoch: None),
        make_rows(5, mean_q=lambda epoch: 0.0),
        make_rows(9, score=lambda epoch: 1.0, score_std=lambda epoch: None),
    ],
)
def test_draws_unusual_runs_without_a_warning(tmp_path, rows):
    assert plot_learning_curve(rows, tmp_path / "a.png", cloned=math.nan, **REFERENCES).exists()


@pytest.mark.parametrize(
    "rows", [[], [{"epoch": 1, "score": None, "mean_q": None, "loss_actor": 1.0}]]
)
def test_an_empty_figure_is_not_drawn(tmp_path, rows):
    assert plot_learning_curve(rows, tmp_path / "a.png", **REFERENCES) is None
    assert not (tmp_path / "a.png").exists()


def test_panels_without_values_are_left_out(tmp_path, drawn):
    rows = make_rows(4, mean_q=lambda epoch: None, model_error=lambda epoch: 1.0)
    plot_learning_curve(rows, tmp_path / "a.png", **REFERENCES)
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["normalised score"]


@pytest.mark.parametrize("sign", [-1, 1])
def test_values_of_all_sizes_have_tick_labels(tmp_path, drawn, sign):
    rows = make_rows(9, mean_q=lambda epoch: sign * 10.0**epoch)
    plot_learning_curve(rows, tmp_path / "b.png", **REFERENCES)
    axes = drawn[0].axes[1]
    low, high = axes.get_ylim()
    ticks = [tick for tick in sign * axes.get_yticks() if sign * low <= tick <= sign * high
             or sign * high <= tick <= sign * low]  # fmt: skip
    assert 2 <= len(ticks) <= 6 and max(ticks) >= 1e7


def test_without_evaluations_it_shows_what_there_is(tmp_path, drawn):
    rows = make_rows(
        4,
        score=lambda epoch: None,
        start_value=lambda epoch: 100.0 * epoch,
        model_error=lambda epoch: 0.1,
    )
    plot_learning_curve(rows, tmp_path / "a.png", logged_mean=150.0, logged_best=300.0, **UNKNOWN)
    (figure,) = drawn
    panels = [axes.get_ylabel() for axes in figure.axes]
    assert panels == ["value at the start", "mean Q", "model error"]
    names = ["best logged episode: 300.0", "mean logged episode: 150.0", "expected: 400.0"]
    assert labels(figure) == names and "not evaluated" in summary(figure)


def test_values_of_any_size_keep_their_digits():
    numbers = (0.0, -1238.25, 0.00042127, -3e-9, 12.0, 2.5e7)
    texts = ["0.0", "-1238.2", "0.0004213", "-3e-09", "12.0", "2.5e+07"]
    assert [format_value(x) for x in numbers] == texts


def test_marks_where_mean_q_stops_being_finite(tmp_path, drawn):
    rows = make_rows(9, mean_q=lambda epoch: float(epoch) if epoch < 6 else math.inf)
    plot_learning_curve(rows, tmp_path / "a.png", **REFERENCES)
    lower = drawn[0].axes[1]
    assert [(text.get_position()[0], text.get_text().strip()) for text in lower.texts] == [
        (6, "not finite")
    ]


def test_smoothed_keeps_constants_and_stays_between_the_extremes():
    x = np.array([0.0, 1.0, 2.0, 10.0])
    at, flat = smoothed(x, np.full(4, 3.0), 0.05)
    np.testing.assert_allclose([at[0], at[-1]], [0.0, 10.0])
    np.testing.assert_allclose(flat, 3.0)
    _, curve = smoothed(x, np.array([0.0, 4.0, 2.0, 1.0]), 0.05)
    assert (curve > 0).all() and (curve < 4).all()
    x, y = np.arange(50.0), np.arange(50) % 2 * 1.0
    narrow, wide = (np.ptp(smoothed(x, y, fraction)[1]) for fraction in (0.0, 0.2))
    assert wide < 0.05 < narrow
