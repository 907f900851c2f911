"""Lengths and resets that do not fit are refused in words."""

import pytest
import torch
from test_sequences import CASE, LENGTHS, MASK
from torch.nn.utils.rnn import pack_padded_sequence

ERRORS = {
    "packed and lengths": (ValueError, "one or the other"),
    "mask shape": (ValueError, r"expected reset of shape \[5, 4\]"),
    "mask dtype": (TypeError, "dtype torch.bool"),
    "lengths shape": (ValueError, r"expected lengths of shape \[4\]"),
    "lengths dtype": (TypeError, "integer dtype"),
    "lengths complex": (TypeError, "integer dtype"),
    "lengths a list": (TypeError, "as a tensor"),
    "beyond T": (RuntimeError, "from 0 to 5, the steps of the input, got 6 for row 2"),
    "negative": (RuntimeError, "got -1 for row 0"),
    "state without mask": (ValueError, "needs the mask"),
    "state shape": (ValueError, r"of shape \[1, 4 or 1, features\] in reset_hx, got \[1, 3, 6\]"),
    "state of unbatched": (ValueError, r"of shape \[1, features\] in reset_hx, got \[1, 3, 6\]"),
    "half a state": (ValueError, "of two tensors, or None for zeros, got Tensor and NoneType"),
    "a state of one": (ValueError, "expected reset_hx of two tensors, or None.*, got 1 of them"),
    "a state of numbers": (ValueError, "expected reset_hx of two tensors.*, got float and float"),
    "no state": (ValueError, "expected reset_hx of two tensors, or None for zeros, got int"),
    "unbatched": (ValueError, "batched input"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refusals(name):
    _, module = CASE.modules()
    x = torch.randn(5, 4, 3).double()
    packed = pack_padded_sequence(x, LENGTHS.clamp(min=1), enforce_sorted=False)
    bad_state = (torch.zeros(1, 3, 6).double(), torch.zeros(1, 3, 6).double())
    input, options = {
        "packed and lengths": (packed, dict(lengths=LENGTHS)),
        "mask shape": (x, dict(reset=MASK.t())),
        "mask dtype": (x, dict(reset=MASK.int())),
        "lengths shape": (x, dict(lengths=LENGTHS[:3])),
        "lengths dtype": (x, dict(lengths=LENGTHS.float())),
        "lengths complex": (x, dict(lengths=LENGTHS.to(torch.complex64))),
        "lengths a list": (x, dict(lengths=[1, 2, 3, 4])),
        "beyond T": (x, dict(lengths=torch.tensor([1, 2, 6, 1]))),
        "negative": (x, dict(lengths=torch.tensor([-1, 2, 3, 1]))),
        "state without mask": (x, dict(reset_hx=bad_state)),
        "state shape": (x, dict(reset=MASK, reset_hx=bad_state)),
        "state of unbatched": (x[:, 0], dict(reset=MASK[:, 0], reset_hx=bad_state)),
        "half a state": (x, dict(reset=MASK, reset_hx=(bad_state[0], None))),
        "a state of one": (x, dict(reset=MASK, reset_hx=bad_state[:1])),
        "a state of numbers": (x, dict(reset=MASK, reset_hx=(1.0, 2.0))),
        "no state": (x, dict(reset=MASK, reset_hx=3)),
        "unbatched": (x[:, 0], dict(lengths=torch.tensor([3]))),
    }[name]
    kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        module(input, **options)
