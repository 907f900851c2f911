"""The JSON that a run of the benchmark is kept in."""

import json

import pytest

pytest.importorskip("rich")

import bench_fakes as fakes

from bench import results
from bench.results import Run


def test_json_round_trip():
    run = fakes.full_run()
    written = json.loads(json.dumps(results.to_json(run)))
    assert results.from_json(written) == run


def test_memory_of_older_runs_is_not_taken_for_that_of_a_first_call():
    """Theirs was of a call that found what another had freed, as far as nothing for fused_lstm."""
    values = results.to_json(Run(fakes.ENVIRONMENT, [fakes.result(2.0)]))
    ours = values["results"][0]["providers"]["fused_lstm"]
    ours["peak_memory"] = ours.pop("first_call_memory")
    (read,) = results.from_json(values).results
    assert read.measurements["fused_lstm"].first_call_memory is None
    assert read.measurements["nn.LSTM"].first_call_memory


def test_json_says_what_other_programs_want_to_know():
    made = fakes.result(2.0, brgemm_seconds=fakes.around(1e-3))
    values = results.to_json(Run(fakes.ENVIRONMENT, [made]))
    (row,) = values["results"]
    assert results.from_json(values).results == [made]
    assert row["workload"]["dtype"] == "float32"
    assert row["times_faster_than"]["nn.LSTM"]["median"] == pytest.approx(2.0)
    assert row["providers"]["fused_lstm"]["median"] == pytest.approx(12.3456e-3)
    assert row["share_of_limit"]["fused_lstm"] == pytest.approx(0.5)
    assert row["brgemm_gflops"] == pytest.approx(made.workload.flops(made.mode) / 1e-3 / 1e9)
    assert row["providers"]["fused_lstm"]["first_call_memory"] == 98765432


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{}", "format None"), ('{"format": 2}', "not a result"), ("[", "Expecting value")],
)
def test_other_files_are_refused(tmp_path, text, reason):
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        results.load(file)
