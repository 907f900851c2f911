// Runs a package that torch.export and AOTInductor made from a model with fused_lstm layers,
// without a Python interpreter: see aot_inductor.py, which builds and calls it.
//
//   aot_inductor PACKAGE OPS STEPS
//
// PACKAGE is the .pt2 file and OPS the compiled extension (fused_lstm/_C.*.so), which registers the
// layer's ops when it is loaded. It holds Python's module as well, so the program is linked with
// libpython and libtorch_python, and starts neither. To do without them, compile csrc (all of it
// but module.cpp) into the program instead.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <string>

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: aot_inductor PACKAGE OPS STEPS\n");
    return 2;
  }
  if (dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const int64_t steps = std::stoll(arguments[3]);
  const at::Tensor x = at::arange(steps * 8, at::kFloat).cos().view({steps, 1, 8});
  const at::Tensor y = model.run({x})[0].flatten();
  for (int64_t i = 0; i < y.numel(); ++i) std::printf("%.9g\n", y[i].item<float>());
  return 0;
}
