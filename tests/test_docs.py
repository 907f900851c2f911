"""README and docs: every block of Python runs, every link leads somewhere, figures are measured."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
AROUND = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
PAGES = [*(ROOT / name for name in AROUND), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


class Model(nn.Module):
    """What pages call `model`."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(128, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def given() -> dict[str, object]:
    """What a page may take for granted."""
    return {
        "torch": torch,
        "nn": nn,
        "model": Model(),
        "x": torch.randn(4, 7, 128),
        "lengths": torch.tensor([7, 2, 5, 1]),
        "mask": torch.rand(4, 7) < 0.2,
    }


def python_blocks(path: Path) -> list[tuple[int, str]]:
    """Line and text of each."""
    text = path.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start()].count("\n") + 2, match[1]) for match in found]


# What the blocks of a page need besides; torch says of the second that it will be removed.
NEEDED = {"tools.md": ("onnxscript", "torch.ao.quantization")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_blocks_run(path, extension, capsys, monkeypatch):
    """One after the other, in one namespace, as a reader would type them."""
    for name in NEEDED.get(path.name, ()):
        pytest.importorskip(name)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    namespace = given()
    for line, block in python_blocks(path):
        exec(compile("\n" * (line - 1) + block, path, "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_blocks_are_formatted(path):
    pytest.importorskip("ruff")
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "88", "-"]
    for line, block in python_blocks(path):
        result = subprocess.run(ruff, input=block, capture_output=True, text=True)
        assert result.returncode == 0, f"line {line}: {result.stdout}"


def prose(path: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What a heading is called in a link: in small letters, without marks, "-" for a space."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path):
    text = prose(path)
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        if not re.match(r"https?://", link):
            target, _, anchor = link.partition("#")
            assert (path.parent / target).exists(), link
            assert not anchor or anchor in anchors(path.parent / target if target else path), link


def test_commands_of_make_are_there():
    targets = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets = {name for line in targets for name in line.split()}
    for path in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.MULTILINE)
        assert set(named) <= targets, path.name


# Troubleshooting

PYTHON = [ROOT / "setup.py", *sorted(ROOT.glob("fused_lstm/*.py"))]


def headings_of_the_page() -> list[list[str]]:
    """Messages in the headings of the page, in the parts between "..."."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    messages = [m for heading in headings for m in re.findall("`(.+?)`", heading)]
    # Versions stand in setup.py's constants, with which test_build.py compares these.
    messages = [re.sub(r"[\d.]+ or newer is needed", "... or newer is needed", m) for m in messages]
    return [[part.strip(" :'") for part in message.split("...")] for message in messages]


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    files = [*PYTHON, *ROOT.glob("bench/*.py"), *ROOT.glob("csrc/**/*.[ch]*")]
    source = "\n".join(path.read_text() for path in files)
    source = re.sub(r'"\s*f?"', "", source)  # literals that the compiler joins
    assert len(headings_of_the_page()) > 40
    for parts in headings_of_the_page():
        for part in parts:
            assert part in source, part


def literal(node: ast.expr) -> str:
    """A message as it stands in the code, "..." for what it is filled with."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return node.value if isinstance(node, ast.Constant) else "..."


def raised(path: Path) -> Iterator[str]:
    """Messages of the errors of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            node = node.exc
        elif not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("refuse", "_refuse")):
            continue
        if isinstance(node, ast.Call) and node.args:
            yield literal(node.args[0])


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_every_error_has_a_heading_or_says_what_it_expects(path):
    headings = headings_of_the_page()
    for message in raised(path):
        if re.search(r"\w+ \w+ \w+", message) and "expect" not in message.lower():
            assert any(all(part in message for part in parts) for parts in headings), message


# Figures


@pytest.fixture(scope="module")
def readme_numbers():
    pytest.importorskip("rich")
    path = ROOT / "docs" / "readme_numbers.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_figures_of_the_committed_runs(readme_numbers):
    readme = (ROOT / "README.md").read_text()
    assert readme_numbers.updated(readme) == readme, "run `make numbers`"


def test_every_committed_picture_is_shown():
    readme = (ROOT / "README.md").read_text()
    for picture in (ROOT / "bench" / "results").glob("*.png"):
        assert picture.name in readme


def test_figures_are_those_of_a_run(readme_numbers, tmp_path):
    import bench_fakes

    from bench import results

    folder = tmp_path / "bench" / "results"
    run = bench_fakes.full_run()
    results.save(folder / "some.json", results.to_json(run))
    for name in ("faster", "steps", "roofline"):
        (folder / f"some-{name}-light.png").touch()
    empty = "".join(
        f"<!-- {name}: x --><!-- end of {name} -->\n" for name in ("summary", "numbers")
    )
    text = readme_numbers.updated(empty, tmp_path)
    assert "on 2 cores of a Some Processor 9000 (family 6, model 143; AVX-512)" in " ".join(
        text.split()
    )
    for name in ("faster", "steps", "roofline"):
        assert f"some-{name}-dark.png" in text
    assert "some-grid" not in text  # there is no such picture
    assert re.search(
        r"^\| float16 \| 1 \| 1\.25 \| 1\.25 \| 2\.50 \| 2\.50 \|$", text, re.MULTILINE
    )
    assert "60% in inference (`single`), 60% in training (`single`)" in " ".join(text.split())
    assert "by `python -m bench`" in " ".join(text.split())
    with pytest.raises(ValueError, match="0 blocks named summary"):
        readme_numbers.updated("", tmp_path)


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs"]
    result = subprocess.run(
        [*command, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    readme = (tmp_path / "readme.html").read_text()
    places = re.findall(r'(?:src(?:set)?|href)="([^"#:]+)[#"]', readme)
    assert {"how-it-works.html", "contributing.html", "examples.html"} <= set(places)
    assert sum(place.startswith("bench/results/") for place in places) >= 2
    for place in places:
        assert (tmp_path / place.partition("?")[0]).exists(), place
    api = (tmp_path / "api.html").read_text()
    names = "LSTM LSTMCell lstm replace_lstm restore_lstm explain profile Profile LSTMProfile"
    for name in names.split():
        assert f'id="fused_lstm.{name}"' in api
