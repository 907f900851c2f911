"""Measures fused_lstm.LSTM against torch.nn.LSTM and others.

`python -m bench` in a checkout; installed, this folder is `fused_lstm.bench`.
"""
