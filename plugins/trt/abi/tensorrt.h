// TensorRT's interface as far as a plugin of ours needs it: our own declarations, or NVIDIA's where the build is told
// to take those (DOGE_TRT_INCLUDE_DIR). README.md says what holds them together.
#pragma once

#ifdef DOGE_NVIDIA_HEADERS
#include <NvInferRuntime.h>
#else
#include "plugins.h"
#endif
