"""What the benchmark's command line chooses of rows and providers, and what it refuses."""

import pytest
import torch

pytest.importorskip("rich")

from bench import options
from bench.workloads import GRID, INFERENCE, TRAINING


def chosen(*arguments):
    return [row.name for row in options.chosen_workloads(parse(*arguments))]


def parse(*arguments):
    return options.parse("bench", list(arguments))


def providers_of(*arguments):
    return {
        case.mode: [p.name for p in case.providers] for case in options.cases(parse(*arguments))
    }


def test_all_rows_but_the_grid_by_default():
    rows = options.chosen_workloads(parse())
    assert len(rows) > 35
    assert not any(row.group == GRID for row in rows)
    assert len(options.chosen_workloads(parse("--grid"))) == len(rows) + 25


def test_rows_by_name_or_by_a_part_of_it():
    assert chosen("--workload", "small") == ["small"]
    assert chosen("--workload", "ATARI") == ["atari", "atari, rollout"]
    assert "medium, packed" in chosen("--workload", "random lengths")
    assert chosen("--workload", "single", "square") == ["single", "square"]
    assert len(chosen("--workload", "grid")) == 25


def test_quick_is_a_few_rows():
    assert 4 <= len(chosen("--quick")) <= 8


def test_modes():
    assert set(providers_of("--workload", "small")) == {INFERENCE, TRAINING}
    assert set(providers_of("--workload", "small", "--mode", "training")) == {TRAINING}
    assert set(providers_of("--workload", "small", "--mode", "forward")) == {"forward"}


def test_rows_in_another_dtype():
    rows = options.chosen_workloads(parse("--dtype", "bfloat16"))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.dtype == torch.bfloat16 for row in rows)
    assert names.count("medium, bfloat16") == 1
    assert "demucs, bfloat16" in names
    assert not any("float64" in name for name in names)
    groups = {row.name: row.group for row in rows}
    assert groups["demucs, bfloat16"] == "bfloat16"
    assert groups["small, packed, bfloat16"] != "bfloat16"


def test_rows_of_tf32_are_in_no_other_dtype():
    """They would be the dense rows again, under a second name."""
    of_tf32 = chosen("--device", "cuda", "--dtype", "float32", "--workload", "tf32")
    assert "H=64, B=1, tf32" in of_tf32
    for name in ("float64", "bfloat16", "float16"):
        names = chosen("--device", "cuda", "--dtype", name)
        assert not any("tf32" in each for each in names)
        assert f"H=64, B=1, dense float32, {name}" in names


def test_other_forms_of_nn_lstm_by_default():
    packed = providers_of("--workload", "small, packed")
    assert packed[INFERENCE] == ["nn.LSTM", "fused_lstm", "padded", "lengths"]
    half = providers_of("--workload", "small, float16")
    assert half[TRAINING] == ["nn.LSTM", "fused_lstm", "float32"]
    assert providers_of("--workload", "small")[INFERENCE] == ["nn.LSTM", "fused_lstm"]


def test_what_nn_lstm_lacks_is_measured_by_default():
    plain = ["nn.LSTM", "fused_lstm"]
    resets = [*plain, "resets", "reset-loop"]
    assert providers_of("--workload", "rl_resets") == {INFERENCE: resets, TRAINING: resets}
    assert providers_of("--workload", "rl_resets, 8") == {INFERENCE: resets, TRAINING: resets}
    assert providers_of("--workload", "step") == {INFERENCE: [*plain, "stream"]}
    long = {INFERENCE: plain, TRAINING: [*plain, "recompute"]}
    assert providers_of("--workload", "long") == long
    assert providers_of("--workload", "rl_resets", "--provider", "linear")[TRAINING] == ["linear"]


def test_providers_by_name():
    found = providers_of("--workload", "small", "--provider", "linear", "fused_lstm")
    assert found[TRAINING] == ["fused_lstm", "linear"]
    everything = providers_of("--workload", "small", "--provider", "all")[TRAINING]
    assert set(everything) >= {"nn.LSTM", "fused_lstm", "linear", "compile", "one-thread"}


def test_others_are_the_rivals_beside_what_runs_anyhow(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # every engine is there
    small = providers_of("--workload", "small", "--provider", "others")
    rivals = ["linear", "script", "compile"]
    assert small[TRAINING] == ["nn.LSTM", "fused_lstm", *rivals]
    assert small[INFERENCE] == ["nn.LSTM", "fused_lstm", *rivals, "onnxruntime", "openvino"]
    packed = providers_of("--workload", "small, packed", "--provider", "others", "one-thread")
    assert packed[TRAINING] == ["nn.LSTM", "fused_lstm", "padded", "lengths", "one-thread"]


def test_bars_bring_the_providers_that_they_compare():
    plain = providers_of("--workload", "single, long")
    with_bars = providers_of("--workload", "single, long", "--bars")
    assert set(with_bars[INFERENCE]) - set(plain[INFERENCE]) == {"one-thread", "bf16"}
    square = providers_of("--workload", "square, bfloat16", "--bars")
    assert "autocast" in square[TRAINING]


def test_a_busy_core_is_for_the_two():
    found = providers_of("--workload", "small, one core busy", "--provider", "all")
    assert found == {TRAINING: ["nn.LSTM", "fused_lstm"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "--threads has to be at least 1, got 0"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--workload", "no such row"], "no row is left of 'no such row'; --list shows all"),
        (["--workload", "single", "no such row"], "no row is left of 'no such row'"),
        (["--mode", "inference", "--workload", "hydrology"], "no row is left of 'hydrology'"),
        (["--mode", "forward", "--workload", "small", "step"], "no row is left of 'step'"),
        (["--quick", "--dtype", "float64", "--workload", "f16"], "no row is left of 'f16'"),
        (["--provider", "cudnn"], "invalid choice: 'cudnn'"),
        (["--provider", "padded", "--workload", "small"], "none of these rows: only for packed"),
        (["--provider", "nn.LSTM", "stream", "--workload", "small"], "stream runs none of these"),
        (["--provider", "linear", "--workload", "small, one core busy"], "a busy core is for"),
        (["--provider", "linear", "--device", "cuda"], "a GPU times nn.LSTM and fused_lstm only"),
        (["--device", "cuda", "--quick"], "--quick, --grid and --bars are of rows on the CPU"),
        (["--device", "cuda", "--grid"], "are of rows on the CPU"),
        (["--device", "cuda", "--bars"], "are of rows on the CPU"),
        (["--quick", "--grid"], "--quick leaves the grid out"),
        (["--budget", "-1"], "--budget has to be a number of seconds, got -1.0"),
        (["--budget", "nan"], "--budget has to be a number of seconds, got nan"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--device", "cuda", "--isa", "avx2"], "--isa caps processors"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        parse(*arguments)
    assert error.value.code == 2
    assert said in capsys.readouterr().err
