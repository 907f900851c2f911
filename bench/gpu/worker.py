"""Runs cases, each in a forked process: ``python -m bench.gpu.worker`` reads them from stdin.

One line of JSON per case in, one line out: {"outcome": "ok" | "wrong" | "error" | "hung",
"seconds": ..., "result": {...}}. With ``--one`` it runs a single case itself, for the commands that
have to wrap it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from cuda_calls import Call
from oracle import assert_as_accurate

from bench.gpu.cases import PACKED
from bench.gpu.devices import Emulated, Gpu, open_device

Device = Gpu | Emulated
# As csrc/cuda/trace.cuh has them.
TRACE_HEAD, TRACE_STEPS = 8, 256
STAMPS = ("begun", "multiplied", "fenced", "summed", "stored", "written")
SPINS = 1 << 21  # polls of at least 300 cycles: half a second


def ask_for(algorithm: str) -> None:
    """Nothing else runs: what cannot is an error."""
    os.environ["FUSED_LSTM_CUDA_ALGORITHM"] = algorithm
    os.environ["FUSED_LSTM_STRICT"] = "1"


def make_call(device: Device, options: dict) -> Call:
    """One layer as the options say, and the settings that they ask for."""
    ask_for(options.get("algorithm", ""))
    dtype = options.get("dtype", "bfloat16")
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    torch.manual_seed(0)
    return Call(
        steps=options.get("steps", 20),
        batch=options.get("batch", 3),
        inputs=options.get("inputs", 8),
        hidden=options["hidden"],
        reverse=(False, True)[: options.get("directions", 1)],
        sizes=list(PACKED) if options.get("packed") else None,
        dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype),
        device=device.kind,
    )


def names_of(call: Call) -> list[str]:
    return [*Call.NAMES, *(f"gradient of weight {i}" for i in range(len(call.weights)))]


def with_trace(device: Device, options: dict, stamps: bool = False) -> torch.Tensor:
    """Memory that the kernels of a trace build write: stamps, or where a poll hangs.

    Those of the plain build leave it as it is.
    """
    trace = device.trace_memory(TRACE_HEAD + len(STAMPS) * TRACE_STEPS, on_host=not stamps)
    trace[6] = options.get("spins", SPINS)
    if device.traces:
        device.set_trace(trace.data_ptr())
    return trace


def hang(trace: torch.Tensor) -> str:
    names = ("block x", "block y", "warp", "step", "k tile")
    return "a poll gave up at " + ", ".join(
        f"{name} {value}" for name, value in zip(names, trace[1:6].tolist(), strict=True)
    )


# ---- the kinds of cases ----


def correct(device: Device, options: dict) -> dict:
    """Against float64 and nn.LSTM; twice the same bits; what was asked for is what ran."""
    call = make_call(device, options)
    trace = with_trace(device, options)
    try:
        ours = call.fused(device.ops)
        device.synchronize()
    except RuntimeError as error:
        raise RuntimeError(hang(trace) if trace[0] else str(error)) from error
    ran = device.last_run()
    asked = options["algorithm"].split(",")[0]
    assert {facts["algorithm"] for facts in ran.values()} == {asked}, f"ran {ran}"
    errors = {}
    three = zip(names_of(call), ours, call.theirs(), call.exact(), strict=True)
    for name, mine, theirs, exact in three:
        errors[name] = (mine.double() - exact).abs().max().item()
        # cuDNN may take float32 for small sizes though TF32 is allowed, whose mantissa has 10 bits.
        if options["dtype"] == "tf32" and errors[name] < 2**-11 * exact.abs().max().item():
            continue
        assert_as_accurate(mine, theirs, exact, name)
    for name, once, again in zip(names_of(call), ours, call.fused(device.ops), strict=True):
        assert torch.equal(once, again), f"{name} has other bits the second time"
    return {"errors": errors, "ran": ran}


def run(device: Device, options: dict) -> dict:
    """Forward and backward, for a command that looks on."""
    make_call(device, options).fused(device.ops)
    device.synchronize()
    return {"ran": device.last_run()}


def graph(device: Device, options: dict) -> dict:
    """Forward and backward in one CUDA graph, replayed on new input."""
    call = make_call(device, options)
    other = torch.randn_like(call.x)
    if device.kind != "cuda":
        return {"skipped": "the emulator has no graphs"}
    expected_run = call.fused(device.ops)
    captured_graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured_graph):
        captured = call.issue(device.ops)
    captured_graph.replay()
    for once, again in zip(expected_run[:3], captured[:3], strict=True):
        assert torch.equal(once, again), "the graph computes something else"
    call.x.copy_(other)
    captured_graph.replay()
    for replayed, eager in zip(captured, call.issue(device.ops), strict=True):
        assert torch.equal(replayed, eager), "on new input the graph computes something else"
    return {"ran": device.last_run()}


def streams(device: Device, options: dict) -> dict:
    """Two streams at once give what one after the other gives."""
    calls = [make_call(device, options) for _ in range(2)]
    expected = [call.issue(device.ops) for call in calls]
    if device.kind != "cuda":
        return {"skipped": "the emulator has no streams"}
    both = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    results = []
    for _ in range(3):
        for call, stream in zip(calls, both, strict=True):
            with torch.cuda.stream(stream):
                results.append(call.issue(device.ops))
    torch.cuda.synchronize()
    for i, got in enumerate(results):
        assert all(map(torch.equal, expected[i % 2], got)), "two streams disturb each other"
    return {"ran": device.last_run()}


def exchange(device: Device, options: dict) -> dict:
    return device.exchange(options)


def stamps(device: Device, options: dict) -> dict:
    """Median cycles between the stamps of a step, forward."""
    call = make_call(device, {**options, "dtype": "bfloat16"})
    steps = options["steps"]
    trace = with_trace(device, options, stamps=True)
    for _ in range(3):
        device.ops.lstm_layer(*call.arguments, False)
        device.synchronize()
    clocks = trace[TRACE_HEAD:].cpu().reshape(TRACE_STEPS, len(STAMPS))[steps // 2 : steps]
    apart = (clocks[:, 1:] - clocks[:, :-1]).median(0).values.tolist()
    return {
        "cycles": dict(zip(STAMPS[1:], apart, strict=True)),
        "step_cycles": (clocks[1:, 0] - clocks[:-1, 0]).median().item(),
        "ran": device.last_run()["forward"],
    }


def sweep(device: Device, options: dict) -> dict:
    """Of every request, microseconds of a step and before the first one, from two lengths."""
    short, long = options["lengths"]
    calls = [make_call(device, {**options, "steps": steps}) for steps in (short, long)]
    rows = []
    for request in options["requests"]:
        row: dict = {"request": request}
        ask_for(request)
        try:
            times = [time_passes(device, call) for call in calls]
        except RuntimeError as error:
            rows.append({**row, "error": str(error).splitlines()[0][:300]})
            continue
        row["ran"] = device.last_run()
        for i, name in enumerate(("forward", "backward")):
            step = (times[1][i] - times[0][i]) / (long - short)
            row[name] = {"step_us": step, "start_us": times[0][i] - short * step}
        rows.append(row)
    return {"rows": rows}


def time_passes(device: Device, call: Call) -> tuple[float, float]:
    """Microseconds of forward and of backward, of the states' gradients alone."""
    arguments = call.arguments
    y, _, _, gates, c = device.ops.lstm_layer(*arguments, True)
    needs = [False, True, True] + [False] * len(call.weights)

    def backward():
        return device.ops.lstm_layer_backward(*call.grads, *arguments, y, gates, c, needs)

    forward_us = device.time(lambda: device.ops.lstm_layer(*arguments, True))
    return forward_us, device.time(backward)


KINDS: dict[str, Callable[[Device, dict], dict]] = {
    function.__name__: function
    for function in (correct, run, graph, streams, exchange, stamps, sweep)
}


# ---- processes ----


def attempt(case: dict, emulator: str) -> dict:
    """Runs one case here."""
    try:
        result = KINDS[case["kind"]](open_device(emulator), case["options"])
    except AssertionError as error:
        return {"outcome": "wrong", "result": {"message": str(error)[:2000]}}
    except Exception as error:
        return {
            "outcome": "error",
            "result": {"message": f"{type(error).__name__}: {error}"[:2000]},
        }
    return {"outcome": "ok", "result": result}


def child(case: dict, emulator: str, to: Connection) -> None:
    to.send(attempt(case, emulator))
    to.close()
    os._exit(0)  # no teardown: it could wait for a device that hangs


def attempt_apart(case: dict, emulator: str) -> dict:
    """Runs one case in a process that is killed after the case's limit."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(case, emulator, there))
    start = time.perf_counter()
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(case["limit"]) else None
        if answer is None:
            answer = {"outcome": "hung", "result": {"message": f"no end after {case['limit']} s"}}
    except EOFError:
        process.join()
        answer = {"outcome": "error", "result": {"message": f"exit status {process.exitcode}"}}
    process.kill()
    process.join()
    return {**answer, "seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulator", default="", help="library of the emulated ops")
    parser.add_argument("--one", help="a case, as JSON")
    options = parser.parse_args()
    if options.one:
        answer = attempt(json.loads(options.one), options.emulator)
        print(json.dumps(answer), flush=True)
        return 0 if answer["outcome"] == "ok" else 1
    for line in sys.stdin:
        print(json.dumps(attempt_apart(json.loads(line), options.emulator)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
