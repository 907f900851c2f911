"""Feed a stream one frame at a time and carry the state: the same result as all frames at once.

python examples/streaming.py [--frames 500]
"""

import argparse
import time

import torch

from fused_lstm import LSTM, explain


@torch.no_grad()
def stream(frames: int) -> float:
    """The largest difference between streaming and one call over all frames."""
    torch.manual_seed(0)
    lstm = LSTM(128, 128).eval()
    audio = torch.randn(frames, 1, 128)  # [T, B=1, features]
    print(explain(lstm, audio[:1]))

    state, outputs = None, []
    start = time.perf_counter()
    for frame in audio.split(1):  # [1, 1, 128]
        output, state = lstm(frame, state)
        outputs.append(output)
    elapsed = time.perf_counter() - start
    print(f"{frames} frames, {1e6 * elapsed / frames:.0f} us each")

    at_once, _ = lstm(audio)
    return (torch.cat(outputs) - at_once).abs().max().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=500)
    difference = stream(parser.parse_args().frames)
    print(f"largest difference from one call over all frames: {difference:.1e}")
