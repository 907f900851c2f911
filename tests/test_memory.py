"""A training step needs no more memory than nn.LSTM's."""

import ctypes
import json
import mmap
import os
import re
import subprocess
import sys

import pytest
import torch

from fused_lstm import _ops

MEASURE = """
import json, sys
import torch, fused_lstm
from torch.nn.utils.rnn import pack_padded_sequence

name, T, B, I, H, options = sys.argv[1], *map(int, sys.argv[2:6]), json.loads(sys.argv[6])
torch.set_num_threads(2)
dtype = getattr(torch, options.pop("dtype", "float32"))
packed, training = options.pop("packed", False), options.pop("training", True)
cls = torch.nn.LSTM if name == "nn" else fused_lstm.LSTM
module = cls(I, H, dtype=dtype, **options)

def step(T, B):
    x = torch.randn(T, B, I, dtype=dtype)
    if packed:
        x = pack_padded_sequence(x, torch.linspace(T, 1, B).long())
    with torch.set_grad_enabled(training):
        y, (h_n, c_n) = module(x)
    y = y.data if packed else y
    if training:
        (y.float().sum() + h_n.float().sum()).backward()

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

step(2, 2)  # whatever is set up once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is from here on
before = status("VmRSS")
step(T, B)
print(status("VmHWM") - before)
"""

CASES = {
    "dense": (100, 64, 128, 256, {}),
    "batch_of_sixteen_long": (1000, 16, 64, 128, {}),
    "two_layers_bidirectional": (60, 32, 128, 256, dict(num_layers=2, bidirectional=True)),
    "packed": (100, 64, 128, 256, dict(packed=True)),
    "projection": (100, 64, 128, 256, dict(proj_size=128)),
    "bfloat16": (100, 64, 128, 256, dict(dtype="bfloat16")),
    "float64": (100, 64, 128, 256, dict(dtype="float64")),
    "inference": (200, 64, 128, 256, dict(training=False)),
}


def peak(name, T, B, I, H, options):  # noqa: E741
    """Kilobytes above what was there before, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, name, *map(str, (T, B, I, H)), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel cannot reset a peak"
)
@pytest.mark.parametrize("name", CASES)
def test_peak_of_a_step(extension, name):
    theirs, ours = (peak(which, *CASES[name]) for which in ("nn", "fused"))
    slack = 2048  # kilobytes: pages that an allocator has touched before or not
    assert ours <= theirs + slack, f"{ours} KiB, nn.LSTM needs {theirs} KiB"


def flags_of_mapping(address):
    """What /proc/self/smaps says of the memory there: "hg" where huge pages were asked for."""
    with open("/proc/self/smaps") as lines:
        inside = False
        for line in lines:
            if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(found[1], 16) <= address < int(found[2], 16)
            elif inside and line.startswith("VmFlags:"):
                return line.split()[1:]
    return []


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="this kernel has none"
)
def test_huge_pages_behind_large_tensors(extension):
    x, weights = torch.zeros(50, 64, 8), [torch.zeros(4 * 256, n) for n in (8, 256)]
    *_, gates, _ = _ops.lstm_layer(x, None, None, None, weights, [False], True)
    assert gates.nbytes >= 8 * 2**20
    assert "hg" in flags_of_mapping(gates.data_ptr() + gates.nbytes // 2)


def resident(tensor):
    """Bytes of the tensor that are in memory: what nobody has written takes none."""
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    pages = (tensor.data_ptr() + tensor.nbytes - begin) // page
    found = (ctypes.c_ubyte * pages)()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    assert mincore(ctypes.c_void_p(begin), ctypes.c_size_t(pages * page), found) == 0
    return page * sum(each & 1 for each in found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
@pytest.mark.parametrize("ragged", [False, True])
def test_cells_that_are_computed_again_take_no_memory(extension, ragged):
    """Nor those beyond a sequence's end, in a place of their own as compiled calls have them."""
    T, B, H = 2000, 32, 256
    weights = [torch.randn(4 * H, 8) * 0.1, torch.randn(4 * H, H) * 0.05]
    lengths = torch.full((B,), T // 4) if ragged else None
    call = torch.randn(T, B, 8), None, None, None, weights, [False], lengths, None, None, None
    *_, gates, c = torch.ops.fused_lstm.lstm_sequence(*call, True, T, False)
    assert gates.numel() == 0
    assert c.nbytes > 60 * 2**20
    assert resident(c) < 0.1 * c.nbytes


@pytest.mark.slow
def test_memory_does_not_grow(extension):
    """Two hundred more training steps leave what a hundred left."""
    code = """
import resource, torch, fused_lstm
module = fused_lstm.LSTM(16, 32, 2, bidirectional=True)
x = torch.randn(20, 8, 16)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in range(300):
    module(x)[0].sum().backward()
    with torch.no_grad():
        module(x[:1])
    if k == 100:
        before = peak()
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(result.stdout) < 4096  # kilobytes; one step holds 1,600
