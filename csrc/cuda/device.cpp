#include "cuda/device.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace fused_lstm::cuda {

namespace {

constexpr int64_t KiB = 1024;
constexpr int64_t MiB = 1024 * KiB;

// CUDA C++ Programming Guide, "Compute Capabilities"; SM counts and L2 from the vendor's data
// sheets (A100, RTX 3090 Ti, RTX 4090, H100 SXM, B200, RTX PRO 6000).
const std::vector<DeviceLimits>& table() {
  static const std::vector<DeviceLimits> devices = {
      // name, cc, SMs, shared: block, SM, reserved; registers, threads, blocks, L2, cluster
      {"cuda:sm_80", 80, 108, 163 * KiB, 164 * KiB, KiB, 65536, 2048, 32, 40 * MiB, 1, true},
      {"cuda:sm_86", 86, 84, 99 * KiB, 100 * KiB, KiB, 65536, 1536, 16, 6 * MiB, 1, true},
      {"cuda:sm_89", 89, 128, 99 * KiB, 100 * KiB, KiB, 65536, 1536, 24, 72 * MiB, 1, true},
      {"cuda:sm_90", 90, 132, 227 * KiB, 228 * KiB, KiB, 65536, 2048, 32, 50 * MiB, 8, true},
      {"cuda:sm_100", 100, 148, 227 * KiB, 228 * KiB, KiB, 65536, 2048, 32, 126 * MiB, 8, true},
      {"cuda:sm_120", 120, 188, 99 * KiB, 100 * KiB, KiB, 65536, 1536, 24, 128 * MiB, 8, true},
  };
  return devices;
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

const DeviceLimits& known_device(const std::string& name) {
  for (const DeviceLimits& device : table()) {
    if (device.name == name) return device;
  }
  std::string known;
  for (const DeviceLimits& device : table()) known += (known.empty() ? "" : ", ") + device.name;
  throw std::invalid_argument("no limits are known for device '" + name + "': expected one of " +
                              known);
}

int resident_blocks(const DeviceLimits& device, int threads, int registers_per_thread,
                    int64_t shared_bytes) {
  if (threads > 1024 || shared_bytes > device.shared_per_block) return 0;
  // Registers are handed to warps in units of 256, shared memory to blocks in units of 128 bytes.
  const int64_t warps = (threads + 31) / 32;
  const int64_t registers = warps * round_up(32LL * std::max(registers_per_thread, 1), 256);
  const int64_t shared = round_up(shared_bytes, 128) + device.reserved_shared;
  const int64_t blocks =
      std::min({static_cast<int64_t>(device.blocks_per_sm), device.threads_per_sm / (32 * warps),
                device.registers_per_sm / registers, device.shared_per_sm / shared});
  return static_cast<int>(blocks);
}

int64_t resident_clusters(const DeviceLimits& device, int64_t cluster) {
  return cluster == 1 ? device.multiprocessors : device.multiprocessors * 15 / 16 / cluster;
}

}  // namespace fused_lstm::cuda
