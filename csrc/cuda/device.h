// What one CUDA device allows a kernel to use: plain data, no CUDA header.
#pragma once

#include <cstdint>
#include <string>

namespace fused_lstm::cuda {

struct DeviceLimits {
  std::string name;          // "cuda:sm_90"
  int compute_capability;    // 10 * major + minor
  int multiprocessors;       // SMs
  int64_t shared_per_block;  // bytes a block may opt in to, static and dynamic together
  int64_t shared_per_sm;     // bytes, of which every resident block takes reserved_shared more
  int64_t reserved_shared;   // bytes the system takes of each block
  int64_t registers_per_sm;  // 32-bit
  int threads_per_sm;
  int blocks_per_sm;
  int64_t l2_bytes;
  int cluster_blocks;  // largest portable cluster; 1 where there are none
  bool cooperative;    // grid-wide co-residency can be asked for
};

// The published limits of one architecture's data-centre part (sm_80, 90, 100) or largest
// workstation part (sm_86, 89, 120). Throws std::invalid_argument for another name.
const DeviceLimits& known_device(const std::string& name);

// How many blocks are resident on one SM at once; 0 where not even one fits.
int resident_blocks(const DeviceLimits& device, int threads, int registers_per_thread,
                    int64_t shared_bytes);

// How many clusters of `cluster` blocks, each on an SM of its own, are resident at once: of all
// SMs, whole clusters cover 15 of 16 (an H100's 132 hold 15 clusters of 8).
int64_t resident_clusters(const DeviceLimits& device, int64_t cluster);

}  // namespace fused_lstm::cuda
