from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from rambo_trl.experiment import learning_curve as figures
from rambo_trl.experiment.learning_curve import plot_learning_curve


def make_rows(num_epochs: int, **columns) -> list[dict[str, float | int | None]]:
    rows = []
    for epoch in range(1, num_epochs + 1):
        row: dict[str, float | int | None] = {"epoch": epoch, "score": None, "mean_q": 2.0 * epoch}
        if epoch % 2 == 0:
            row["score"] = 1.5 * epoch
        rows.append(row | {name: function(epoch) for name, function in columns.items()})
    return rows


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


def edge_labels(figure: Figure) -> dict[str, object]:
    """First line of each label beside the upper panel, and its extent in pixels."""
    renderer = figure.canvas.get_renderer()
    return {
        text.get_text().split("\n")[0]: text.get_window_extent(renderer)
        for text in figure.axes[0].texts
    }


REFERENCES = {"title": "a run", "behaviour_mean": 10.0, "behaviour_best": 25.0}


def test_writes_a_png_of_the_promised_size(tmp_path):
    path = plot_learning_curve(
        make_rows(20), tmp_path / "new" / "curve.png", cloned=12.0, dpi=100, **REFERENCES
    )
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (800, 560)


def test_names_every_reference_at_its_height(tmp_path, drawn):
    plot_learning_curve(make_rows(20), tmp_path / "a.png", cloned=5.0, **REFERENCES)
    labels = edge_labels(drawn[0])
    assert set(labels) == {"data's mean", "data's best episode", "behaviour cloning", "policy"}
    to_pixels = drawn[0].axes[0].transData.transform
    for name, value in (("data's mean", 10), ("data's best episode", 25), ("behaviour cloning", 5)):
        extent = labels[name]
        assert (extent.y0 + extent.y1) / 2 == pytest.approx(to_pixels((0, value))[1], abs=12)


@pytest.mark.parametrize("cloned", [None, 10.0, 10.1, 24.9, 400.0, -300.0])
@pytest.mark.parametrize("best", [10.0, 10.5, 30.0])
def test_labels_neither_meet_nor_leave_the_figure(tmp_path, drawn, cloned, best):
    plot_learning_curve(
        make_rows(20),
        tmp_path / "a.png",
        title="x" * 150,
        behaviour_mean=10.0,
        behaviour_best=best,
        cloned=cloned,
    )
    figure = drawn[0]
    extents = list(edge_labels(figure).values())
    for i, a in enumerate(extents):
        assert a.x0 >= 0 and a.x1 <= figure.bbox.width and a.y1 <= figure.bbox.height
        assert not any(a.overlaps(b) for b in extents[i + 1 :])
    renderer = figure.canvas.get_renderer()
    assert all(text.get_window_extent(renderer).x1 <= figure.bbox.width for text in figure.texts)


def test_final_score_is_the_mean_of_the_last_evaluations(tmp_path, drawn):
    rows = make_rows(20)
    plot_learning_curve(rows, tmp_path / "a.png", num_final=4, **REFERENCES)
    expected = np.mean([1.5 * epoch for epoch in (14, 16, 18, 20)])
    subtitle = drawn[0].texts[1].get_text()
    assert subtitle.startswith(f"mean of the last 4 evaluations: {expected:.1f}, ")
    assert subtitle.endswith(
        f"{expected - 10:.1f} above the data's mean and above its best episode"
    )


def test_data_without_a_whole_episode_have_no_lines(tmp_path, drawn):
    unknown = REFERENCES | {"behaviour_mean": None, "behaviour_best": None}
    plot_learning_curve(make_rows(20), tmp_path / "a.png", num_final=1, **unknown)
    assert set(edge_labels(drawn[0])) == {"policy"}
    assert drawn[0].texts[1].get_text().endswith("; no episode of the data is whole")
    plot_learning_curve(make_rows(2, score=lambda epoch: None), tmp_path / "b.png", **unknown)


def test_says_when_the_policy_is_worse_than_its_data(tmp_path, drawn):
    rows = make_rows(6, score=lambda epoch: 4.0)
    plot_learning_curve(rows, tmp_path / "a.png", num_final=1, **REFERENCES)
    assert drawn[0].texts[1].get_text() == "last evaluation: 4.0, 6.0 below the data's mean"


def test_panels_share_the_epochs(tmp_path, drawn):
    plot_learning_curve(make_rows(20), tmp_path / "a.png", **REFERENCES)
    top, bottom = drawn[0].axes
    assert top.get_xlim() == bottom.get_xlim()
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), 2.0 * np.arange(1, 21))


@pytest.mark.parametrize(
    "rows",
    [
        [{"epoch": 1, "score": 3.0}],
        make_rows(2, score=lambda epoch: math.nan),
        make_rows(5, mean_q=lambda epoch: 0.0),
        make_rows(9, mean_q=lambda epoch: -(10.0**epoch)),
        make_rows(9, mean_q=lambda epoch: 10.0**epoch if epoch < 6 else math.inf),
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
    # negative values of all sizes have marks of their own
    rows = make_rows(9, mean_q=lambda epoch: -(10.0**epoch))
    plot_learning_curve(rows, tmp_path / "b.png", **REFERENCES)
    assert min(drawn[1].axes[1].get_yticks()) < -1e8


def test_without_evaluations_it_shows_what_there_is(tmp_path, drawn):
    rows = make_rows(
        4,
        score=lambda epoch: None,
        start_value=lambda epoch: 100.0 * epoch,
        model_error=lambda epoch: 0.1,
    )
    logged = {"logged_mean": 150.0, "logged_best": 300.0}
    none = {"behaviour_mean": None, "behaviour_best": None}
    plot_learning_curve(rows, tmp_path / "a.png", title="a run", **none, **logged)
    (figure,) = drawn
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["value at the start", "mean Q", "model error"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text.split("\n")[-1] for text in texts] == ["150.0", "300.0", "400.0"]
    assert "not evaluated" in figure.texts[1].get_text()


def test_values_of_any_size_keep_their_digits():
    numbers = (0.0, -1238.25, 0.00042127, -3e-9, 12.0, 2.5e7)
    texts = ["0.0", "-1238.2", "0.0004213", "-3e-09", "12.0", "2.5e+07"]
    assert [figures.format_value(x) for x in numbers] == texts


def test_marks_where_mean_q_stops_being_finite(tmp_path, drawn):
    rows = make_rows(9, mean_q=lambda epoch: float(epoch) if epoch < 6 else math.inf)
    plot_learning_curve(rows, tmp_path / "a.png", **REFERENCES)
    assert "not finite" in [text.get_text() for text in drawn[0].axes[1].texts]


def test_reads_no_pyplot_state(tmp_path):
    import matplotlib.pyplot as plt

    plot_learning_curve(make_rows(4), tmp_path / "a.png", **REFERENCES)
    assert plt.get_fignums() == []


def test_num_final_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="num_final"):
        plot_learning_curve(make_rows(4), tmp_path / "a.png", num_final=0, **REFERENCES)


class TestMoveApart:
    def test_leaves_distant_positions(self):
        wanted = np.array([1.0, 5.0, 9.0])
        np.testing.assert_allclose(figures._move_apart(wanted, 2.0, 0.0, 10.0), wanted)

    def test_spreads_neighbours_around_their_mean(self):
        placed = figures._move_apart(np.array([4.0, 4.0, 4.6, 9.0]), 1.0, 0.0, 10.0)
        np.testing.assert_allclose(placed, [3.2, 4.2, 5.2, 9.0])

    def test_stays_inside(self):
        placed = figures._move_apart(np.array([-5.0, 0.0, 20.0]), 1.0, 0.0, 10.0)
        np.testing.assert_allclose(placed, [0.0, 1.0, 10.0])

    def test_closes_up_where_the_room_is_too_small(self):
        placed = figures._move_apart(np.zeros(5), 100.0, 0.0, 10.0)
        np.testing.assert_allclose(placed, [0.0, 2.5, 5.0, 7.5, 10.0])


def test_smoothed_keeps_constants_and_stays_between_the_extremes():
    x = np.array([0.0, 1.0, 2.0, 10.0])
    at, flat = figures.smoothed(x, np.full(4, 3.0), 0.05)
    np.testing.assert_allclose([at[0], at[-1]], [0.0, 10.0])
    np.testing.assert_allclose(flat, 3.0)
    _, curve = figures.smoothed(x, np.array([0.0, 4.0, 2.0, 1.0]), 0.05)
    assert (curve > 0).all() and (curve < 4).all()


def test_smoothed_lets_a_wider_kernel_waver_less():
    x, y = np.arange(50.0), np.arange(50) % 2 * 1.0
    narrow, wide = (np.ptp(figures.smoothed(x, y, fraction)[1]) for fraction in (0.0, 0.2))
    assert wide < 0.05 < narrow


def test_names_with_dollars_are_no_formulas(tmp_path):
    names = {"title": "RAMBO on my_$^_$.hdf5", "policy_label": "$_$"}
    assert plot_learning_curve(make_rows(4), tmp_path / "a.png", **(REFERENCES | names)).is_file()
