"""A drop-in, faster ``torch.nn.LSTM``."""

from fused_lstm import _program as _program
from fused_lstm import _sequence_op as _sequence_op
from fused_lstm._explain import explain
from fused_lstm._ops import FusedLSTMWarning
from fused_lstm._profile import LSTMProfile, Profile, profile
from fused_lstm.cell import LSTMCell
from fused_lstm.functional import lstm
from fused_lstm.init import InitialState, initialise
from fused_lstm.module import LSTM
from fused_lstm.replace import replace_lstm, restore_lstm
from fused_lstm.streaming import Stream

__version__ = "0.2.0"

__all__ = [
    "LSTM",
    "FusedLSTMWarning",
    "InitialState",
    "LSTMCell",
    "LSTMProfile",
    "Profile",
    "Stream",
    "__version__",
    "explain",
    "initialise",
    "lstm",
    "profile",
    "replace_lstm",
    "restore_lstm",
]
