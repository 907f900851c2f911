"""The project's own bars: which are measured, and when one is met."""

import io
from dataclasses import replace

import pytest

pytest.importorskip("rich")

import bench_fakes as fakes
from rich.console import Console

from bench import bars
from bench.providers import PROVIDERS
from bench.results import Limit, Measurement, Run
from bench.workloads import INFERENCE, TRAINING, cpu_workloads


def met(rows, disturbances=(), **environment):
    run = Run({**fakes.ENVIRONMENT, **environment}, list(rows), list(disturbances))
    return {bar.what: bar.met for bar in bars.all_bars(run)}


def test_no_bar_without_its_rows():
    assert met([]) == {}
    assert set(met([fakes.result(2.0, "float64")], machine=None)) == {
        "slowest row, float64",
        "error over what is allowed, inference, medium, float64",
    }


def test_one_slow_row_fails_its_bar():
    fast = [fakes.result(2.0), fakes.result(2.0, "square")]
    assert all(met(fast).values())
    slow = met([*fast, fakes.result(0.9, "awd_lstm")])
    assert slow["slowest row, float32"] is False
    assert slow["mean, dense float32, inference, Intel AVX-512"] is True


def test_means_have_the_bar_of_their_processor():
    rows = [fakes.result(1.2, "square")]
    assert met(rows)["mean, dense float32, inference, Intel AVX-512"] is False
    capped = met(rows, isa="avx2", isa_cap="avx2")
    assert capped["mean, dense float32, inference, both capped to AVX2"] is True
    assert not any("mean" in what for what in met(rows, cpu_kind="AuthenticAMD 25 17"))


def test_share_of_the_micro_kernel():
    row = fakes.result(2.0, "square")
    ours = row.measurements["fused_lstm"].seconds
    what = "of brgemm, inference, square"
    for share, is_met in ((0.91, True), (0.89, False)):
        rounds = [share * seconds for seconds in ours]
        assert met([replace(row, brgemm_seconds=rounds)])[what] is is_met
    assert what not in met([row])
    for small in (fakes.workload("square", batch=4), fakes.workload("square", hidden=(128,))):
        assert bars.brgemm_bar(small, INFERENCE) is None


def test_one_sequence_on_two_threads():
    one = {"one-thread": Measurement(fakes.around(0.5 * 12.3456e-3))}
    bad = met([fakes.result(1.4, "single", INFERENCE, one)])
    assert bad["single, inference"] is False
    assert bad["single, inference: over one thread"] is False
    good = met([fakes.result(1.6)])
    assert good["single, inference"] is True
    assert good["single, inference: quartile over median"] is True
    assert "single, inference: over one thread" not in good


@pytest.mark.parametrize(("times", "is_met"), [(1.14, True), (1.16, False)])
def test_a_last_step_loss_takes_little_more_than_one_of_all_steps(times, is_met):
    rows = [
        fakes.result(1.5, "all steps", TRAINING, ours=1.0),
        fakes.result(1.5, "hydrology", TRAINING, ours=times),
    ]
    found = met(rows)
    assert found["last-step loss over all-step loss"] is is_met
    assert "last-step loss, where denormals are slow" not in found


@pytest.mark.parametrize(
    ("ratio", "all_steps", "is_met"), [(7.9, 3.8, False), (8.1, 3.9, True), (8.1, 4.2, None)]
)
def test_a_last_step_loss_where_denormals_are_slow(ratio, all_steps, is_met):
    """There the loss of the last step takes nn.LSTM more than twice as long as that of all."""
    rows = [
        fakes.result(all_steps, "all steps", TRAINING, ours=1.0),
        fakes.result(ratio, "hydrology", TRAINING, ours=1.0),
    ]
    assert met(rows).get("last-step loss, where denormals are slow") is is_met


@pytest.mark.parametrize(
    ("flops", "share", "is_met"),
    [(360e9, 0.71, True), (360e9, 0.69, False), (400e9, 0.61, True), (400e9, 0.59, False)],
)
def test_share_of_the_float64_peak(flops, share, is_met):
    """Of two cores: the lower rate takes one AVX-512 unit in each, the higher one two."""
    ours = 12.3456e-3
    machine = fakes.ENVIRONMENT["machine"] | {"flops": flops}
    what = "of the float64 peak, medium, float64, inference"
    for by, expected in (("multiply-adds", is_met), ("memory", None)):
        row = fakes.result(2.0, "float64", limit=Limit(share * ours, by, 1.0))
        assert met([row], machine=machine).get(what) is expected


def test_cells_steps_and_busy_core():
    rows = [fakes.result(1.25, "cell"), fakes.result(5.0, "step")]
    found = met(rows, fakes.full_run().disturbances)
    assert found["slowest LSTMCell"] is True
    assert found["LSTMCell, B=1, H=128, inference"] is False
    assert found["one step through the module, B=1, H=128"] is False
    assert found["small, one core busy"] is True
    assert found["small, one core busy: over nn.LSTM's worst"] is True


def test_options_for_sequences():
    own = 12.3456e-3
    others = {
        name: Measurement(fakes.around(times * own))
        for name, times in {"cells": 1.05, "recompute": 1.5, "stream": 0.5}.items()
    }
    found = met(
        [fakes.result(5.0, "single", TRAINING, others), fakes.result(3.0, "step", others=others)]
    )
    assert found["single, training: cells over without"] is True
    assert found["single, training: recompute over without"] is False
    assert found["step, inference: stream"] is False  # 6 times nn.LSTM's speed, 8 are wanted
    assert not any("single" in what and "stream" in what for what in found)


@pytest.mark.parametrize(
    ("name", "mode", "options", "bar"),
    [
        ("rl_resets, 8", TRAINING, ("resets", "reset-loop"), 8.0),
        ("pyannet, packed", TRAINING, ("lengths", "nn.LSTM"), 3.0),
        ("pyannet, half to all", TRAINING, ("lengths", "nn.LSTM"), 3.0),
        ("step", INFERENCE, ("stream", "nn.LSTM"), 8.0),
        ("predictor, 1", INFERENCE, ("stream", "nn.LSTM"), 4.0),
        ("predictor, 16", INFERENCE, ("stream", "nn.LSTM"), 2.5),
    ],
)
def test_options_are_faster_than_what_one_does_without(name, mode, options, bar):
    (row,) = [row for row in cpu_workloads() if row.name == name]
    option, instead = options
    what = f"{name}, {mode}: {option}" + (" over a call a step" if option == "resets" else "")
    own = 12.3456e-3
    for times in (1.02 * bar, 0.98 * bar):
        taken = {option: own, instead: times * own}
        others = {each: Measurement(fakes.around(seconds)) for each, seconds in taken.items()}
        assert met([fakes.result(1.0, row, mode, others)])[what] is (times > bar)


def test_members_compiled_and_fallback():
    own = 12.3456e-3
    rows = {row.name: row for row in cpu_workloads()}

    def other(name, times, **fields):
        return {name: Measurement(fakes.around(times * own), **fields)}

    compiled = other("fused-compile", 1.3, setup_seconds=19.0) | other("pointwise", 1.2)
    found = met(
        [
            fakes.result(5.0, rows["vmap of 16"], others=other("whole", 0.8)),
            fakes.result(2.1, rows["ensemble of 8"], TRAINING),
            fakes.result(9.0, rows["per sample"], TRAINING),
            fakes.result(2.0, rows["atari"], TRAINING, compiled),
            fakes.result(5.9, rows["step, 32"]),
            fakes.result(2.0, rows["small"], TRAINING, other("fallback", 2.0)),
            fakes.result(2.0, rows["single"], INFERENCE, other("fallback", 2.2)),
        ]
    )
    assert found["vmap of 16: over one call"] is False
    assert found["ensemble of 8"] is True
    assert found["per sample"] is False
    assert found["one step through the module, B=1, H=32"] is False
    assert found["torch.compile, 128 steps: seconds of the first call"] is True
    assert found["torch.compile, 128 steps: over eager"] is False
    assert found["slowest fallback over nn.LSTM"] is False
    one = met([fakes.result(2.0, rows["small"], TRAINING, other("fallback", 2.0))])
    assert one["slowest fallback over nn.LSTM"] is True


def test_bars_bring_the_providers_of_transforms():
    rows = {row.name: row for row in cpu_workloads()}
    assert bars.extra_providers(rows["vmap of 16"], INFERENCE) == ["whole"]
    assert "fused-compile" in bars.extra_providers(rows["atari"], TRAINING)
    assert "fused-compile" not in bars.extra_providers(rows["atari"], INFERENCE)
    assert rows["atari"].steps == 128
    for name in bars.FALLBACK_ROWS:
        assert "fallback" in bars.extra_providers(rows[name], INFERENCE)


@pytest.mark.parametrize(
    ("mode", "names", "close"),
    [
        (INFERENCE, ["nn.LSTM", "fallback"], True),
        (TRAINING, ["fused-compile"], True),
        (INFERENCE, ["whole"], True),
        (TRAINING, ["nn.LSTM", "lengths"], True),
        (INFERENCE, ["nn.LSTM", "lengths"], False),  # has no bar
        (TRAINING, ["nn.LSTM", "fused_lstm", "one-thread"], False),
    ],
)
def test_bars_near_equality(mode, names, close):
    assert bars.is_close(mode, names) is close
    assert not close or set(names) & set(PROVIDERS)


def test_bfloat16_and_own_settings():
    autocast = {"autocast": Measurement(fakes.around(1.2 * 12.3456e-3))}
    rows = [fakes.result(1.2, "bfloat16", TRAINING, autocast)]
    assert met(rows, isa="avx512_bf16")["mean, bfloat16, training, AVX512-BF16"] is False
    assert met(rows, amx=True)["slowest row, bfloat16, AMX"] is True
    assert met(rows)["single, bfloat16, training: autocast over bfloat16"] is False
    tf32 = {"tf32": Measurement(fakes.around(12.3456e-3 / 1.8))}
    rows = [fakes.result(1.2, "square", INFERENCE, tf32)]
    assert met(rows, amx=True)['square, inference: "tf32" over "ieee"'] is True
    assert met(rows)['square, inference: "tf32" over "ieee"'] is None


def test_bars_of_amx_are_not_measured_without_it():
    tf32 = {"tf32": Measurement(fakes.around(12.3456e-3 / 1.8))}
    rows = [fakes.result(2.5, "bfloat16", TRAINING), fakes.result(1.2, "square", others=tf32)]
    unknown = {what for what, found in met(rows, isa="avx512_bf16").items() if found is None}
    assert unknown == {
        "mean, bfloat16, training, AMX",
        "slowest row, bfloat16, AMX",
        'square, inference: "tf32" over "ieee"',
    }
    assert None not in met(rows, amx=True).values()
    console = Console(file=io.StringIO(), width=100)
    bars.show_bars(console, bars.all_bars(Run(fakes.ENVIRONMENT, rows, [])))
    shown = [line for line in console.file.getvalue().splitlines() if "AMX" in line]
    assert len(shown) == 3
    assert all("not measured: no AMX" in line and line.rstrip().endswith("-") for line in shown)


def of_allowed(share, *arguments):
    row = fakes.result(2.0, *arguments)
    row.measurements["fused_lstm"] = replace(
        row.measurements["fused_lstm"], error_ratio=9.0, error_of_allowed=share
    )
    return row


def test_accuracy_is_judged_by_what_is_allowed_and_names_the_worst_row():
    rows = [of_allowed(0.9, "square"), of_allowed(1.1, "awd_lstm"), of_allowed(0.2)]
    what = "error over what is allowed, inference, awd_lstm"
    assert met(rows)[what] is False
    assert met(rows[:1])["error over what is allowed, inference, square"] is True
    training = met([of_allowed(0.9, "square", TRAINING), *rows])
    assert training["error over what is allowed, training, square"] is True
    assert (
        met([*rows, of_allowed(float("nan"), "cell")])[what.replace("awd_lstm", "cell, 1 x 128")]
        is False
    )
    assert not any("allowed" in what for what in met([of_allowed(None)]))


def test_no_bar_is_said_where_none_was_measured():
    console = Console(file=io.StringIO(), width=80)
    bars.show_bars(console, [])
    assert "None of the project's bars" in console.file.getvalue()
