// A stack of its own to run on, and the way there and back.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__)
#define EMULATOR_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace emulator {

#ifdef EMULATOR_OWN_SWITCH

// As swapcontext, without its two system calls: they are for signals, and nobody uses those here.
struct Context {
  void* stack_pointer = nullptr;
};

// Begins with a call of `entry`, which never returns.
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16;
  void** at = reinterpret_cast<void**>(top);
  *--at = nullptr;  // where entry would return to; aligns the stack as a call does
  *--at = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--at = nullptr;  // the registers that a function must keep
  context.stack_pointer = at;
}

extern "C" void emulator_switch(void** from, void* to);
inline void switch_context(Context& from, Context& to) {
  emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#else

struct Context {
  ucontext_t context;
};

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  makecontext(&context.context, entry, 0);
}
inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace emulator
