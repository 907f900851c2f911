// One case of one dtype; run_dtype.cpp is compiled once for each.
#pragma once

#include "case.h"

namespace driver {

// Runs the case for every seed, and once without saving for backward; writes the outputs.
// Throws if a run fails or if two seeds differ in one bit.
template <class Math>
void run_case(const Options& options);

}  // namespace driver
