// Found in place of CUDA's header when a kernel is compiled for the emulator.
#include "../half.h"
