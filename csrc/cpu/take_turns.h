// Independent pieces of work, each done by one thread.
#pragma once

#include <cstdint>
#include <functional>

namespace fused_lstm::cpu {

// Calls run(k) for every k of [0, count), on all threads at once where there are as many pieces:
// each then has one thread, and nobody waits at a barrier. Else in turn, by the caller: a piece may
// use all threads.
void take_turns(int64_t count, const std::function<void(int64_t k)>& run);

}  // namespace fused_lstm::cpu
