// CDMoE of many tokens: cdmoe_prefill.cuh against the reference.
#include "../../kernels/cdmoe_plan.h"
#include "cdmoe_case.h"

using namespace doge::tests;
using namespace doge::emulation;

namespace {

void sizes_of_doge() {
    check_sizes<__half>({257, 256, 1024, 32, 1, 16});
    check_sizes<__nv_bfloat16>({259, 64, 16384, 128, 1, 64});
    check_sizes<float>({261, 576, 900, 30, 1, 15});
}

void sizes_at_the_edges() {
    check_in_all_types({257, 8, 1, 1, 1, 1});
    check_in_all_types({263, 264, 70, 8, 1, 5});         // a second slice of one vector in fp16
    check_sizes<__half>({257, 264, 70, 8, 1, 33});       // a second batch of 32 picks, of one
    check_in_all_types({130, 40, 130, 11, 3, 7});        // several routing heads, odd everything
    check_sizes<float>({33, 136, 256, 16, 8, 8, true});  // the first generation
    check_sizes<float>({257, 1032, 16, 4, 1, 3});
}

void scores_of_all_kinds() {
    const CdmoeSizes sizes{257, 16, 1024, 32, 1, 9};
    // Scores are float32 whatever the type of the rest, so one type is enough for each kind.
    check_sizes<float>(sizes, [](Random&) { return 1.0f; });
    check_sizes<__half>(sizes, [](Random& r) { return static_cast<float>(r.below(3)); });
    check_sizes<float>(sizes, [](Random& r) { return 1e30f * r.normal(); });
    check_sizes<__nv_bfloat16>(sizes, [](Random& r) { return 1 + 1e-4f * r.normal(); });  // equal in 16 bits
}

// More picks than a chunk holds.
void chunks() {
    CdmoeCase<__half> test({261, 8, 64, 8, 1, 64});
    CHECK(doge::cdmoe::chunk_tokens(test.params) == 256, "the case must have two chunks");
    test.run_reference();
    DeviceBuffer<char> workspace(doge_cdmoe_workspace_bytes(&test.params), 256);
    set_schedule({});
    test.run_kernels(workspace);
    CHECK(test.error() <= 2e-3, "two chunks: error " + std::to_string(test.error()));
}

}  // namespace

int main() {
    sizes_of_doge();
    sizes_at_the_edges();
    scores_of_all_kinds();
    chunks();
    print_worst_errors();
    return failures();
}
