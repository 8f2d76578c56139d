// Fields as the ONNX parser makes them, from C++ values.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "attributes.h"

namespace doge::testing {

using Value = std::variant<int32_t, float, const char*>;
using Values = std::vector<std::pair<const char*, Value>>;

// Owns the values that its fields point to.
class GivenFields {
public:
    explicit GivenFields(Values values) : values_(std::move(values)) {}

    std::vector<trt::Field> fields() const {
        std::vector<trt::Field> fields;
        for (const auto& [name, value] : values_) {
            if (const auto* integer = std::get_if<int32_t>(&value)) {
                fields.push_back({name, trt::FieldType::int32, integer, 1});
            } else if (const auto* number = std::get_if<float>(&value)) {
                fields.push_back({name, trt::FieldType::float32, number, 1});
            } else {
                const char* text = std::get<const char*>(value);
                const auto length = static_cast<int32_t>(std::char_traits<char>::length(text)) + 1;
                fields.push_back({name, trt::FieldType::text, text, length});
            }
        }
        return fields;
    }

private:
    Values values_;
};

inline Values attention_values() {
    return {{"num_heads", 8}, {"kv_num_heads", 4}, {"scale", 0.125F}, {"keep_window_size", 2048}};
}

inline Values bounded_values() {
    Values values = attention_values();
    values.insert(values.end(), {{"bounded", 1}, {"alias_kv_cache", 1}});
    return values;
}

inline Values cdmoe_values() { return {{"num_experts_per_tok", 4}, {"weights_inside", 0}}; }

inline Values fused_attention_values() {
    return {{"num_heads", 8},         {"kv_num_heads", 4}, {"scale", 0.125F},  {"keep_window_size", 2048},
            {"exponential_score", 1}, {"qk_norm", 1},      {"epsilon", 1e-6F}};
}

inline Values fused_cdmoe_values() {
    return {{"num_experts_per_tok", 4}, {"weights_inside", 0}, {"num_routing_heads", 1}, {"mixes_tokens", 1}};
}

// `values` with one of them changed or added.
inline Values with(Values values, const char* name, Value value) {
    for (auto& each : values) {
        if (std::string(each.first) == name) {
            each.second = value;
            return values;
        }
    }
    values.emplace_back(name, value);
    return values;
}

inline Values without(Values values, const std::string& name) {
    Values others;
    for (const auto& each : values) {
        if (each.first != name) {
            others.push_back(each);
        }
    }
    return others;
}

}  // namespace doge::testing
