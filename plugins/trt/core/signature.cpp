#include "signature.h"

#include <climits>
#include <cstring>

#include "problem.h"

namespace doge::trt {

const char* axis_name(Axis axis) {
    switch (axis) {
        case Axis::batch: return "B";
        case Axis::new_tokens: return "S";
        case Axis::query_width: return "Hq*D";
        case Axis::key_width: return "Hkv*D";
        case Axis::projected_width: return "(Hq+2*Hkv)*D";
        case Axis::num_kv_heads: return "Hkv";
        case Axis::num_score_heads: return "Hs";
        case Axis::capacity: return "C";
        case Axis::head_size: return "D";
        case Axis::half_head_size: return "D/2";
        case Axis::num_score_inputs: return "X";
        case Axis::hidden_size: return "H";
        case Axis::num_routing_heads: return "R";
        case Axis::num_keys: return "K";
        case Axis::routing_width: return "2*R*K";
        case Axis::num_experts: return "E";
    }
    return "?";
}

namespace {

bool is_real(Type type) { return type == Type::float32 || type == Type::float16 || type == Type::bfloat16; }

Type type_of(Element element, Type real) {
    switch (element) {
        case Element::float32: return Type::float32;
        case Element::int32: return Type::int32;
        case Element::real: break;
    }
    return real;
}

const TensorRule& rule_at(const Signature& signature, int32_t position) {
    const auto index = static_cast<size_t>(position), num_inputs = signature.inputs.size();
    return index < num_inputs ? signature.inputs[index] : signature.outputs.at(index - num_inputs);
}

std::string axes_text(const TensorRule& rule) {
    std::string text = "[";
    for (const Axis axis : rule.axes) {
        text += (text.size() == 1 ? "" : ", ") + std::string(axis_name(axis));
    }
    return text + "]";
}

void check_count(const Signature& signature, int32_t num_inputs) {
    if (static_cast<size_t>(num_inputs) != signature.inputs.size()) {
        std::string names;
        for (const TensorRule& rule : signature.inputs) {
            names += (names.empty() ? "" : ", ") + std::string(rule.name);
        }
        throw Problem(std::to_string(num_inputs) + " inputs; " + std::to_string(signature.inputs.size()) +
                      " expected: " + names);
    }
}

[[noreturn]] void throw_shape(const TensorRule& rule, const Tensor& tensor, const std::string& why) {
    throw Problem(std::string(rule.name) + " is " + shape_text(tensor.shape) + "; " + axes_text(rule) + " expected" +
                  why);
}

}  // namespace

int32_t Sizes::known(Axis axis) const {
    const int64_t size = (*this)[axis];
    if (size < 1 || size > INT32_MAX) {
        throw Problem(std::string(axis_name(axis)) + " is " + (size < 0 ? "not known" : std::to_string(size)) +
                      "; a size from 1 to 2147483647 expected");
    }
    return static_cast<int32_t>(size);
}

Sizes sizes_of(const Signature& signature, const Tensor* inputs, int32_t num_inputs) {
    check_count(signature, num_inputs);
    Sizes sizes;
    sizes.values.fill(Shape::kUnknown);
    for (size_t input = 0; input < signature.inputs.size(); ++input) {
        const TensorRule& rule = signature.inputs[input];
        const Shape& shape = inputs[input].shape;
        if (static_cast<size_t>(shape.rank) != rule.axes.size()) {
            throw_shape(rule, inputs[input], "");
        }
        for (size_t axis = 0; axis < rule.axes.size(); ++axis) {
            int64_t& size = sizes.values[static_cast<size_t>(rule.axes[axis])];
            const int64_t seen = shape.axes[axis];
            if (seen == 0) {
                throw_shape(rule, inputs[input],
                            ", none of them empty (a cache has its full capacity, whatever its length)");
            }
            if (size == Shape::kUnknown) {
                size = seen;
            } else if (seen != Shape::kUnknown && seen != size) {
                throw_shape(rule, inputs[input],
                            std::string(" with ") + axis_name(rule.axes[axis]) + " " + std::to_string(size) +
                                ", as in the inputs before it");
            }
        }
    }
    return sizes;
}

bool supports(const Signature& signature, int32_t position, const Tensor* tensors) {
    const Tensor& tensor = tensors[position];
    return tensor.linear && is_real(tensors[0].type) &&
           tensor.type == type_of(rule_at(signature, position).element, tensors[0].type);
}

void check_types(const Signature& signature, const Tensor* inputs, int32_t num_inputs) {
    check_count(signature, num_inputs);
    const TensorRule& first = signature.inputs.front();
    if (!is_real(inputs[0].type)) {
        throw Problem(std::string(first.name) + " is " + type_name(inputs[0].type) +
                      "; float32, float16 or bfloat16 expected");
    }
    for (size_t input = 1; input < signature.inputs.size(); ++input) {
        const TensorRule& rule = signature.inputs[input];
        const Type expected = type_of(rule.element, inputs[0].type);
        if (inputs[input].type != expected) {
            const std::string why = rule.element == Element::real ? std::string(", as ") + first.name : "";
            throw Problem(std::string(rule.name) + " is " + type_name(inputs[input].type) + "; " + type_name(expected) +
                          " expected" + why);
        }
    }
}

Type output_type(const Signature& signature, int32_t output, Type first_input) {
    return type_of(signature.outputs.at(static_cast<size_t>(output)).element, first_input);
}

Source source_of(const Signature& signature, Axis axis) {
    for (size_t input = 0; input < signature.inputs.size(); ++input) {
        const std::vector<Axis>& axes = signature.inputs[input].axes;
        for (size_t index = 0; index < axes.size(); ++index) {
            if (axes[index] == axis) {
                return {static_cast<int32_t>(input), static_cast<int32_t>(index)};
            }
        }
    }
    throw std::logic_error(std::string("no input has an axis ") + axis_name(axis));
}

int32_t past_of(const Signature& signature, int32_t output) {
    const char* past = signature.outputs.at(static_cast<size_t>(output)).past;
    for (size_t input = 0; past != nullptr && input < signature.inputs.size(); ++input) {
        if (std::strcmp(signature.inputs[input].name, past) == 0) {
            return static_cast<int32_t>(input);
        }
    }
    return -1;
}

}  // namespace doge::trt
