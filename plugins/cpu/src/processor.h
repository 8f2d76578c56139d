// The instruction sets of this library and of this processor.
#pragma once
#include "kernels.h"

namespace doge::cpu {

struct InstructionSet {
    const char* name;
    const Kernels* (*kernels)();  // null: compiled without
    bool (*usable)();
};

// In ascending order of preference; ends with a null name.
extern const InstructionSet INSTRUCTION_SETS[];

// The named set, or the best one for null; null where this library or processor does not have it.
const Kernels* find_kernels(const char* name);

}  // namespace doge::cpu
