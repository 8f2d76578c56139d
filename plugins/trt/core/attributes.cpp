#include "attributes.h"

#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "problem.h"

namespace doge::trt {

const Range kFlag{0, 1, "0 or 1"};
const Range kNotNegative{0, INT32_MAX, "0 or more"};
const Range kOneOrMore{1, INT32_MAX, "1 or more"};
const Range kPositive{FLT_MIN, FLT_MAX, "a positive number"};

namespace {

constexpr const char* kSchemaField = "schema";

const char* field_type_name(FieldType type) {
    switch (type) {
        case FieldType::float32: return "float32";
        case FieldType::int32: return "int32";
        case FieldType::text: return "text";
        case FieldType::other: break;
    }
    return "of another type";
}

std::string number_text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

double number(const Attribute& attribute) {
    return std::visit([](auto* value) { return static_cast<double>(*value); }, attribute.value);
}

void copy_number(const Field& field, FieldType type, void* to) {
    const std::string name = field.name;
    if (field.type != type) {
        throw Problem(name + " is " + field_type_name(field.type) + "; " + field_type_name(type) + " expected");
    }
    if (field.length != 1 || field.data == nullptr) {
        const std::string count = field.data == nullptr ? "no value" : std::to_string(field.length) + " values";
        throw Problem(name + " has " + count + "; one expected");
    }
    std::memcpy(to, field.data, sizeof(int32_t));
}

void read(const Attribute& attribute, const Field& field) {
    std::visit([&](auto* value) { copy_number(field, attribute.type(), value); }, attribute.value);
    const double value = number(attribute);
    // Written so that NaN is refused too.
    if (!(value >= attribute.range.lowest && value <= attribute.range.highest)) {
        throw Problem(std::string(attribute.name) + " is " + number_text(value) + "; " + attribute.range.text +
                      " expected");
    }
}

// plugin_version or plugin_namespace: true where the field is `name`; it must say `ours`.
bool names_plugin(const Field& field, const char* name, const char* ours) {
    if (std::strcmp(field.name, name) != 0) {
        return false;
    }
    if (field.type != FieldType::text || field.data == nullptr || field.length < 0) {
        throw Problem(std::string(name) + " is " + field_type_name(field.type) + "; the text '" + ours + "' expected");
    }
    const auto* characters = static_cast<const char*>(field.data);
    const std::string_view text(characters, strnlen(characters, static_cast<size_t>(field.length)));
    if (text != ours) {
        throw Problem(std::string(name) + " is '" + std::string(text) + "'; '" + ours + "' expected");
    }
    return true;
}

void read_schema(const std::vector<Field>& fields) {
    const auto field = std::find_if(fields.begin(), fields.end(),
                                    [](const Field& each) { return std::strcmp(each.name, kSchemaField) == 0; });
    if (field == fields.end()) {
        throw Problem("the engine stores no schema number; it was not built with this plugin");
    }
    int32_t number = 0;
    copy_number(*field, FieldType::int32, &number);
    if (number != kSchemaNumber) {
        throw Problem("the engine was built by a plugin of schema " + std::to_string(number) +
                      ", this one has schema " + std::to_string(kSchemaNumber) + "; build the engine again");
    }
}

std::string known_names(const Attributes& attributes) {
    std::string names;
    for (const Attribute& attribute : attributes) {
        names += (names.empty() ? "" : ", ") + std::string(attribute.name);
    }
    return names;
}

}  // namespace

void read_attributes(const Attributes& attributes, const std::vector<Field>& fields, Phase phase) {
    if (phase == Phase::runtime) {
        read_schema(fields);
    }
    std::vector<bool> seen(attributes.size(), false);
    for (const Field& field : fields) {
        const auto attribute = std::find_if(attributes.begin(), attributes.end(), [&](const Attribute& each) {
            return std::strcmp(each.name, field.name) == 0;
        });
        if (attribute != attributes.end()) {
            const auto index = static_cast<size_t>(attribute - attributes.begin());
            if (seen[index]) {
                throw Problem(std::string(field.name) + " is given twice");
            }
            seen[index] = true;
            read(*attribute, field);
        } else if (!(phase == Phase::runtime && std::strcmp(field.name, kSchemaField) == 0) &&
                   !names_plugin(field, "plugin_version", kPluginVersion) &&
                   !names_plugin(field, "plugin_namespace", kPluginNamespace)) {
            throw Problem("no attribute is called '" + std::string(field.name) + "'; there are " +
                          known_names(attributes));
        }
    }
    for (size_t index = 0; index < attributes.size(); ++index) {
        if (!seen[index] && (attributes[index].required || phase == Phase::runtime)) {
            throw Problem(std::string(attributes[index].name) + " is missing; " + attributes[index].range.text +
                          " expected");
        }
    }
}

std::vector<Field> stored_fields(const Attributes& attributes) {
    std::vector<Field> fields = {{kSchemaField, FieldType::int32, &kSchemaNumber, 1}};
    for (const Attribute& attribute : attributes) {
        const void* data = std::visit([](auto* value) { return static_cast<const void*>(value); }, attribute.value);
        fields.push_back({attribute.name, attribute.type(), data, 1});
    }
    return fields;
}

std::string attributes_text(const Attributes& attributes) {
    std::string text;
    for (const Attribute& attribute : attributes) {
        text += (text.empty() ? "" : " ") + std::string(attribute.name) + "=" + number_text(number(attribute));
    }
    return text;
}

}  // namespace doge::trt
