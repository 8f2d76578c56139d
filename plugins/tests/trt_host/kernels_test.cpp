// enqueue of the plugin's own objects over the kernels themselves, which run on the CPU here (tests/emulation).
#include "creator.h"
#include "node_run.h"

using namespace doge::testing;
using namespace doge::trt;

int main() {
    for (const Example& example : all_examples()) {
        Creator creator(operator_of(example));
        for (const bool in_place : {false, true}) {
            Host host;
            NodeRun run(creator, example, host, in_place);
            CHECK_EQUAL(run.shape_change(), 0);
            CHECK_EQUAL(run.enqueue(), 0);
            check_outputs(example, run.outputs(), in_place ? "in place" : "apart");
        }
    }
    return outcome();
}
