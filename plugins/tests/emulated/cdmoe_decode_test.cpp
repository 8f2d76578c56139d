// CDMoE of few tokens: cdmoe_decode.cuh against the reference.
#include "../../kernels/cdmoe_plan.h"
#include "cdmoe_case.h"

using namespace doge::tests;
using namespace doge::emulation;

namespace {

void sizes_of_doge() {
    check_in_all_types({1, 256, 1024, 32, 1, 16});
    check_in_all_types({1, 64, 16384, 128, 1, 64});
    check_in_all_types({2, 576, 900, 30, 1, 15});
    check_sizes<__half>({1, 1024, 4096, 64, 1, 64});
    check_sizes<float>({1, 2048, 1024, 32, 1, 32});
}

void sizes_at_the_edges() {
    check_in_all_types({1, 8, 1, 1, 1, 1});
    check_in_all_types({3, 8, 5, 2, 1, 3});             // E > K * K, one vector or two
    check_in_all_types({5, 264, 70, 8, 1, 64});         // k = K * K, H just above 32 vectors of fp16
    check_in_all_types({2, 40, 130, 11, 3, 7});         // several routing heads, odd everything
    check_in_all_types({1, 512, 256, 16, 4, 8, true});  // the first generation
    check_in_all_types({7, 128, 256, 16, 8, 4, true});
    check_in_all_types({19, 72, 400, 20, 1, 9});          // two blocks a token, the second has one pick
    check_sizes<__half>({33, 16, 1024, 32, 1, 64});       // picks_per_block is no divisor of k
    check_sizes<__nv_bfloat16>({256, 24, 64, 8, 1, 12});  // one block a token
    check_sizes<float>({1, 4104, 16, 4, 1, 16});          // more vectors than threads, and a bit
    check_sizes<float>({64, 1032, 64, 8, 1, 64});         // the same, and more picks than are loaded at once
    check_sizes<__half>({43, 520, 64, 8, 2, 64});         // two groups of threads, several loads each
}

void scores_of_all_kinds() {
    const CdmoeSizes sizes{3, 48, 1024, 32, 1, 20};
    check_in_all_types(sizes, [](Random&) { return 1.0f; });
    check_in_all_types(sizes, [](Random& r) { return static_cast<float>(r.below(3)); });
    check_in_all_types(sizes, [](Random& r) { return 30000 * static_cast<float>(r.uniform()); });
    check_in_all_types(sizes, [](Random& r) { return 1e30f * r.normal(); });
    check_in_all_types(sizes, [](Random& r) { return 1 + 1e-4f * r.normal(); });  // equal in 16 bits
}

// Whatever a workspace holds, and whoever used it before.
void workspaces() {
    CdmoeCase<__half> test({2, 64, 1024, 32, 1, 64});
    CdmoeCase<__half> prefill({300, 64, 1024, 32, 1, 64});
    CHECK(doge::cdmoe::plan_decode(test.params).splits > 1, "the case must have several blocks a token");
    CHECK(!doge::cdmoe::is_decode(prefill.params), "the other case must be prefill");
    test.run_reference();
    prefill.run_reference();
    DeviceBuffer<char> workspace(doge_cdmoe_workspace_bytes(&prefill.params), 256);
    Random random(5);
    under_every_schedule([&](const char* schedule) {
        for (int repeat = 0; repeat < 6; ++repeat) {
            if (repeat == 1) std::memset(workspace.data(), 0, workspace.size());
            if (repeat == 3) {
                for (std::size_t i = 0; i < workspace.size(); ++i) workspace[i] = static_cast<char>(random.next());
            }
            if (repeat == 5) prefill.run_kernels(workspace);
            test.run_kernels(workspace);
            CHECK(test.error() <= 2e-3, std::string(schedule) + ", workspace " + std::to_string(repeat));
        }
    });
}

// Eight blocks of a token that get on at very different speed.
void blocks_take_turns() {
    CdmoeCase<float> test({1, 264, 64, 8, 1, 64});
    CHECK(doge::cdmoe::plan_decode(test.params).splits == 8, "the case must have eight blocks");
    test.run_reference();
    DeviceBuffer<char> workspace(doge_cdmoe_workspace_bytes(&test.params), 256);
    for (std::uint64_t seed = 10; seed < 40; ++seed) {
        set_schedule({Order::Random, seed});
        workspace.poison();
        test.run_kernels(workspace);
        CHECK(test.error() <= 1e-5, "blocks in turns, seed " + std::to_string(seed));
    }
}

void bad_calls() {
    CdmoeCase<float> test({1, 64, 1024, 32, 1, 64});
    DeviceBuffer<char> workspace(doge_cdmoe_workspace_bytes(&test.params) + 256, 256);
    doge_cdmoe_params p = test.params;
    p.output = test.output.data();
    CHECK(doge_cdmoe(&p, workspace.data(), doge_cdmoe_workspace_bytes(&p) - 1, nullptr) == DOGE_BAD_WORKSPACE,
          "too small");
    CHECK(doge_cdmoe(&p, workspace.data() + 16, workspace.size() - 16, nullptr) == DOGE_BAD_WORKSPACE, "misaligned");
    CHECK(doge_cdmoe(&p, nullptr, workspace.size(), nullptr) == DOGE_BAD_WORKSPACE, "none");
    for (int hidden_size : {12, 16392}) {
        p.hidden_size = hidden_size;
        CHECK(doge_cdmoe(&p, workspace.data(), workspace.size(), nullptr) == DOGE_BAD_SHAPE,
              "H = " + std::to_string(hidden_size));
    }
    p.hidden_size = 64;
    p.num_experts_per_tok = 65;
    CHECK(doge_cdmoe(&p, workspace.data(), workspace.size(), nullptr) == DOGE_BAD_SHAPE, "k = 65");
}

// What is asked for one size is enough for every smaller one.
void workspace_never_shrinks() {
    Random random(11);
    const int limits[] = {5000, 256, 1, 16, 8, 64};  // tokens, H / 8, -, K, R, k
    for (int i = 0; i < 20000; ++i) {
        int values[6];
        for (int n = 0; n < 6; ++n) values[n] = 1 + random.below(1 + random.below(limits[n]));
        doge_cdmoe_params p{};
        const auto bytes = [&] {
            p.tokens = values[0];
            p.hidden_size = 8 * values[1];
            p.num_routing_heads = values[4];
            p.num_experts_per_tok = values[5];
            p.dtype = values[2] == 1 ? DOGE_FLOAT16 : DOGE_FLOAT32;
            return doge_cdmoe_workspace_bytes(&p);
        };
        const std::size_t before = bytes();
        if (doge::cdmoe::is_decode(p)) {
            const auto plan = doge::cdmoe::plan_decode(p);
            const std::size_t blocks = std::size_t(p.tokens) * p.num_routing_heads * plan.splits;
            CHECK(blocks <= doge::cdmoe::kDecodeBlocks, "blocks " + std::to_string(blocks));
            CHECK(before >= doge::cdmoe::kTicketBytes + blocks * p.hidden_size * 4, "partial sums do not fit");
            CHECK(plan.splits * plan.picks_per_block >= p.num_experts_per_tok, "picks are left out");
            CHECK((plan.splits - 1) * plan.picks_per_block < p.num_experts_per_tok, "a block without picks");
        }
        const int grown = std::vector<int>{0, 1, 4, 5}[random.below(4)];
        values[grown] += 1 + random.below(limits[grown]);
        CHECK(bytes() >= before, "size " + std::to_string(grown) + " grew to " + std::to_string(values[grown]) +
                                     " and the workspace shrank");
    }
}

}  // namespace

int main() {
    sizes_of_doge();
    sizes_at_the_edges();
    scores_of_all_kinds();
    workspaces();
    blocks_take_turns();
    bad_calls();
    workspace_never_shrinks();
    print_worst_errors();
    return failures();
}
