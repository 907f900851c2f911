"""What the benchmark prints, on results that nobody measured."""

import io
import re
from dataclasses import replace

import pytest

pytest.importorskip("rich")

import bench_fakes as fakes
from rich.console import Console

from bench import bars, details, report, summary, units
from bench.providers import PROVIDERS
from bench.results import Measurement, Run
from bench.workloads import INFERENCE, TRAINING

WIDTHS = [80, 100, 130, 160]


def console_of(width):
    return Console(file=io.StringIO(), width=width, highlight=False)


def printed(width, *shows):
    console = console_of(width)
    for show in shows:
        show(console)
    return console.file.getvalue()


def report_of(run, width=100):
    return printed(width, lambda console: report.show(console, run))


def line_of(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


# Readable at every width


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(width):
    run = fakes.full_run()
    text = printed(
        width,
        lambda console: report.show(console, run),
        lambda console: details.show_details(console, run),
        lambda console: bars.show_bars(console, bars.all_bars(run)),
        lambda console: report.show_table(console, details.rows_table(list_of_rows())),
    )
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for result in run.results:
        if result.workload.group != fakes.GRID:
            assert result.workload.name in text
    for unit in (" s ", " ms ", " us ", "%", " MB"):
        assert unit in text
    assert "300->1150,1150,650" in text.replace("\n", "")


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_take_two_lines(width):
    row = fakes.workload("awd_lstm", name="rnnt_layernorm, packed, bfloat16")
    text = report_of(Run(fakes.ENVIRONMENT, [fakes.result(1.2, row)]), width)
    assert re.search(r"^rnnt_layernorm, .*x70.*\npacked, bfloat16 ", text, re.MULTILINE)
    assert all(len(line) <= width for line in text.splitlines())


def list_of_rows():
    return list(fakes.WORKLOADS.values())


@pytest.mark.parametrize(
    ("width", "there", "missing"),
    [
        (80, {"faster", "reached"}, {"quartiles", "limit ", "memory"}),
        (100, {"quartiles", "limit"}, {"memory", "GFLOP/s"}),
        (130, {"memory"}, {"GFLOP/s"}),
        (160, {"memory", "GFLOP/s", "error"}, set()),
    ],
)
def test_wider_terminals_have_more_columns(width, there, missing):
    table = report.results_table(fakes.full_run().results, "Inference", width)
    text = printed(width, lambda console: console.print(table))
    assert all(word in text for word in there)
    assert not any(word in text for word in missing)


def test_a_narrow_terminal_and_a_file_have_widths_of_their_own(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert report.make_console().width == report.IN_A_FILE
    monkeypatch.setenv("COLUMNS", "40")
    assert report.make_console().width == 80
    monkeypatch.setenv("COLUMNS", "123")
    assert report.make_console().width == 123


def test_a_file_has_no_colours():
    assert "\x1b" not in report_of(fakes.full_run())


def test_text_survives_a_terminal_without_unicode():
    report_of(fakes.full_run()).encode("ascii")


# What it says


def test_it_begins_with_what_a_user_gains():
    rows = [
        fakes.result(2.0, "single", INFERENCE),
        fakes.result(4.5, "square", INFERENCE),
        fakes.result(1.0, "single", TRAINING),
        fakes.result(4.0, "square", TRAINING),
    ]
    assert report_of(Run(fakes.ENVIRONMENT, rows), 500).splitlines()[0] == (
        "With fused_lstm, training on this machine is 1.00 to 4.00 times faster than with the "
        "fastest form of nn.LSTM, 2.00 on average over 2 rows; dense float32 rows reach 50% of "
        "what the machine can do (nn.LSTM 31%). Inference is 2.00 to 4.50 times faster, 3.00 on "
        "average over 2 rows; dense float32 rows reach 50% of what the machine can do (nn.LSTM "
        "18%)."
    )
    assert summary.FASTEST_FORM in report.legend("cpu")


def test_on_a_gpu_the_limit_is_said_to_be_that_of_an_h200():
    text = report_of(fakes.full_run(device="cuda", gpu="Some GPU"), 1000)
    assert "reached: share of the limit of an H200, whatever GPU this is: " in text
    assert "of what an H200 can do (nn.LSTM" in text
    assert "machine can do" not in text
    assert "limit of this machine" not in text
    assert "reached: share of the limit of this machine, which is the " in report_of(
        fakes.full_run(), 1000
    )


def test_the_gain_is_over_the_fastest_form_of_nn_lstm():
    padded = {"padded": Measurement(fakes.around(1.5 * 12.3456e-3), error=1e-7)}
    row = fakes.result(3.0, "packed", INFERENCE, padded)
    assert row.gain().median == pytest.approx(1.5)
    assert row.faster().median == pytest.approx(3.0)
    assert "1.50 times faster" in summary.headline(Run(fakes.ENVIRONMENT, [row]))
    exact = replace(padded["padded"], error=0.0)
    assert fakes.result(3.0, "packed", INFERENCE, {"padded": exact}).gain().median < 1.6
    not_the_same = replace(padded["padded"], error=None)  # nothing could be compared
    assert fakes.result(3.0, "packed", INFERENCE, {"padded": not_the_same}).gain().median == 3.0


def test_what_nn_lstm_lacks_is_over_what_one_does_without_it():
    own = 12.3456e-3  # of fused_lstm; nn.LSTM takes 6 times as long

    def other(name, times, memory=None):
        return {name: Measurement(fakes.around(times * own), memory, error=1e-7)}

    rows = [
        fakes.result(6.0, "packed", TRAINING, other("lengths", 2.0) | other("padded", 4.0)),
        fakes.result(6.0, "step", INFERENCE, other("stream", 0.5)),
        fakes.result(6.0, "single", TRAINING, other("resets", 1.5) | other("reset-loop", 12.0)),
        fakes.result(6.0, "square", TRAINING, other("recompute", 1.25, 98765432 // 2)),
    ]
    found = {each.group: each.modes for each in summary.features(rows)}
    assert [round(mean.mean, 2) for modes in found.values() for mean in modes.values()] == [
        2.0,  # padded input is nn.LSTM's fastest form
        12.0,
        8.0,
        0.8,
        2.0,
    ]
    text = report_of(Run(fakes.ENVIRONMENT, rows))
    for name in found:
        assert name in text
    assert list(summary.features([fakes.result(2.0)])) == []


def test_the_sentence_knows_when_nothing_was_compared():
    assert summary.headline(Run(fakes.ENVIRONMENT)) == "Nothing was measured."
    busy = Run(fakes.ENVIRONMENT, [], fakes.full_run().disturbances)
    assert report_of(busy).startswith("Only the rows beside a busy core were measured.")
    alone = fakes.result(2.0)
    alone.measurements.pop("nn.LSTM")
    assert summary.headline(Run(fakes.ENVIRONMENT, [alone])) == (
        "Nothing was compared with nn.LSTM."
    )


def test_a_row_has_times_ratio_limit_and_shares():
    line = line_of(report_of(Run(fakes.ENVIRONMENT, [fakes.result(1.25)])), "single ")
    cells = re.split(r"\s{2,}|\s(?=\d)|\s(?=1x)", line.strip())
    assert "15.4 ms" in line
    assert "12.3 ms" in line
    assert "1.25" in cells
    assert "1.25-1.25" in line
    assert "6.17 ms" in line
    assert cells[-2:] == ["40%", "50%"]


def test_other_providers_have_a_line_below_their_row():
    text = report_of(fakes.full_run())
    lines = text.splitlines()
    below = next(k for k, line in enumerate(lines) if line.startswith("rnnt_layernorm, packed")) + 1
    assert lines[below].startswith("  nn.LSTM, padded")
    assert "21.0 ms" in lines[below]
    assert "1.70" in lines[below]


@pytest.mark.parametrize(("name", "row"), [("float32", "float16"), ("tf32", "square")])
def test_another_arithmetic_reaches_no_share_of_the_limit(name, row):
    """The limit is that of the row's dtype."""
    other = {name: Measurement(fakes.around(12.3456e-3)), "linear": Measurement([12.3456e-3] * 5)}
    result = fakes.result(1.25, row, INFERENCE, other)
    assert (result.share(name), result.share("linear")) == (None, pytest.approx(0.5))
    text = report_of(Run(fakes.ENVIRONMENT, [result]))
    assert line_of(text, f"  {PROVIDERS[name].label}").rstrip().endswith("1.00-1.00")
    assert line_of(text, "  four nn.Linear").rstrip().endswith("50%")


def test_arithmetic_that_is_coarser_is_another():
    assert all(p.other_arithmetic for p in PROVIDERS.values() if p.eps)


def test_names_of_providers_take_one_line():
    assert all(len(f"  {p.label}") <= report.NAME_WIDTH for p in PROVIDERS.values())


def test_a_wrong_result_shows_no_speed_and_says_why():
    text = report_of(fakes.full_run(), 160)
    wrong = next(line for line in text.splitlines() if line.startswith("  four nn.Linear"))
    assert re.fullmatch(r"  four nn.Linear +wrong +n/a +3\.0e-01 *", wrong)
    assert "single, inference, four nn.Linear: wrong: y is off by 3.0e-01" in text


def test_a_wrong_fused_result_shows_no_ratio():
    row = fakes.result(2.0)
    row.measurements["fused_lstm"] = Measurement(failed="wrong: y is off")
    line = line_of(report_of(Run(fakes.ENVIRONMENT, [row])), "single ")
    assert "wrong" in line
    assert "2.00" not in line


def test_notes_and_compile_time_are_said():
    text = report_of(fakes.full_run(), 160)
    assert "awd_lstm: without weight drop." in text
    assert "torch.compile: 134 s to compile." in text
    assert text.count("awd_lstm: without weight drop.") == 1


def test_unknown_limits_are_said_to_be_unknown():
    run = fakes.full_run(machine=None)
    run.results = [replace(result, limit=None) for result in run.results]
    text = report_of(run)
    assert "n/a" in text
    assert "of what the machine can do" not in text.split("\n\n")[0]


def test_means_are_over_the_same_rows():
    rows = [
        fakes.result(4.0, "single", INFERENCE),
        fakes.result(2.0, "single", TRAINING),
        fakes.result(9.0, "square", TRAINING),  # not measured in inference
    ]
    (means,) = summary.means_by_group(rows)
    assert means.rows == 1
    assert means.modes[INFERENCE].mean == pytest.approx(4.0)
    assert means.modes[TRAINING].mean == pytest.approx(2.0)


def test_rows_that_have_no_mode_in_common_are_all_counted():
    rows = [fakes.result(4.0, "step", INFERENCE), fakes.result(2.0, "hydrology", TRAINING)]
    found = summary.gains(rows)
    assert found.rows == 2
    assert (found.modes[INFERENCE].mean, found.modes[TRAINING].mean) == (4.0, 2.0)


def cells_of(text, start):
    return re.split(r"\s{2,}", line_of(text, start).strip())


def test_each_cell_of_the_grid_is_of_its_batch_and_size():
    rows = [
        fakes.result(ratio, fakes.Workload("row", fakes.GRID, batch, 50, size, (size,)))
        for batch, size, ratio in ((1, 64, 1.1), (1, 256, 1.2), (8, 64, 1.3), (8, 256, 1.4))
    ]
    text = report_of(Run(fakes.ENVIRONMENT, rows))
    assert cells_of(text, "batch") == ["batch", "H=64", "H=256"]
    assert cells_of(text, "1 ") == ["1", "1.10", "1.20"]
    assert cells_of(text, "8 ") == ["8", "1.30", "1.40"]


def test_the_slowest_row_comes_before_the_mean():
    rows = [
        fakes.result(ratio, name, mode)
        for name, mode, ratio in (
            *(("single", INFERENCE, 2.0), ("square", INFERENCE, 8.0)),
            *(("single", TRAINING, 3.0), ("square", TRAINING, 12.0)),
        )
    ]
    text = report_of(Run(fakes.ENVIRONMENT, rows))
    means = text[text.index("slowest row and geometric mean") :]
    assert line_of(means, "dense float32 ").split()[2:] == ["2", "2.00", "4.00", "3.00", "6.00"]


def test_the_grid_is_a_table_of_its_own_and_in_no_mean_over_all_rows():
    run = fakes.full_run()
    text = report_of(run)
    assert "Times faster than nn.LSTM, training, by batch and hidden size" in text
    assert not any(line.startswith("grid, ") for line in text.splitlines())
    overall = summary.gains(run.results)
    assert overall.rows == 6
    only = summary.gains(fakes.grid())
    assert only.rows == 6


def test_disturbances_show_the_worst_try():
    text = report_of(fakes.full_run())
    assert re.search(r"small, one core busy, training\s+nn\.LSTM\s+3\.00 ms\s+2\.25\s+3\.50", text)
    assert re.search(r"fused_lstm\s+2\.00 ms\s+1\.50\s+2\.75", text)


def test_disturbances_say_of_how_many_tries():
    run = fakes.full_run()
    assert "on one core, of 6 tries" in report_of(run)
    (each,) = run.disturbances
    run.disturbances = [replace(each, slowdowns={n: t[:3] for n, t in each.slowdowns.items()})]
    assert "on one core, of 3 tries" in report_of(run)


def test_an_interrupted_run_says_so():
    run = fakes.full_run()
    assert "Not complete" not in report_of(run)
    run.complete = False
    assert "Not complete" in report_of(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (999.6e-6, "1.00 ms"),
        (999.4e-6, "999 us"),
        (45.6e-6, "45.6 us"),
        (0.31e-6, "0.31 us"),
        (123.4, "123 s"),
        (None, "n/a"),
    ],
)
def test_seconds_have_a_fitting_unit(value, text):
    assert units.seconds(value) == text


def test_sizes_and_factors():
    assert units.size(123456789) == "123 MB"
    assert units.size(12) == "0.01 kB"
    assert (units.times(1.234), units.times(9.994), units.times(12.34)) == ("1.23", "9.99", "12.3")
    assert (units.rate(4.567), units.rate(1234.5)) == ("4.57", "1234")
