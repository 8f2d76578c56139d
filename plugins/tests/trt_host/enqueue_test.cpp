// enqueue of the plugin's own objects, with the reference in the place of the kernels: from descriptions of tensors and
// pointers to numbers, without a GPU.
#include "check.h"
#include "creator.h"
#include "doge/operators.h"
#include "node_run.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

constexpr size_t kWorkspace = 512;
size_t workspace_seen;
bool workspace_aligned;
void* stream_seen;

void note(void* workspace, size_t workspace_bytes, void* stream) {
    workspace_aligned = reinterpret_cast<uintptr_t>(workspace) % 256 == 0;
    workspace_seen = workspace_bytes;
    stream_seen = stream;
}

}  // namespace

size_t doge_attention_workspace_bytes(const doge_attention_params*) { return kWorkspace; }
size_t doge_fused_attention_workspace_bytes(const doge_fused_attention_params*) { return kWorkspace; }
size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params*) { return kWorkspace; }

int doge_attention(const doge_attention_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    note(workspace, workspace_bytes, stream);
    return doge_attention_reference(params);
}

int doge_fused_attention(const doge_fused_attention_params* params, void* workspace, size_t workspace_bytes,
                         void* stream) {
    note(workspace, workspace_bytes, stream);
    return doge_fused_attention_reference(params);
}

int doge_cdmoe(const doge_cdmoe_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    note(workspace, workspace_bytes, stream);
    return doge_cdmoe_reference(params);
}

namespace {

void check_run(const Example& example, bool in_place) {
    Creator creator(operator_of(example));
    Host host;
    NodeRun run(creator, example, host, in_place);
    CHECK_EQUAL(run.shape_change(), 0);
    CHECK_EQUAL(run.enqueue(), 0);
    CHECK_EQUAL(workspace_seen, kWorkspace);
    CHECK(workspace_aligned);
    CHECK(stream_seen == host.stream());
    const std::vector<Memory> seen = run.outputs();
    for (size_t output = 0; output < seen.size(); ++output) {
        // The same code on the same numbers: to the bit.
        CHECK_EQUAL(error_of(example, seen, output), 0);
    }
}

// That error_of sees what it should: otherwise all of the above would pass on anything.
void check_checking() {
    Example example = attention_example("prefill", Type::float16, {11, true, {0, 20, 500}, {11, 7, 3}}, 7);
    for (size_t output = 0; output < example.outputs.size(); ++output) {
        std::vector<Memory> seen = example.expected;
        CHECK_EQUAL(error_of(example, seen, output), 0);
        seen[output][1] = static_cast<char>(seen[output][1] ^ 0x11);
        CHECK(error_of(example, seen, output) > 0);
        seen[output].assign(seen[output].size(), '\xFF');
        CHECK(error_of(example, seen, output) > 1);
    }
}

}  // namespace

int main() {
    for (const Example& example : all_examples()) {
        check_run(example, false);
        check_run(example, true);
    }
    check_checking();
    return outcome();
}
