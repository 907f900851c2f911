"""Memory of outputs, gradients and what is saved: used again, bounded, and never shared."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch

import fused_lstm

MIB = 1 << 20
T, B, H = 60, 16, 128
GATES = T * B * 4 * H * 4  # bytes


def layer() -> tuple[fused_lstm.LSTM, torch.Tensor]:
    return fused_lstm.LSTM(H, H), torch.randn(T, B, H)


def test_what_a_step_had_is_idle_after_it(extension):
    module, x = layer()
    before = extension.memory_pool()["used"]
    y, _ = module(x)
    held = extension.memory_pool()["used"] - before
    assert held >= GATES
    grads = torch.autograd.grad(y.sum(), list(module.parameters()))
    del y
    after = extension.memory_pool()
    assert before < after["used"] < before + GATES
    del grads
    after = extension.memory_pool()
    assert after["used"] == before
    assert after["idle"] >= GATES


def test_the_next_step_gets_the_same_memory(extension):
    """In steps of like sizes nothing is allocated: what is there altogether does not change."""
    module, x = layer()

    def total() -> int:
        torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
        return sum(extension.memory_pool().values())

    total()
    assert len({total() for _ in range(4)}) == 1


@pytest.mark.core
def test_two_calls_in_flight_do_not_share(extension):
    """Of several forward passes each keeps what is its own, in any order of the backward passes."""
    module, _ = layer()
    inputs = [torch.randn(T, B, H, requires_grad=True) for _ in range(4)]

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(y.sin().sum(), x)[0]

    expected = [gradient(x, module(x)[0]) for x in inputs]
    outputs = [module(x)[0] for x in inputs]
    for k in (2, 0, 3, 1):
        assert torch.equal(gradient(inputs[k], outputs[k]), expected[k])


@pytest.mark.core
def test_python_threads_do_not_share(extension):
    torch.set_num_threads(1)
    module, x = layer()
    expected = torch.autograd.grad(module(x)[0].sin().sum(), list(module.parameters()))
    found: list[bool] = []

    def work() -> None:
        for _ in range(8):
            grads = torch.autograd.grad(module(x)[0].sin().sum(), list(module.parameters()))
            found.append(all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 32


def in_new_process(code: str) -> list[int]:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return [int(word) for word in result.stdout.split()]


def test_of_like_blocks_the_last_that_was_free_is_taken_first(extension):
    """It may still lie in a cache. In a pool that has no other blocks, which may fit better."""
    addresses = in_new_process("""
import torch, fused_lstm
torch.set_grad_enabled(False)
module, x = fused_lstm.LSTM(64, 128), torch.randn(60, 16, 64)
for _ in range(2):
    outputs = [module(x)[0] for _ in range(3)]
    print(*[y.data_ptr() for y in outputs])
    while outputs:
        outputs.pop(0)
""")
    assert addresses[3:] == addresses[:3][::-1]


def test_odd_sizes_do_not_pile_up(extension):
    """Every batch with another length: idle memory stays near what one step needs."""
    most, idle = in_new_process("""
import torch, fused_lstm
from fused_lstm import _ops
pool = _ops.extension.memory_pool
module = fused_lstm.LSTM(64, 128)
most = idle = 0
for k in range(120):
    y, _ = module(torch.randn(50 + 37 * k % 400, 16, 64))
    most = max(most, pool()["used"])
    y.sum().backward()
    del y
    idle = max(idle, pool()["idle"])
print(most, idle)
""")
    assert 4 * MIB < most < idle < 2 * most + 32 * MIB


def test_no_more_than_a_bound_is_kept(extension):
    used, idle = in_new_process("""
import torch, fused_lstm
from fused_lstm import _ops
module, x = fused_lstm.LSTM(8, 256), torch.randn(100, 256, 8)
outputs = [module(x)[0] for _ in range(3)]
print(_ops.extension.memory_pool()["used"])
del outputs
print(_ops.extension.memory_pool()["idle"])
""")
    assert used >= 3 * 100 * 256 * 6 * 256 * 4  # gates, c and y
    assert 0 < idle <= 256 * MIB < used


def test_workspaces_of_calls_at_the_same_time_are_kept_up_to_a_bound(extension):
    """Of one call its own; of many together no more than of one that is large."""
    alone, together = in_new_process("""
import threading, torch, fused_lstm
from fused_lstm import _ops
module, x = fused_lstm.LSTM(1024, 1024), torch.randn(10, 16, 1024)
begin = threading.Barrier(4)

def work():
    for _ in range(3):
        y = module(x)[0].sum()
        begin.wait()
        y.backward()

module(x)[0].sum().backward()
print(_ops.extension.kept_workspaces())
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(_ops.extension.kept_workspaces())
""")
    assert 4096 * 1024 * 4 <= alone <= 64 * MIB  # one weight, packed
    assert alone <= together <= 64 * MIB < 2 * alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_computes_the_same(extension):
    """Also where the pool was in use at that moment."""
    assert in_new_process("""
import os, threading, torch, fused_lstm
torch.set_num_threads(1)
module, x = fused_lstm.LSTM(64, 64), torch.randn(50, 16, 64)
expected = torch.autograd.grad(module(x)[0].sum(), module.weight_hh_l0)[0]
stop = False
def work():
    while not stop:
        module(x)[0].sum().backward()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
right = 0
for _ in range(10):
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            y = module(x)[0]
        os._exit(0 if bool(y.isfinite().all()) else 1)
    right += os.waitpid(child, 0)[1] == 0
stop = True
for thread in threads:
    thread.join()
print(right)
""") == [10]


def test_tensors_of_the_pool_are_like_any_other(extension):
    """They may be resized, shared with other processes, copied and pickled."""
    module, x = layer()
    with torch.no_grad():
        y, _ = module(x)
    expected = y.clone()
    assert y.untyped_storage().resizable()
    assert torch.equal(pickle.loads(pickle.dumps(y)), expected)
    assert torch.equal(copy.deepcopy(y).share_memory_(), expected)
    y.resize_(2 * T, B, H)
    assert torch.equal(y[:T], expected)
