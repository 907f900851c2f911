"""The same call gives the same bits: again, with other threads around, and after a fork."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case

import fused_lstm
from fused_lstm import _ops

CASES = {
    "few_rows": Case(T=6, B=1, I=40, H=128),
    "many_rows": Case(T=10, B=45, I=33, H=65, bidirectional=True),
    "packed": Case(T=12, B=23, I=17, H=48, kind="packed", bidirectional=True, P=9),
    "projection": Case(T=8, B=20, I=24, H=96, P=40, layers=2),
}


def everything(module, x, **options):
    """Outputs and all gradients of one training step."""
    x = x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x
    y, (h_n, c_n), *inside = module(x, **options)
    y = y if isinstance(y, torch.Tensor) else y.data
    inputs = [x] if isinstance(x, torch.Tensor) else []
    loss = y.float().sin().sum() + h_n.float().sum() + c_n.float().cos().sum()
    loss = loss + sum(t.float().sin().sum() for t in inside)
    return [y, h_n, c_n, *inside, *torch.autograd.grad(loss, [*inputs, *module.parameters()])]


def prepared(name, dtype=torch.float32, device="cpu"):
    case = CASES[name].with_(dtype=dtype, device=device)
    _, ours = case.modules()
    return ours, case.pack(case.sequences())


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", CASES)
def test_every_run_gives_the_same_bits(extension, device, name, dtype):
    ours, x = prepared(name, dtype, device)
    first = everything(ours, x)
    for _ in range(10):
        assert_equal(everything(ours, x), first)


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_threads(extension, name, dtype):
    """1 to 4 threads give the same bits, on every run."""
    ours, x = prepared(name, dtype)
    torch.set_num_threads(1)
    alone = everything(ours, x)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert_equal(everything(ours, x), alone)


RESET = torch.rand(10, 45, generator=torch.Generator().manual_seed(0)) < 0.1
OPTIONS = {
    "lengths": dict(lengths=torch.arange(45) % 11),
    "resets": dict(reset=RESET),
    "both, and cells": dict(lengths=torch.arange(45) % 11, reset=RESET, return_cells=True),
}


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("recompute", [0, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_any_number_of_threads_with_options(extension, name, recompute, dtype):
    ours, x = prepared("many_rows", dtype)
    ours.recompute = recompute
    torch.set_num_threads(1)
    alone = everything(ours, x, **OPTIONS[name])
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert_equal(everything(ours, x, **OPTIONS[name]), alone)


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_four_python_threads_at_once(extension, name):
    """Each with its own module and input; nobody sees another's buffers."""
    torch.set_num_threads(2)
    work = [prepared(name) for _ in range(4)]
    expected = [everything(ours, x) for ours, x in work]
    barrier = threading.Barrier(4)

    def repeat(item):
        ours, x = item
        barrier.wait(timeout=60)
        return [everything(ours, x) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for runs, want in zip(pool.map(repeat, work), expected, strict=True):
            for found in runs:
                # A Python thread may be given another number of threads than the main one.
                torch.testing.assert_close(found, want)
                assert_equal(found, runs[0])


def test_one_module_called_from_four_threads(extension):
    ours, x = prepared("many_rows")
    with torch.no_grad():
        expected = ours(x)[0]
    barrier = threading.Barrier(4)

    def repeat(_):
        barrier.wait(timeout=60)
        with torch.no_grad():
            return [ours(x)[0] for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for runs in pool.map(repeat, range(4)):
            for found in runs:
                torch.testing.assert_close(found, expected)


def test_inside_an_openmp_region(extension):
    """Where the caller is already one of a team of threads, the op must not start another."""
    try:
        gomp_parallel = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        pytest.skip("PyTorch's OpenMP library is not GNU's")
    ours, x = prepared("many_rows", torch.float64)
    torch.set_num_threads(2)
    expected = everything(ours, x)
    results = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def member(_):
        results.append([everything(ours, x) for _ in range(3)])

    gomp_parallel(member, None, 2, 0)
    assert len(results) == 2
    for runs in results:
        for found in runs:
            torch.testing.assert_close(found, expected)


def test_inside_a_backward_hook(extension):
    ours, x = prepared("many_rows")
    expected = everything(ours, x)
    found = []

    def hook(grad):
        with torch.enable_grad():
            found.extend(everything(ours, x))

    leaf = torch.ones(1, requires_grad=True)
    leaf.register_hook(hook)
    leaf.sum().backward()
    torch.testing.assert_close(found, expected)


class Items(torch.utils.data.Dataset):
    """Runs the layer inside a DataLoader worker."""

    def __init__(self, module, x):
        self.module, self.x = module, x

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return [t.detach() for t in everything(self.module, self.x)]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_a_data_loader_worker(extension, context):
    """On the one thread that PyTorch gives a worker, beside a parent that has a team."""
    ours, x = prepared("many_rows")
    torch.set_num_threads(2)
    expected = everything(ours, x)  # the pool exists before the fork
    loader = torch.utils.data.DataLoader(
        Items(ours, x),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=context,
        timeout=120,
    )
    for found in loader:
        torch.testing.assert_close(found, [t.detach() for t in expected])


def in_a_fork(module, x, threads, queue) -> None:
    """What a forked child computes, and with how many threads."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        text = fused_lstm.explain(module, x)
        y = module(x)[0]
    queue.put((y.numpy(), _ops.extension.last_cpu_plan()["threads"], text))


FORK_FIRST = """
import multiprocessing, sys, torch, fused_lstm
from test_determinism import in_a_fork
module, x = fused_lstm.LSTM(64, 256), torch.ones(20, 32, 64)
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=in_a_fork, args=(module, x, 2, queue))
child.start()
y, threads, text = queue.get(timeout=60)
child.join(60)
torch.set_num_threads(2)
with torch.no_grad():
    assert torch.equal(torch.from_numpy(y), module(x)[0])
print(threads, "2 threads" in text)
"""


def test_a_child_of_a_process_without_threads_may_have_some(extension):
    """Servers fork their workers early, and each of these may have as many threads as it likes."""
    result = subprocess.run(
        [sys.executable, "-c", FORK_FIRST],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == ["2", "True"], result.stderr


def test_a_child_of_a_process_with_a_team_computes_alone(extension):
    """Its parent's threads did not come along: a team would wait for them for ever."""
    module, x = fused_lstm.LSTM(64, 256), torch.randn(20, 32, 64)
    torch.set_num_threads(2)
    with torch.no_grad():
        expected = module(x)[0]
    assert extension.last_cpu_plan()["threads"] == 2  # there is a team
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_fork, args=(module, x, 2, queue))
    child.start()
    y, threads, text = queue.get(timeout=60)
    child.join(60)
    assert threads == 1
    assert ", 1 threads" in text
    assert torch.equal(torch.from_numpy(y), expected)


def test_interleaved_shapes_share_nothing(extension):
    """Calls of other shapes in between leave no trace."""
    work = [prepared(name, dtype) for name in CASES for dtype in DTYPES]
    expected = [everything(ours, x) for ours, x in work]
    for _ in range(2):
        for (ours, x), want in reversed(list(zip(work, expected, strict=True))):
            assert_equal(everything(ours, x), want)


def test_a_batch_entry_does_not_depend_on_the_others(extension):
    """To rounding: which tile a row falls in may change how its sum is ordered."""
    case = Case(T=7, B=37, I=19, H=40, dtype=torch.float64)
    _, ours = case.modules()
    x = torch.randn(7, 37, 19, dtype=torch.float64)
    with torch.no_grad():
        together = ours(x)[0]
        for b in (0, 5, 36):
            torch.testing.assert_close(ours(x[:, b : b + 1])[0], together[:, b : b + 1])


def test_the_gil_is_released(extension):
    """Another Python thread runs while the op computes."""
    module = fused_lstm.LSTM(256, 256)
    x = torch.randn(200, 32, 256)
    torch.set_num_threads(1)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(1)
            stop.wait(0.001)

    other = threading.Thread(target=tick)
    with torch.no_grad():
        module(x)
        other.start()
        try:
            for _ in range(3):
                before = len(ticks)
                module(x)  # some hundred milliseconds
                assert len(ticks) > before + 3
        finally:
            stop.set()
            other.join()
