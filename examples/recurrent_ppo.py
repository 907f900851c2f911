"""RecurrentPPO of sb3-contrib with its LSTMs swapped: the same policy, in less time.

    pip install "fused_lstm[rl]"
    python examples/recurrent_ppo.py [--steps 20000] [--picture recurrent_ppo.png]

The task is CartPole without its velocities, so that the policy has to remember. Trained is twice
from the same seed, with PyTorch's LSTMs and with fused ones: the parameters stay equal up to the
rounding of float32, as long as that does not choose another action.
"""

import argparse
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from fused_lstm import replace_lstm


class WithoutVelocities(gymnasium.ObservationWrapper):
    """Position and angle alone."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        full = env.observation_space
        self.observation_space = gymnasium.spaces.Box(full.low[[0, 2]], full.high[[0, 2]])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def make_env() -> gymnasium.Env:
    return WithoutVelocities(gymnasium.make("CartPole-v1"))


class Returns(BaseCallback):
    """Step and length of each episode: with one reward a step, its return."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, info["episode"]["r"]))
        return True


def make_agent(fused: bool) -> RecurrentPPO:
    agent = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(make_env, n_envs=8),  # eight at once: the policy is called once for all
        n_steps=32,
        batch_size=128,
        n_epochs=6,
        learning_rate=1e-3,
        policy_kwargs={"lstm_hidden_size": 64},
        seed=0,
        device="cpu",
    )
    if fused:
        replace_lstm(agent.policy, say=None)
    return agent


def train(agent: RecurrentPPO, steps: int) -> tuple[list[tuple[int, float]], float]:
    """Returns of the episodes, and seconds."""
    returns, start = Returns(), time.perf_counter()
    agent.learn(steps, callback=returns)
    return returns.episodes, time.perf_counter() - start


def evaluate(agent: RecurrentPPO, episodes: int = 10) -> float:
    """Mean return of new episodes, without exploration."""
    env, total = make_env(), 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=1000 + seed)
        state, first, over = None, np.ones(1, dtype=bool), False
        while not over:
            action, state = agent.predict(observation, state, first, deterministic=True)
            observation, reward, ended, cut, _ = env.step(int(action))
            total, first, over = total + reward, np.zeros(1, dtype=bool), ended or cut
    return total / episodes


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def draw(path: Path, runs: dict[str, list[tuple[int, float]]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    for name, episodes in runs.items():
        steps, returns = zip(*episodes, strict=True)
        axes.plot(steps, returns, ".", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="return of an episode")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--picture", type=Path, help="file for the returns")
    options = parser.parse_args()
    early = [make_agent(fused).learn(1).policy for fused in (False, True)]
    difference = largest_difference(*early)
    print(f"largest difference of the parameters after one update: {difference:.1e}")
    runs = {}
    for name, fused in (("torch.nn", False), ("fused_lstm", True)):
        agent = make_agent(fused)  # made just before its training: the seed is the whole process's
        runs[name], seconds = train(agent, options.steps)
        print(f"{name}: {options.steps} steps in {seconds:.1f} s")
    untrained, trained = evaluate(make_agent(fused=True)), evaluate(agent)
    print(f"held-out return: {untrained:.0f} -> {trained:.0f}")
    if options.picture:
        draw(options.picture, runs)


if __name__ == "__main__":
    main()
