"""Which CUDA devices an extension runs on, by the architectures it was built for."""

from __future__ import annotations

import pytest
import torch

from fused_lstm import _ops


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.9", (9, 0), False),
        ("8.9+PTX", (12, 0), True),
        ("8.9+PTX", (8, 6), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
        ("10.0", (10, 3), True),
        ("10.0", (12, 0), False),
        ("12.0", (10, 0), False),
        ("Hopper", (9, 0), True),
    ],
)
def test_machine_code_and_devices(arch, capability, runs):
    assert _ops._runs_on(arch, capability) is runs


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), None),
        ((8, 9), None),
        ((7, 5), "this device is 7.5"),
    ],
)
def test_a_device_without_kernels_has_its_reason(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 0)
    reason = _ops._why_no_cuda({"cuda": "13.0", "cuda_archs": "8.0;8.6 9.0a"}, device)
    assert reason is None if expected is None else expected in reason


def test_an_extension_without_cuda_has_its_reason():
    info = {"cuda": "", "cuda_archs": ""}
    assert "without CUDA" in _ops._why_no_cuda(info, torch.device("cuda", 0))


def test_each_device_is_asked_for_itself(extension, monkeypatch):
    """Also "cuda" alone, which is now this device and now that one."""
    current = [0]

    def capability(device=None):
        index = None if device is None else torch.device(device).index
        return [(9, 0), (7, 5)][current[0] if index is None else index]

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(_ops, "_build_info", {"cuda": "13.0", "cuda_archs": "8.0 9.0"})
    monkeypatch.setattr(_ops, "_reasons", {})
    for _ in range(2):  # what was found is kept
        assert _ops.unavailable(torch.device("cuda", 0), torch.float32) is None
        assert "this device is 7.5" in _ops.unavailable(torch.device("cuda", 1), torch.float32)
    assert _ops.unavailable("cuda", torch.float32) is None
    current[0] = 1
    assert "this device is 7.5" in _ops.unavailable("cuda", torch.float32)
    assert "this device is 7.5" in _ops.unavailable(torch.device("cuda"), torch.float32)
