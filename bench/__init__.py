"""Measures fused_lstm.LSTM against torch.nn.LSTM and others.

`python -m bench` in a checkout; installed, this folder is `fused_lstm.bench`.
"""

# What brings rich and matplotlib: a checkout itself, or the package that is installed already.
INSTALL = (
    'pip install --no-build-isolation ".[bench]"'
    if __name__ == "bench"
    else 'pip install "fused_lstm[bench]"'
)
