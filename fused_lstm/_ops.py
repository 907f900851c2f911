"""Loads the compiled extension, names its ops, and says once why it cannot."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch.nn import modules

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class FusedLSTMWarning(UserWarning):
    """Given once per reason when a call runs on the plain PyTorch fallback."""


def _switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def _release(version: str) -> str:
    """The part of a torch version that decides binary compatibility: ``2.13.0+cpu`` -> ``2.13``."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or the reason why there is none."""
    try:
        module = importlib.import_module("fused_lstm._C")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "fused_lstm._C":
            return None, (
                "the extension is not built: run `pip install --no-build-isolation .`; if you did, "
                f"{Path(__file__).parent.parent} hides what was installed: start elsewhere, or run "
                "`make build` there"
            )
        first_line = str(error).splitlines()[0]
        return None, (
            f"the extension does not load under torch {torch.__version__} ({first_line}): "
            "build it again with `pip install --no-build-isolation .`"
        )
    built = module.build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        return None, (
            f"the extension was built for torch {built} and torch {torch.__version__} is running: "
            "build it again with `pip install --no-build-isolation .`"
        )
    return module, None


extension, _load_error = _load()
_disabled = _switched_on("FUSED_LSTM_DISABLE")
_build_info: dict[str, str] = {} if extension is None else extension.build_info()
_reasons: dict[tuple[torch.device | str, torch.dtype], str | None] = {}
_warned: set[str] = set()
# Folders whose lines a warning does not name.
_ON_THE_WAY = tuple(os.path.join(os.path.dirname(f), "") for f in (__file__, modules.__file__))


def disabled() -> bool:
    """Whether ``FUSED_LSTM_DISABLE`` asked for the fallback when the package was imported."""
    return _disabled


def unavailable(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why the fused op cannot run for this device and dtype; None where it can."""
    key = (device, dtype)
    try:
        return _reasons[key]
    except KeyError:
        device = torch.device(device)
        reason = _find_reason(device, dtype)
        if device.type != "cuda" or device.index is not None:  # "cuda" is now this one, now that
            _reasons[key] = reason
        return reason


def _find_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    if _disabled:
        return "disabled by FUSED_LSTM_DISABLE"
    if extension is None:
        return _load_error
    if device.type == "cuda":
        return _why_no_cuda(_build_info, device) or _why_no_dtype(dtype)
    if device.type not in ("cpu", "meta"):  # on meta the fake kernels tell the shapes
        return f"there is no fused kernel for device type '{device.type}'"
    return _why_no_dtype(dtype)


def _why_no_dtype(dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"there is no fused kernel for {dtype}"


def _why_no_cuda(info: dict[str, str], device: torch.device) -> str | None:
    """Why an extension built so does not run on a CUDA device; None where it does."""
    if not info["cuda"]:
        return "the extension was built without CUDA (`python -m fused_lstm` says why)"
    major, minor = torch.cuda.get_device_capability(device)
    archs = re.findall(r"[\w.+]+", info["cuda_archs"])
    if any(_runs_on(arch, (major, minor)) for arch in archs):
        return None
    # Plain numbers do, of 9.0 too: no kernel has instructions that only "9.0a" knows, as wgmma.
    return (
        f"the extension was built for CUDA architectures {info['cuda_archs']} and this device is "
        f"{major}.{minor}: build it again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``arch`` ("9.0", "9.0a", "8.6+PTX") runs on a device of this capability.

    Of an architecture given by name ("Hopper") this is left to CUDA to say.

    Machine code runs on later minor versions of its major version, with an "a" on its own only;
    PTX runs on everything later.
    """
    code, ptx = arch.removesuffix("+PTX"), arch.endswith("+PTX")
    if not code[0].isdigit():
        return True
    major, minor = (int(number) for number in code.rstrip("af").split("."))
    if code.endswith("a"):
        return capability == (major, minor)
    return capability >= (major, minor) and (ptx or capability[0] == major)


# Known from the start where asking costs nothing: a program that torch.compile has traced is
# compiled again when a dictionary that it looked into has grown.
_reasons.update(
    ((device, dtype), _find_reason(device, dtype))
    for device in (torch.device("cpu"), torch.device("meta"))
    for dtype in DTYPES
)


def unknown_class(error: RuntimeError, *tensors: torch.Tensor) -> str | None:
    """Why an op failed, where it was for a tensor of a class that knows PyTorch's own ops only."""
    # DTensor of torch 2.10 says it in words of its own.
    if isinstance(error, NotImplementedError) or "Sharding propagation failed" in str(error):
        for t in tensors:
            if type(t) not in (torch.Tensor, torch.nn.Parameter):
                return f"{type(t).__module__}.{type(t).__qualname__} does not know the fused ops"
    return None


def warn_fallback(reason: str) -> None:
    """Warn, once per reason, that the fallback runs, unless ``FUSED_LSTM_DISABLE`` asked for it.

    Raises:
        RuntimeError: instead, where ``FUSED_LSTM_STRICT=1``.
    """
    if _disabled:
        return
    message = f"fused_lstm runs on its plain PyTorch fallback: {reason}"
    if _switched_on("FUSED_LSTM_STRICT"):
        raise RuntimeError(message + " (FUSED_LSTM_STRICT=1 makes this an error)")
    if reason not in _warned:
        _warned.add(reason)
        # Tracing cannot look at frames.
        level = 3 if torch.compiler.is_compiling() else _callers_level()
        warnings.warn(message, FusedLSTMWarning, stacklevel=level)


def _callers_level() -> int:
    """How far above ``warn_fallback`` the line is that called the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ON_THE_WAY):
        level, frame = level + 1, frame.f_back
    return level


if extension is not None:
    lstm = torch.ops.fused_lstm.lstm.default
    lstm_cell = torch.ops.fused_lstm.lstm_cell.default
    lstm_layer = torch.ops.fused_lstm.lstm_layer.default
    lstm_layer_backward = torch.ops.fused_lstm.lstm_layer_backward.default
    lstm_sequence = torch.ops.fused_lstm.lstm_sequence.default
    lstm_sequence_backward = torch.ops.fused_lstm.lstm_sequence_backward.default
    lstm_layer_backward_gates = torch.ops.fused_lstm._lstm_layer_backward_gates.default
    lstm_ensemble = torch.ops.fused_lstm._lstm_ensemble.default
    lstm_ensemble_backward = torch.ops.fused_lstm._lstm_ensemble_backward.default
    member_products = torch.ops.fused_lstm._member_products.default
