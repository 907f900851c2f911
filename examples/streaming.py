"""Feed a stream one frame at a time: the same result as all frames at once.

python examples/streaming.py [--frames 500]
"""

import argparse
import time

import torch

from fused_lstm import LSTM


@torch.no_grad()
def compare(frames: int) -> float:
    """The largest difference between streaming and one call over all frames."""
    torch.manual_seed(0)
    lstm = LSTM(128, 128).eval()
    audio = torch.randn(frames, 1, 128)  # [T, B=1, features]

    stream = lstm.stream(batch=1)  # keeps the state, and weights packed once
    start = time.perf_counter()
    outputs = [stream(frame) for frame in audio]  # [1, 128] each
    elapsed = time.perf_counter() - start
    print(f"{frames} frames, {1e6 * elapsed / frames:.0f} us each")

    at_once, _ = lstm(audio)
    return (torch.stack(outputs) - at_once).abs().max().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=500)
    options = parser.parse_args()
    if options.frames < 1:
        parser.error(f"expected at least 1 frame, got {options.frames}")
    difference = compare(options.frames)
    print(f"largest difference from one call over all frames: {difference:.1e}")
