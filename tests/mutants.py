"""Mutation testing: how many one-line faults of the code do the quick tests notice?

    python tests/mutants.py [--count 120] [--seed 0] [--list]
    python tests/mutants.py --again [--only NUMBER ...] [--tests NAME ...]

Not a part of `make test`: it takes an hour or two. Needs what `make build` needs.

A copy of the project is made under build/mutants. Faults in C++ are all compiled into one build,
each behind a comparison with the environment variable FUSED_LSTM_MUTANT ("mutant schemata", Untch,
Offutt and Harrold 1993), so that a hundred of them cost one compilation; those that do not compile
are dropped. Faults in Python are written into the copy, one at a time. For each the tests run until
the first failure. What passes is a survivor: a test is missing, or the change changes no result.
`--again` takes the faults and the build of the run before: with tests that have been added since,
and no other change of the code.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutants"
CODE = {
    "c++": ["csrc/checks.cpp", "csrc/segments.cpp", "csrc/cpu/*.cpp", "csrc/cpu/*.h"],
    "python": ["fused_lstm/*.py"],
}
SHARE = {"c++": 0.7, "python": 0.3}
# Nothing but time depends on these: what the machine is measured with, and reports.
NO_RESULT = {
    *("machine.cpp", "machine.h", "probes.cpp", "probes.h"),
    *("__main__.py", "_profile.py", "_calls.py"),
}
# Those that notice most faults come first; of no use here are the GPU's and the benchmark's.
TESTS = [
    *("layer_values", "cpu_forced_plans", "gradients", "sequences", "streaming", "recompute"),
    *("sequences_saved", "memory_pool", "matrix_units", "precision", "layouts", "cell"),
    *("isa", "layer_errors", "ops"),
    *("layer_edges", "cpu_plan", "explain", "layer_contract", "activations", "replace", "tracing"),
    *("transforms", "gradients_protocol", "determinism", "denormals", "fallback", "properties"),
    *("memory", "large", "export", "compile", "sequences_compile"),
]
NO_END = 120  # seconds of one test: a barrier that nobody reaches hangs

SWAPS = {
    **{" < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ", " != ": " == "},
    **{" + ": " - ", " - ": " + ", " * ": " + ", " && ": " || ", " || ": " && "},
    **{" += ": " -= ", "true": "false", "false": "true", " and ": " or ", " or ": " and "},
    **{"is None": "is not None", "True": "False", "False": "True"},
}
DECLARATION = re.compile(
    r"((?:const )?(?!return|auto\b|constexpr|static|using)[\w:<>]+[ *&]+\w+ = )(.+);"
)
CONDITION = re.compile(r"((?:\} else )?(?:if|while) \()(.+)(\)(?: \{| [^)]*;)?)")
LOOP = re.compile(r"(for \([^;]+; )([^;]+)(; [^;]+\) ?.*)")
STATEMENT = re.compile(r"[\w\->.\[\]*()]+(?:\(.*\)| [+\-*|&]?= .+);")


@dataclass
class Mutant:
    """One changed line: what stood there, what stands there now, and what compiles into both."""

    path: str
    line: int  # from 0
    before: str
    after: str
    both: str = ""  # C++: the line with the fault behind `NUMBER`
    number: int = 0


def balanced(code: str) -> bool:
    return all(code.count(a) == code.count(b) for a, b in ("()", "[]", "{}"))


def changes(code: str) -> Iterator[str]:
    """The expression with one fault in it, for every fault that is known."""
    for old, new in SWAPS.items():
        for found in re.finditer(re.escape(old) if old.startswith(" ") else rf"\b{old}\b", code):
            yield code[: found.start()] + new + code[found.end() :]
    for found in re.finditer(r"(?<![\w.<\"])(\d+)(?![\w.\">])", code):
        yield code[: found.start()] + str(int(found[1]) + 1) + code[found.end() :]
    for found in re.finditer(r"(?<=[(])([\w.\->]+), ([\w.\->]+)(?=[,)])", code):
        if found[1] != found[2]:
            yield f"{code[: found.start()]}{found[2]}, {found[1]}{code[found.end() :]}"


def cpp_line(text: str) -> Iterator[tuple[str, str]]:
    """Every fault of a C++ line: the line itself, and the line that holds both."""
    indent, code = re.fullmatch(r"( *)(.*?)(?: *//.*)?", text).groups()
    if not balanced(code.rstrip("{").removeprefix("}")) or '"' in code:
        return
    for pattern, head, tail in ((LOOP, 1, 3), (CONDITION, 1, 3)):
        if found := pattern.fullmatch(code):
            before, after = found[head], found[tail] or ""
            for new in changes(found[2]):
                if balanced(found[2]):
                    yield (
                        f"{indent}{before}{new}{after}",
                        f"{indent}{before}NUMBER ? ({new}) : ({found[2]}){after}",
                    )
            return
    if found := re.fullmatch(r"(return )(.+);", code) or DECLARATION.fullmatch(code):
        for new in changes(found[2]):
            yield (
                f"{indent}{found[1]}{new};",
                f"{indent}{found[1]}NUMBER ? ({new}) : ({found[2]});",
            )
    elif STATEMENT.fullmatch(code):
        for new in ("", *(f"{changed};" for changed in changes(code[:-1]))):
            yield f"{indent}{new}", f"{indent}if (NUMBER) {{ {new} }} else {{ {code} }}"


def python_line(text: str) -> Iterator[tuple[str, str]]:
    """Every fault of a line of Python."""
    indent, code = re.fullmatch(r"( *)(.*?)(?: *  #.*)?", text).groups()
    if not balanced(code) or code.startswith(("import", "from", "def", "class", "@", '"', "#")):
        return
    if re.fullmatch(r"[\w.]+\(.*\)|[\w.\[\]]+ [+|]?= .+", code) and not code.startswith("return"):
        yield f"{indent}pass", ""
    for new in changes(code):
        yield indent + new, ""


def mutants_of(path: str, lines: list[str]) -> Iterator[Mutant]:
    python, quoted, before = path.endswith(".py"), False, ";"
    for number, text in enumerate(lines):
        code = text.split("//")[0].strip()
        starts = python or before.endswith((";", "{", "}", ":", ")")) or before.startswith("#")
        before = code or before
        if python and text.count('"""') == 1:
            quoted = not quoted
        if quoted or '"""' in text or (not python and (not starts or text.endswith("\\"))):
            continue
        for after, both in (python_line if python else cpp_line)(text):
            yield Mutant(path, number, text, after, both)


def chosen(language: str, count: int, seed: int) -> list[Mutant]:
    """At most one a line, spread over all lines alike."""
    found: dict[tuple[str, int], list[Mutant]] = {}
    for pattern in CODE[language]:
        for path in sorted(COPY.glob(pattern)):
            if path.name not in NO_RESULT:
                name = str(path.relative_to(COPY))
                for mutant in mutants_of(name, path.read_text().splitlines()):
                    found.setdefault((name, mutant.line), []).append(mutant)
    pick = random.Random(seed)
    places = pick.sample(sorted(found), min(count, len(found)))
    picked = [pick.choice(found[place]) for place in sorted(places)]
    for number, mutant in enumerate(picked, start=1 if language == "c++" else 1001):
        mutant.number = number
    return picked


def copy_folder(name: str) -> None:
    shutil.rmtree(COPY / name, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
    shutil.copytree(ROOT / name, COPY / name, ignore=ignored)


def copy_project() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    for folder in ("csrc", "fused_lstm", "tests", "bench", "examples"):
        copy_folder(folder)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "requirements-dev.txt"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, COPY)


def build(mutants: list[Mutant]) -> list[Mutant]:
    """Compile all of them; those that the compiler refuses are left out."""
    header = COPY / "csrc" / "mutant.h"
    header.write_text(
        "#pragma once\n#include <cstdlib>\nnamespace fused_lstm_mutant {\n"
        'inline int read() { const char* n = std::getenv("FUSED_LSTM_MUTANT"); '
        "return n ? std::atoi(n) : 0; }\n"
        "inline const int number = read();\n}\n"
    )
    originals = {m.path: (COPY / m.path).read_text().splitlines() for m in mutants}
    while True:
        for path, original in originals.items():
            lines = list(original)
            for mutant in mutants:
                if mutant.path == path:
                    chosen_now = f"(fused_lstm_mutant::number == {mutant.number})"
                    lines[mutant.line] = mutant.both.replace("NUMBER", chosen_now)
            text = "\n".join([f'#include "{header}"', *lines, ""])
            if (COPY / path).read_text() != text:
                (COPY / path).write_text(text)
        if (said := compiler_errors()) is None:
            return mutants
        places = re.findall(r"((?:csrc/)?[\w/]+\.(?:cpp|h)):(\d+):\d+:", said)
        bad = {(Path(path).name, int(line) - 2) for path, line in places}
        kept = [m for m in mutants if (Path(m.path).name, m.line) not in bad]
        if len(kept) == len(mutants):
            sys.exit(f"The copy does not build, and not for a mutant:\n{said[-3000:]}")
        print(f"{len(mutants) - len(kept)} do not compile and are left out", flush=True)
        mutants = kept


def compiler_errors() -> str | None:
    """All errors of all files; None where the extension was built."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    options: dict = dict(capture_output=True, text=True, check=False)
    environment = {**os.environ, "FUSED_LSTM_CUDA": "0"}
    result = subprocess.run(command, cwd=COPY, env=environment, **options)
    if result.returncode == 0:
        return None
    said = result.stdout + result.stderr
    for folder in (COPY / "build").glob("temp*"):  # to the last file, not to the first error
        said += subprocess.run(["ninja", "-k", "0"], cwd=folder, **options).stdout
    return said


def run_tests(tests: list[str], number: int) -> str:
    """What the tests say: the name of the first that fails, "no end", or "" where all pass."""
    files = [COPY / f"tests/test_{name}.py" for name in tests]
    hangs = ("-o", f"faulthandler_timeout={NO_END}", "-o", "faulthandler_exit_on_timeout=true")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-xqm", "not slow", "-p", "no:cacheprovider", *hangs),
            *(str(file) for file in files if file.exists()),
        ],
        cwd=COPY, env={**os.environ, "FUSED_LSTM_MUTANT": str(number)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode == 0:
        return ""
    if failed := re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE):
        return failed[1]
    return "no end" if "Timeout (" in result.stderr else f"ended with {result.returncode}"


def tried(mutant: Mutant, tests: list[str]) -> str:
    if not mutant.path.endswith(".py"):
        return run_tests(tests, mutant.number)
    path = COPY / mutant.path
    original = path.read_text()
    lines = original.splitlines()
    lines[mutant.line] = mutant.after
    path.write_text("\n".join([*lines, ""]))
    try:
        return run_tests(tests, 0)
    finally:
        path.write_text(original)


def prepared(count: int, seed: int) -> list[Mutant]:
    """The mutants of a fresh copy, in which those of C++ are built."""
    copy_project()
    mutants = build(chosen("c++", round(count * SHARE["c++"]), seed))
    mutants += chosen("python", round(count * SHARE["python"]), seed)
    (COPY / "mutants.json").write_text(json.dumps([asdict(mutant) for mutant in mutants]))
    return mutants


def prepared_before() -> list[Mutant]:
    copy_folder("tests")
    return [Mutant(**found) for found in json.loads((COPY / "mutants.json").read_text())]


def show(mutant: Mutant, said: str) -> None:
    print(f"{mutant.number:4} {mutant.path}:{mutant.line + 1}  {said}")
    print(f"      - {mutant.before.strip()}\n      + {mutant.after.strip()}", flush=True)


def run(mutants: list[Mutant], tests: list[str]) -> None:
    if failed := run_tests(tests, 0):
        sys.exit(f"{failed} fails without any mutant")
    survivors = 0
    for mutant in mutants:
        begin = time.monotonic()
        said = tried(mutant, tests) or "SURVIVED"
        survivors += said == "SURVIVED"
        show(mutant, f"{said} ({time.monotonic() - begin:.0f} s)")
    print(f"{len(mutants) - survivors} of {len(mutants)} were noticed, {survivors} survived")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--again", action="store_true", help="the mutants of the run before")
    parser.add_argument("--only", type=int, nargs="*", help="numbers as printed by a run")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="names of test files, in order")
    args = parser.parse_args()
    if args.list:
        copy_project()
        for language, share in SHARE.items():
            for mutant in chosen(language, round(args.count * share), args.seed):
                show(mutant, "")
        return
    mutants = prepared_before() if args.again else prepared(args.count, args.seed)
    run([m for m in mutants if not args.only or m.number in args.only], args.tests)


if __name__ == "__main__":
    main()
