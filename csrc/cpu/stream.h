// A stack of layers called a few steps at a time: see stream.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace fused_lstm::cpu {

void bind_stream(pybind11::module_& module);

}  // namespace fused_lstm::cpu
