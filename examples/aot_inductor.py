"""Deploy without Python: export a model, compile it ahead of time, run it from C++.

    python examples/aot_inductor.py

The program that runs the package is examples/aot_inductor.cpp; a C++ compiler builds it here.
"""

import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils import cpp_extension

import fused_lstm
from fused_lstm import _C

HERE = Path(__file__).parent


class Tagger(nn.Module):
    """A score for each step of a sequence of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_lstm.LSTM(8, 16, num_layers=2, bidirectional=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def package(model: nn.Module, path: Path) -> None:
    """Export for inference, for any number of steps, and compile."""
    steps = torch.export.Dim("steps", min=2, max=10_000)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(5, 1, 8),), dynamic_shapes=({0: steps},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def build(source: Path, target: Path) -> None:
    """Compile the C++ program and link it with the libraries that it names."""
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    folders = [*cpp_extension.library_paths(), sysconfig.get_config_var("LIBDIR")]
    python = f"python{sysconfig.get_config_var('LDVERSION')}"
    command = ["c++", "-std=c++20", "-O1", str(source), "-o", str(target)]
    command += [f"-I{folder}" for folder in includes]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [flag for folder in folders for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    # Nothing in the program itself refers to the last two: the extension does.
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command += ["-Wl,--no-as-needed", "-ltorch_python", f"-l{python}"]
    subprocess.run(command, check=True)


def main() -> None:
    """Compare what Python and C++ compute."""
    model, steps = Tagger().eval(), 50
    with tempfile.TemporaryDirectory() as folder:
        archive, program = Path(folder, "tagger.pt2"), Path(folder, "aot_inductor")
        package(model, archive)
        build(HERE / "aot_inductor.cpp", program)
        command = [str(program), str(archive), _C.__file__, str(steps)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = torch.tensor([float(line) for line in printed.split()])
    with torch.no_grad():
        expected = model(torch.arange(steps * 8.0).cos().view(steps, 1, 8)).flatten()
    difference = (found - expected).abs().max().item()
    print(f"largest difference between Python and C++: {difference:.1e}")


if __name__ == "__main__":
    main()
