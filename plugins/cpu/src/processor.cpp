#include "processor.h"

#include <cstring>

#include "doge/cpu.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace doge::cpu {
namespace {

bool always() { return true; }

#if defined(__x86_64__) || defined(__i386__)

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) {
        if (!__get_cpuid_count(leaf, sub, &a, &b, &c, &d)) a = b = c = d = 0;
    }
};

bool bit(unsigned word, int n) { return (word >> n & 1) != 0; }

// Whether the system saves these registers when it switches threads.
bool saves(unsigned mask) {
    if (!bit(Leaf(1, 0).c, 27)) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

bool has_avx2() {
    const Leaf first(1, 0);
    return saves(0x6) && bit(first.c, 12) && bit(first.c, 29) && bit(Leaf(7, 0).b, 5);  // FMA, F16C, AVX2
}
bool has_avxvnni() { return has_avx2() && bit(Leaf(7, 1).a, 4); }
bool has_avx512vnni() {
    const Leaf seventh(7, 0);  // F, DQ, BW, VL, VNNI
    return has_avx2() && saves(0xe6) && bit(seventh.b, 16) && bit(seventh.b, 17) && bit(seventh.b, 30) &&
           bit(seventh.b, 31) && bit(seventh.c, 11);
}

#else

bool has_avx2() { return false; }
bool has_avxvnni() { return false; }
bool has_avx512vnni() { return false; }

#endif

bool has_neondot() {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0;  // HWCAP_ASIMDDP
#else
    return true;  // as the compiler was told: every Apple processor has it, and WebAssembly knows when it loads
#endif
}

}  // namespace

const InstructionSet INSTRUCTION_SETS[] = {
    {"plain", kernels_plain, always},
    {"wasm", kernels_wasm, always},
    {"wasmrelaxed", kernels_wasmrelaxed, always},
    {"neondot", kernels_neondot, has_neondot},
    {"avx2", kernels_avx2, has_avx2},
    {"avxvnni", kernels_avxvnni, has_avxvnni},
    {"avx512vnni", kernels_avx512vnni, has_avx512vnni},
    {nullptr, nullptr, nullptr},
};

const Kernels* find_kernels(const char* name) {
    const Kernels* found = nullptr;
    for (const InstructionSet* set = INSTRUCTION_SETS; set->name != nullptr; set++) {
        if ((name == nullptr || std::strcmp(name, set->name) == 0) && set->kernels() != nullptr && set->usable())
            found = set->kernels();
    }
    return found;
}

}  // namespace doge::cpu

using namespace doge::cpu;

struct Names {
    char text[128] = "";
    explicit Names(bool all) {
        for (const InstructionSet* set = INSTRUCTION_SETS; set->name != nullptr; set++) {
            if (set->kernels() == nullptr || !(all || set->usable())) continue;
            if (text[0] != 0) std::strcat(text, " ");
            std::strcat(text, set->name);
        }
    }
};

extern "C" int32_t doge_cpu_interface(void) { return DOGE_CPU_INTERFACE; }
extern "C" int32_t doge_cpu_layout(void) { return DOGE_CPU_LAYOUT; }
extern "C" const char* doge_cpu_instruction_sets(void) {
    static const Names names(true);
    return names.text;
}
extern "C" const char* doge_cpu_usable_instruction_sets(void) {
    static const Names names(false);
    return names.text;
}
