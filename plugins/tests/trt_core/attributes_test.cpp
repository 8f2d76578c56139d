// Attributes: read, defaults, every way of being wrong, stored in an engine and read again.
#include <cmath>
#include <cstring>
#include <set>

#include "check.h"
#include "fields.h"
#include "operator.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

std::shared_ptr<Operator> made(MakeOperator make, const Values& values, Phase phase = Phase::build) {
    const GivenFields given(values);
    std::shared_ptr<Operator> node = make();
    node->read(given.fields(), phase);
    return node;
}

std::shared_ptr<Operator> attention(const Values& values) { return made(make_dynamic_mask_attention, values); }
std::shared_ptr<Operator> cdmoe(const Values& values) { return made(make_cdmoe, values); }

void read_and_shown() {
    CHECK_EQUAL(attention(attention_values())->text(),
                "num_heads=8 kv_num_heads=4 scale=0.125 keep_window_size=2048 bounded=0 alias_kv_cache=0");
    CHECK_EQUAL(attention(bounded_values())->text(),
                "num_heads=8 kv_num_heads=4 scale=0.125 keep_window_size=2048 bounded=1 alias_kv_cache=1");
    CHECK_EQUAL(cdmoe(cdmoe_values())->text(), "num_experts_per_tok=4 weights_inside=0");
    // What the node says of the plugin is taken where it is ours.
    const Values named = with(with(cdmoe_values(), "plugin_version", "1"), "plugin_namespace", "doge");
    CHECK_EQUAL(cdmoe(named)->text(), cdmoe(cdmoe_values())->text());
    // The text tells floats apart that differ in their last bit: it keys the timing cache.
    float scale = 0.08838834764831845F;
    std::set<std::string> texts;
    for (int step = 0; step < 100; ++step, scale = std::nextafter(scale, 1.0F)) {
        texts.insert(attention(with(attention_values(), "scale", scale))->text());
    }
    CHECK_EQUAL(texts.size(), 100U);
}

void wrong_values() {
    const Values good = attention_values();
    CHECK_PROBLEM(attention(without(good, "num_heads")), "num_heads is missing; 1 or more expected");
    CHECK_PROBLEM(attention(without(good, "scale")), "scale is missing; a positive number expected");
    CHECK_PROBLEM(attention({}), "num_heads is missing; 1 or more expected");
    CHECK_PROBLEM(attention(with(good, "num_heads", 0)), "num_heads is 0; 1 or more expected");
    CHECK_PROBLEM(attention(with(good, "num_heads", 6)), "num_heads is 6; a multiple of kv_num_heads 4 expected");
    CHECK_PROBLEM(attention(with(good, "kv_num_heads", -4)), "kv_num_heads is -4; 1 or more expected");
    CHECK_PROBLEM(attention(with(good, "scale", 0.0F)), "scale is 0; a positive number expected");
    CHECK_PROBLEM(attention(with(good, "scale", NAN)), "scale is nan; a positive number expected");
    CHECK_PROBLEM(attention(with(good, "scale", INFINITY)), "scale is inf; a positive number expected");
    CHECK_PROBLEM(attention(with(good, "keep_window_size", -1)), "keep_window_size is -1; 0 or more expected");
    CHECK_PROBLEM(attention(with(good, "bounded", 2)), "bounded is 2; 0 or 1 expected");
    CHECK_PROBLEM(attention(with(good, "alias_kv_cache", -1)), "alias_kv_cache is -1; 0 or 1 expected");
    CHECK_PROBLEM(attention(with(bounded_values(), "keep_window_size", 0)),
                  "keep_window_size is 0, which keeps every key; 1 or more expected with bounded 1");
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "num_experts_per_tok", 0)),
                  "num_experts_per_tok is 0; 1 or more expected");
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "weights_inside", 2)), "weights_inside is 2; 0 or 1 expected");
}

void wrong_types() {
    const Values good = attention_values();
    CHECK_PROBLEM(attention(with(good, "num_heads", 8.0F)), "num_heads is float32; int32 expected");
    CHECK_PROBLEM(attention(with(good, "scale", 1)), "scale is int32; float32 expected");
    CHECK_PROBLEM(attention(with(good, "scale", "0.125")), "scale is text; float32 expected");
    CHECK_PROBLEM(attention(with(good, "plugin_version", 1)), "plugin_version is int32; the text '1' expected");

    int32_t two[2] = {8, 8};
    const auto read = [](const std::vector<Field>& fields) { make_cdmoe()->read(fields, Phase::build); };
    CHECK_PROBLEM(read({{"num_experts_per_tok", FieldType::int32, two, 2}}),
                  "num_experts_per_tok has 2 values; one expected");
    CHECK_PROBLEM(read({{"num_experts_per_tok", FieldType::int32, two, 0}}),
                  "num_experts_per_tok has 0 values; one expected");
    CHECK_PROBLEM(read({{"num_experts_per_tok", FieldType::int32, nullptr, 1}}),
                  "num_experts_per_tok has no value; one expected");
    CHECK_PROBLEM(read({{"num_experts_per_tok", FieldType::other, two, 1}}),
                  "num_experts_per_tok is of another type; int32 expected");
}

void wrong_names() {
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "k", 4)),
                  "no attribute is called 'k'; there are num_experts_per_tok, weights_inside");
    CHECK_PROBLEM(cdmoe({{"num_experts_per_tok", 4}, {"num_experts_per_tok", 4}}),
                  "num_experts_per_tok is given twice");
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "plugin_version", "2")), "plugin_version is '2'; '1' expected");
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "plugin_namespace", "")), "plugin_namespace is ''; 'doge' expected");
    // The schema number is an engine's, not a node's.
    CHECK_PROBLEM(cdmoe(with(cdmoe_values(), "schema", 1)),
                  "no attribute is called 'schema'; there are num_experts_per_tok, weights_inside");
    // A text that is not closed within its length is not read beyond it.
    const char version[2] = {'1', '2'};
    const auto read = [&] { make_cdmoe()->read({{"plugin_version", FieldType::text, version, 1}}, Phase::build); };
    CHECK_PROBLEM(read(), "num_experts_per_tok is missing; 1 or more expected");
}

bool same_values(const std::vector<Field>& a, const std::vector<Field>& b) {
    bool same = a.size() == b.size();
    for (size_t index = 0; same && index < a.size(); ++index) {
        same = std::strcmp(a[index].name, b[index].name) == 0 && a[index].type == b[index].type &&
               a[index].length == b[index].length && std::memcmp(a[index].data, b[index].data, sizeof(int32_t)) == 0;
    }
    return same;
}

void stored_and_read_again() {
    const std::vector<std::pair<MakeOperator, Values>> nodes = {
        {make_dynamic_mask_attention, attention_values()},
        {make_dynamic_mask_attention, bounded_values()},
        {make_dynamic_mask_attention, with(attention_values(), "scale", 0.08838834764831845F)},
        {make_cdmoe, cdmoe_values()},
        {make_cdmoe, with(cdmoe_values(), "weights_inside", 1)},
    };
    for (const auto& [make, values] : nodes) {
        const std::shared_ptr<Operator> node = made(make, values);
        const std::shared_ptr<Operator> again = make();
        again->read(node->stored(), Phase::runtime);
        CHECK_EQUAL(again->text(), node->text());
        CHECK(same_values(again->stored(), node->stored()));
        CHECK_EQUAL(again->signature().inputs.size(), node->signature().inputs.size());
        // Each has its own copy of the values.
        CHECK(again->stored().back().data != node->stored().back().data);
    }
}

void wrong_engines() {
    const Values stored = with(cdmoe_values(), "schema", kSchemaNumber);
    const auto runtime = [](const Values& values) { return made(make_cdmoe, values, Phase::runtime); };
    CHECK_EQUAL(runtime(stored)->text(), "num_experts_per_tok=4 weights_inside=0");
    CHECK_PROBLEM(runtime(cdmoe_values()), "the engine stores no schema number; it was not built with this plugin");
    CHECK_PROBLEM(runtime(with(stored, "schema", kSchemaNumber + 1)),
                  "the engine was built by a plugin of schema 3, this one has schema 2; build the engine again");
    // An engine stores what has a default, too: a default may change, an engine must not.
    const Values attention = with(without(bounded_values(), "bounded"), "schema", kSchemaNumber);
    CHECK_PROBLEM(made(make_dynamic_mask_attention, attention, Phase::runtime), "bounded is missing; 0 or 1 expected");
}

}  // namespace

int main() {
    read_and_shown();
    wrong_values();
    wrong_types();
    wrong_names();
    stored_and_read_again();
    wrong_engines();
    return outcome();
}
