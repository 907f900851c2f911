"""``python -m bench.gpu``: build for the GPU at hand, check, measure, write one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.gpu import builds
from bench.gpu.cases import PHASES, Case, all_cases
from bench.gpu.devices import ROOT, Emulated, Gpu


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.replace("``", "")
    )
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json", metavar="FILE")
    names = [*PHASES, "bench"]
    parser.add_argument(
        "--phases", nargs="+", choices=names, default=names, metavar="PHASE",
        help=f"only these of {', '.join(names)}",
    )  # fmt: skip
    parser.add_argument("--filter", default="", help="only cases with this in their line")
    parser.add_argument("--quick", action="store_true", help="a few small cases of each kind")
    parser.add_argument("--minutes", type=float, default=8, help="begin no case after so many")
    parser.add_argument("--no-build", action="store_true", help="the builds are there already")
    parser.add_argument("--emulator", default="", help="the emulated ops' library, for tests")
    options = parser.parse_args(arguments)
    options.json = options.json.resolve()  # also for processes that run elsewhere
    return options


class Workers:
    """One process per build that has imported torch, and forks for each case."""

    def __init__(self, emulator: str) -> None:
        self.emulator = emulator
        self.running: dict[str, subprocess.Popen] = {}

    def command(self, *more: str) -> list[str]:
        given = ["--emulator", self.emulator] if self.emulator else []
        return [sys.executable, "-m", "bench.gpu.worker", *given, *more]

    def environment(self, build: str) -> dict[str, str]:
        """The package comes from the build, the rest from here."""
        first = [] if self.emulator else [builds.library_folder(build)]
        path = os.pathsep.join(map(str, [*first, ROOT, ROOT / "tests"]))
        return {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "0"}

    def run(self, case: Case) -> dict:
        return self.run_wrapped(case) if case.wrapper else self.ask(case)

    def ask(self, case: Case) -> dict:
        process = self.running.get(case.build)
        if process is None or process.poll() is not None:
            folder = ROOT if self.emulator else builds.library_folder(case.build)
            process = subprocess.Popen(
                self.command(), cwd=folder, env=self.environment(case.build), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.running[case.build] = process
        try:
            process.stdin.write(json.dumps(case.to_json()) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            process.kill()
            return {"outcome": "error", "result": {"message": "the worker ended"}, "seconds": 0}

    def run_wrapped(self, case: Case) -> dict:
        """The case under another command, whose words are the result."""
        if not shutil.which(case.wrapper[0]):
            message = f"{case.wrapper[0]} is not here"
            return {"outcome": "absent", "result": {"message": message}, "seconds": 0}
        folder = ROOT if self.emulator else builds.library_folder(case.build)
        command = [*case.wrapper, *self.command("--one", json.dumps(case.to_json()))]
        # Memory that PyTorch keeps for later would hide a read past a tensor's end.
        environment = {**self.environment(case.build), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=case.limit)[0][-12000:]
            outcome = "ok" if process.returncode == 0 else "wrong"
        except subprocess.TimeoutExpired:
            # Also what it has started: left alone, that would share the device with later cases.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            outcome, said = "hung", f"no end after {case.limit} s"
        seconds = round(time.perf_counter() - start, 2)
        return {"outcome": outcome, "result": {"message": said}, "seconds": seconds}

    def close(self) -> None:
        for process in self.running.values():
            process.stdin.close()
            process.wait()


def line(case: Case, answer: dict) -> str:
    """What a reader sees of a case."""
    result = answer["result"]
    text = result.get("message", "").strip().splitlines()
    if answer["outcome"] == "ok":
        text = []
        if "errors" in result:
            text = [f"largest error {max(result['errors'].values()):.1e}"]
        if "step_us" in result:
            text = [f"{result['step_us']:.2f} us a step"]
        if "cycles" in result:
            text = [", ".join(f"{name} {n:.0f}" for name, n in result["cycles"].items())]
        if "rows" in result:
            text = [sweep_line(row) for row in result["rows"]]
        if "skipped" in result:
            text = [result["skipped"]]
    first, *rest = text or [""]
    more = rest if "rows" in result else rest[-3:]
    head = f"{answer['outcome']:6} {answer['seconds']:5.1f} s  {str(case)[:100]}  {first[:160]}"
    return "\n".join([head, *(f"{'':18}{each[:160]}" for each in more)])


def sweep_line(row: dict) -> str:
    if "error" in row:
        return f"{row['request']}: {row['error']}"
    times = [f"{name} {row[name]['step_us']:.2f}" for name in ("forward", "backward")]
    return f"{row['request']}: {', '.join(times)} us a step"


def run_bench(options: argparse.Namespace, report: dict) -> None:
    """The rows of ``python -m bench``, last: they take what time is left."""
    target = options.json.with_suffix(".bench.json")
    command = [sys.executable, "-m", "bench", "--device", "cuda", "--json", str(target)]
    command += ["--budget", "0.15"]
    environment = Workers("").environment("plain")
    done = subprocess.run(command, cwd=builds.library_folder("plain"), env=environment, check=False)
    report["bench"] = json.loads(target.read_text()) if done.returncode == 0 else None


def build(report: dict) -> bool:
    """Whether what the cases need could be built."""
    start = time.monotonic()
    report["builds"] = builds.build_all(torch.cuda.get_device_capability())
    for name, said in report["builds"].items():
        print(f"build {name}: {said or 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
    return not any(report["builds"][name] for name in builds.BUILDS)


def run_cases(options: argparse.Namespace, report: dict, end: float) -> int:
    """Runs what fits before `end`, and returns how many cases are left."""
    workers, left = Workers(options.emulator), 0
    for case in all_cases(options.quick, options.phases):
        if options.filter not in str(case):
            continue
        if time.monotonic() > end:
            left += 1
            continue
        answer = workers.run(case)
        report["cases"].append({**case.to_json(), **answer})
        print(line(case, answer), flush=True)
        options.json.write_text(json.dumps(report, indent=1))
    workers.close()
    return left


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if not options.emulator and not torch.cuda.is_available():
        print("python -m bench.gpu: there is no GPU here that torch can use", file=sys.stderr)
        return 1
    end = time.monotonic() + 60 * options.minutes
    device = Emulated if options.emulator else Gpu
    report: dict = {"device": device.facts(), "cases": []}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    if not options.emulator and not options.no_build and not build(report):
        options.json.write_text(json.dumps(report, indent=1))
        return 1
    left = run_cases(options, report, end)
    if not options.emulator and "bench" in options.phases:
        if time.monotonic() > end:
            left += 1
        else:
            run_bench(options, report)
    options.json.write_text(json.dumps(report, indent=1))
    outcomes = [case["outcome"] for case in report["cases"]]
    counts = [f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)]
    counts += [f"{left} left for another run (--no-build, --phases, --minutes)"] if left else []
    said = ", ".join(counts)
    print(f"{said}; written to {options.json}. Next: python -m bench.gpu.fit {options.json}")
    return 0 if set(outcomes) <= {"ok", "absent"} else 1


if __name__ == "__main__":
    sys.exit(main())
