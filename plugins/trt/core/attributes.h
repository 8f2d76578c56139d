// The attributes of a node: one table says how each is read, checked, stored in an engine and shown.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace doge::trt {

inline constexpr const char* kPluginNamespace = "doge";
inline constexpr const char* kPluginVersion = "1";
// Of what an engine stores of a node. Raised when a field is added, dropped or changes its meaning.
inline constexpr int32_t kSchemaNumber = 2;

enum class FieldType { float32, int32, text, other };

// TensorRT's PluginField: `length` values of one type; of a text, its characters and the closing NUL.
struct Field {
    const char* name;
    FieldType type;
    const void* data;
    int32_t length;
};

enum class Phase {
    build,   // fields are the node's attributes, as the ONNX parser read them
    runtime  // fields are what stored_fields gave when the engine was built
};

// Values that make sense, and how a message says so.
struct Range {
    double lowest, highest;
    const char* text;
};
extern const Range kFlag, kNotNegative, kOneOrMore, kPositive;

struct Attribute {
    const char* name;
    std::variant<int32_t*, float*> value;  // where it is kept; holds the default before it is read
    Range range;
    bool required;  // where a guessed value would change the numbers

    FieldType type() const { return value.index() == 0 ? FieldType::int32 : FieldType::float32; }
};
using Attributes = std::vector<Attribute>;

// Fills the attributes from the fields; throws Problem on a missing, unknown, repeated, ill-typed or senseless one. Of
// the fields that name the plugin itself (plugin_version, plugin_namespace), those given must be ours.
void read_attributes(const Attributes& attributes, const std::vector<Field>& fields, Phase phase);

// What an engine stores: the schema number, then every attribute. Points to where the attributes are kept.
std::vector<Field> stored_fields(const Attributes& attributes);

// "num_heads=8 scale=0.125 ...": floats in full, so that equal texts mean equal attributes.
std::string attributes_text(const Attributes& attributes);

}  // namespace doge::trt
