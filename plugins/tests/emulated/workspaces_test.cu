// One workspace for everybody, as TensorRT gives it: launches of both operators and of changing sizes take turns on it,
// as in a captured graph that is replayed, and between them others write what they like.
#include "../../kernels/tickets.cuh"

#include "attention_case.h"
#include "cdmoe_case.h"

using namespace doge::emulation;
using doge::tests::CdmoeCase;

namespace {

constexpr std::size_t kBytes = 1 << 20;

AttentionCase attention(std::vector<int> past_lengths, int kv_heads, int head_size, int window, int new_tokens = 1) {
    AttentionCase c;
    c.past_lengths = std::move(past_lengths);
    c.capacity = *std::max_element(c.past_lengths.begin(), c.past_lengths.end()) + new_tokens + 20;
    c.num_kv_heads = c.num_score_heads = kv_heads;
    c.num_heads = 2 * kv_heads;
    c.head_size = head_size;
    c.keep_window_size = window;
    c.new_tokens = new_tokens;
    c.name = "attention P=" + std::to_string(c.past_lengths[0]) + " S=" + std::to_string(new_tokens);
    return c;
}

// What a launch finds.
enum class Content { as_left, garbage, almost_tickets, zeros };
const char* const kNames[] = {"as left", "garbage", "almost tickets", "zeros"};

void fill(DeviceBuffer<char>& workspace, Content content, Random& random) {
    auto* words = reinterpret_cast<doge::Ticket*>(workspace.data());
    for (std::size_t n = 0; n < kBytes / sizeof(doge::Ticket) && content != Content::as_left; ++n) {
        words[n] = content == Content::garbage          ? random.next()
                   : content == Content::almost_tickets ? doge::kTicketMark - 1 - random.below(5)
                                                        : 0;
    }
}

void everybody_takes_turns() {
    // Several splits, of few heads and of many; none; a selection in one launch and in two; a prompt.
    const AttentionCase cases[] = {
        attention({300}, 1, 64, 0),          attention({650, 20, 130}, 2, 128, 0), attention({40}, 1, 64, 0),
        attention({400, 3}, 2, 64, 100),     attention({200, 330}, 3, 64, 150, 3), attention({90}, 1, 64, 32, 70),
        attention({500, 1, 2, 3}, 4, 80, 0),
    };
    std::vector<std::unique_ptr<AttentionRun<__half>>> attentions;
    for (const AttentionCase& c : cases) attentions.push_back(std::make_unique<AttentionRun<__half>>(c));
    CdmoeCase<__half> few_experts({2, 64, 1024, 32, 1, 64}), many_experts({40, 64, 256, 16, 8, 4});
    few_experts.run_reference();
    many_experts.run_reference();

    DeviceBuffer<char> workspace(kBytes, 256);
    Random random(17);
    for (const auto& run : attentions) run->share_workspace(workspace);
    const int launches = static_cast<int>(attentions.size()) + 2;
    for (int turn = 0; turn < 6 * launches; ++turn) {
        set_schedule({Order::Random, static_cast<std::uint64_t>(turn)});
        const auto content = static_cast<Content>(turn < launches ? 0 : random.below(4));
        fill(workspace, content, random);
        const int which = turn < 2 * launches ? turn % launches : random.below(launches);
        const std::string where = "turn " + std::to_string(turn) + ", workspace " + kNames[static_cast<int>(content)];
        if (which < launches - 2) {
            attentions[which]->check(bar_of(DOGE_FLOAT16), where);
        } else {
            CdmoeCase<__half>& experts = which == launches - 2 ? few_experts : many_experts;
            experts.run_kernels(workspace);
            CHECK(experts.error() <= bar_of(DOGE_FLOAT16), experts.name + ", " + where);
        }
    }
}

}  // namespace

int main() {
    everybody_takes_turns();
    return failures();
}
