"""No tangent is ever dropped: forward mode, whatever requires a gradient and whatever does not."""

import pytest
import torch
import torch.autograd.forward_ad as fwd

import fused_lstm

X = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights_require_grad", [False, True])
@pytest.mark.parametrize("grad_mode", [False, True])
def test_forward_ad(extension, weights_require_grad, grad_mode):
    ours = fused_lstm.LSTM(4, 6, dtype=torch.float64).requires_grad_(weights_require_grad)
    theirs = torch.nn.LSTM(4, 6, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for m in (ours, theirs):
        with fwd.dual_level(), torch.set_grad_enabled(grad_mode):
            y, _ = m(fwd.make_dual(X, X.cos()))
            found.append(fwd.unpack_dual(y).tangent)
    assert found[0] is not None
    torch.testing.assert_close(found[0], found[1])
