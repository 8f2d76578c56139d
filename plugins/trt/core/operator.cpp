#include "operator.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace doge::trt {

void Operator::read(const std::vector<Field>& fields, Phase phase) {
    const Attributes table = attributes();
    read_attributes(table, fields, phase);
    check_attributes();
    const auto is_on = [&](const char* flag) {
        return std::any_of(table.begin(), table.end(), [&](const Attribute& attribute) {
            return std::strcmp(attribute.name, flag) == 0 && *std::get<int32_t*>(attribute.value) != 0;
        });
    };
    const auto present = [&](const TensorRule& rule) { return rule.only_with == nullptr || is_on(rule.only_with); };
    const Signature& all = tensors();
    std::copy_if(all.inputs.begin(), all.inputs.end(), std::back_inserter(signature_.inputs), present);
    std::copy_if(all.outputs.begin(), all.outputs.end(), std::back_inserter(signature_.outputs), present);
    stored_ = stored_fields(table);
    text_ = attributes_text(table);
}

bool Operator::complete(const Sizes& sizes) const {
    const auto known = [&](Axis axis) { return sizes[axis] != Shape::kUnknown; };
    return std::all_of(signature_.inputs.begin(), signature_.inputs.end(),
                       [&](const TensorRule& rule) { return std::all_of(rule.axes.begin(), rule.axes.end(), known); });
}

}  // namespace doge::trt
