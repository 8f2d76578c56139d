#include "fields_json.h"

#include "operator.h"

namespace doge::trt {
namespace {

// Names here are ours, and hold nothing that JSON would have escaped.
std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string truth(bool value) { return value ? "true" : "false"; }

template <class Each, class Text>
std::string list(const Each& each, const Text& text_of) {
    std::string text;
    for (const auto& item : each) {
        text += (text.empty() ? "" : ", ") + text_of(item);
    }
    return "[" + text + "]";
}

std::string attribute_json(const Attribute& attribute) {
    const bool is_int = attribute.type() == FieldType::int32;
    const std::string value = std::visit([](auto* kept) { return std::to_string(*kept); }, attribute.value);
    return "{\"name\": " + quoted(attribute.name) + ", \"type\": " + quoted(is_int ? "INT" : "FLOAT") +
           ", \"expected\": " + quoted(attribute.range.text) + ", \"required\": " + truth(attribute.required) +
           (attribute.required ? "" : ", \"default\": " + value) + "}";
}

std::string tensor_json(const TensorRule& rule) {
    constexpr const char* element_names[] = {"T", "float32", "int32"};
    return "{\"name\": " + quoted(rule.name) +
           ", \"type\": " + quoted(element_names[static_cast<size_t>(rule.element)]) +
           ", \"axes\": " + list(rule.axes, [](Axis axis) { return quoted(axis_name(axis)); }) +
           (rule.only_with == nullptr ? "" : ", \"only_with\": " + quoted(rule.only_with)) +
           (rule.past == nullptr ? "" : ", \"past\": " + quoted(rule.past)) + "}";
}

std::string operator_json(MakeOperator make) {
    const std::unique_ptr<Operator> specimen = make();
    return "{\"name\": " + quoted(specimen->name()) +
           ",\n  \"attributes\": " + list(specimen->attributes(), attribute_json) +
           ",\n  \"inputs\": " + list(specimen->tensors().inputs, tensor_json) +
           ",\n  \"outputs\": " + list(specimen->tensors().outputs, tensor_json) + "}";
}

}  // namespace

const std::string& plugin_fields_json() {
    static const std::string json = "{\"namespace\": " + quoted(kPluginNamespace) +
                                    ", \"version\": " + quoted(kPluginVersion) +
                                    ", \"schema\": " + std::to_string(kSchemaNumber) +
                                    ", \"operators\": " + list(kOperators, operator_json) + "}\n";
    return json;
}

}  // namespace doge::trt
