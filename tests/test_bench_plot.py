"""The pictures of a run: which there are, and that they say with more than colour what they say."""

from dataclasses import replace

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import bench_fakes as fakes
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench import pictures, plot, results, style
from bench.results import Limit, Run
from bench.workloads import INFERENCE, TRAINING

LIGHT, DARK = style.STYLES


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def test_a_run_has_four_pictures_in_two_styles(tmp_path, capsys):
    file = tmp_path / "some.json"
    results.save(file, results.to_json(fakes.full_run()))
    assert plot.main([str(file), "--out", str(tmp_path / "pictures")]) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        f"some-{picture}-{look}.png"
        for picture in ("faster", "grid", "roofline", "steps")
        for look in ("light", "dark")
    }
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_a_picture_without_its_rows_is_left_out(tmp_path):
    run = Run({**fakes.ENVIRONMENT, "machine": None}, [fakes.result(2.0)])
    written = plot.draw_all(run, tmp_path, "x")
    assert {path.name for path in written} == {"x-faster-light.png", "x-faster-dark.png"}
    assert plot.draw_all(Run(fakes.ENVIRONMENT), tmp_path, "x") == []


def test_a_file_that_is_none_is_said(tmp_path, capsys):
    assert plot.main([str(tmp_path / "no.json")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plot.main(["x.json"]) == 1
    said = capsys.readouterr().err
    assert said.endswith('needs matplotlib: pip install --no-build-isolation ".[bench]"\n')


def test_every_row_is_drawn_with_its_numbers():
    figure = pictures.draw_faster(fakes.full_run(), LIGHT)
    said = texts(figure)
    for name in ("single", "rnnt_layernorm, packed", "step", "dense float32", "12.3"):
        assert name in said
    assert not any(text.startswith("grid, ") for text in said)


def test_cells_of_the_grid_have_numbers_and_slower_ones_a_hatch():
    grid = fakes.grid()
    grid[0] = fakes.result(0.5, grid[0].workload, INFERENCE)
    figure = pictures.draw_grid(Run(fakes.ENVIRONMENT, grid), DARK)
    assert "0.50" in texts(figure)
    patches = [patch for axes in figure.axes for patch in axes.patches]
    assert len(patches) == len(grid)
    assert sum(patch.get_hatch() is not None for patch in patches) == 1


def drawn(axes, label):
    """The points of the line with this name."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_each_cell_of_the_grid_is_in_its_place():
    """Columns are hidden sizes, rows batches, and the number is that of both."""
    rows = [
        fakes.result(ratio, fakes.Workload("row", fakes.GRID, batch, 50, size, (size,)))
        for batch, size, ratio in ((1, 64, 1.1), (1, 256, 1.2), (8, 64, 1.3), (8, 256, 1.4))
    ]
    (axes,) = pictures.draw_grid(Run(fakes.ENVIRONMENT, rows), LIGHT).axes
    numbers = {text.get_text(): text.get_position() for text in axes.texts}
    assert numbers == {"1.10": (0, 0), "1.20": (1, 0), "1.30": (0, 1), "1.40": (1, 1)}
    middles = {tuple(patch.get_center().round(3)) for patch in axes.patches}
    assert middles == set(numbers.values())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "256"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "8"]


def test_steps_are_in_microseconds_by_hidden_size():
    rows = [
        fakes.result(2.0, fakes.Workload("row", fakes.GRID, 4, 50, size, (size,)), ours=seconds)
        for size, seconds in ((64, 1e-3), (256, 4e-3))
    ]
    (axes,) = pictures.draw_steps(Run(fakes.ENVIRONMENT, rows), LIGHT).axes
    assert drawn(axes, "fused_lstm, B=4") == [(64, pytest.approx(20)), (256, pytest.approx(80))]
    assert drawn(axes, "nn.LSTM, B=4") == [(64, pytest.approx(40)), (256, pytest.approx(160))]


def test_the_roofline_is_over_operations_for_each_byte():
    row = fakes.result(2.0, "square", ours=0.01, limit=Limit(0.005, "L2", 1e6))
    run = Run(fakes.ENVIRONMENT, [row])
    (axes,) = pictures.draw_roofline(run, LIGHT).axes
    flops = row.workload.flops(INFERENCE)
    ((x, y),) = drawn(axes, "fused_lstm")
    assert (x, y) == (pytest.approx(flops / 1e6), pytest.approx(flops / 0.01 / 1e9))
    ((_, theirs),) = drawn(axes, "nn.LSTM")
    assert theirs == pytest.approx(y / 2)
    for at, least in drawn(axes, "memory, 20 GB/s"):
        assert least == pytest.approx(min(400, 20 * at))


def test_the_lines_of_rows_are_apart():
    """Each spread beside the name of its row."""
    run = Run(fakes.ENVIRONMENT, [fakes.result(2.0), fakes.result(4.0, "square")])
    (axes,) = pictures.draw_faster(run, LIGHT).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    ticks = dict(zip(names, axes.get_yticks(), strict=True))
    for name, ratio in (("single", 2.0), ("square", 4.0)):
        near = [
            line
            for line in axes.get_lines()
            if len(line.get_ydata()) and abs(line.get_ydata()[0] - ticks[name]) < 0.3
        ]
        assert near
        assert all(
            list(line.get_xdata()) == pytest.approx([ratio] * len(line.get_xdata()))
            for line in near
        )


def test_a_run_without_either_library_has_no_picture(tmp_path):
    """As with --provider linear."""
    rows = [*fakes.full_run().results]
    for k, row in enumerate(rows):
        linear = {"linear": row.measurements["nn.LSTM"]}
        rows[k] = replace(row, measurements=linear)
    assert plot.draw_all(Run(fakes.ENVIRONMENT, rows), tmp_path, "x") == []


def test_the_legend_of_the_roofline_hides_no_point():
    figure = pictures.draw_roofline(fakes.full_run(), LIGHT)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_modes_and_libraries_differ_by_marker():
    for pair in ((INFERENCE, TRAINING), ("fused_lstm", "nn.LSTM")):
        markers = {style.marked(LIGHT, what)["marker"] for what in pair}
        assert len(markers) == 2


def luminance(color):
    """Relative luminance of WCAG 2."""
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("look", style.STYLES, ids=lambda look: look.name)
def test_ink_and_colours_stand_out_from_the_paper(look):
    def contrast(color):
        a, b = sorted((luminance(color), luminance(look.paper)))
        return (b + 0.05) / (a + 0.05)

    assert contrast(look.ink) > 7
    assert contrast(look.blue) > 3
    assert contrast(look.orange) > 3


def test_pictures_name_the_machine():
    named = plot.machine_name(fakes.full_run())
    for part in ("Some Processor 9000", "2 threads", "abc1234", "torch 2.99.0"):
        assert part in named
