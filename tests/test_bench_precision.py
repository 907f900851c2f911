"""The benchmark says what PyTorch's settings of float32's precision come to on a machine."""

import io

import pytest

pytest.importorskip("rich")

import bench_fakes as fakes
from bench_fakes import INFERENCE, Measurement, Run
from rich.console import Console

from bench import environment, report
from fused_lstm import _ops


def test_a_setting_that_changes_nothing_is_said_to():
    measurements = {name: Measurement(fakes.around(12.3456e-3)) for name in ("tf32", "bf16")}
    run = Run(fakes.ENVIRONMENT, [fakes.result(1.2, "square", INFERENCE, measurements)])
    said = report.precision_line(run)
    assert said == (
        'under "tf32": computed in float32; '
        'under "bf16": computed in float32 with products of bfloat16'
    )
    console = Console(file=io.StringIO(), width=200)
    report.show(console, run)
    assert said in console.file.getvalue()
    run = Run(fakes.ENVIRONMENT, [fakes.result(1.2, "square", INFERENCE)])
    assert report.precision_line(run) == ""


def test_it_is_what_the_extension_says(extension):
    isa = extension.cpu_isa()
    extension.set_cpu_isa("avx2")
    assert set(environment.arithmetic().values()) == {"float32"}
    extension.set_cpu_isa(isa)
    if isa in ("avx512_bf16", "avx512_amx"):
        assert environment.arithmetic()["bf16"] == "float32 with products of bfloat16"


def test_without_an_extension_nothing_is_said(monkeypatch):
    monkeypatch.setattr(_ops, "extension", None)
    assert environment.arithmetic() == {}
