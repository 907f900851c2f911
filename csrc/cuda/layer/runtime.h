// What the layer asks of the device it runs on.
#pragma once

#include <c10/core/Device.h>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace fused_lstm::cuda {

// Limits of a device that is present; read once per device.
const DeviceLimits& limits_of(c10::Device device);
// Limits of the current device.
const DeviceLimits& current_device_limits();
// PyTorch's current stream there.
Stream current_stream(c10::Device device);

}  // namespace fused_lstm::cuda
