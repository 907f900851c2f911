"""Measures fused_lstm.LSTM against torch.nn.LSTM: `python -m bench`."""
