#include "plugin.h"

#include <array>

#include "convert.h"
#include "doge/operators.h"
#include "log.h"
#include "problem.h"

namespace doge::trt {
namespace {

constexpr int32_t kSuccess = 0, kFailure = -1;

// The operators' workspaces begin at a multiple of this; TensorRT promises nothing of the kind, so that much more is asked
// for.
constexpr size_t kAlignment = 256;

// No operator has as many inputs; an array of this many needs no allocation on every enqueue.
constexpr int32_t kMaxInputs = 16;

struct Inputs {
    std::array<Tensor, kMaxInputs> tensors;
    Sizes sizes;

    Type type() const { return tensors[0].type; }
};

template <class TensorAt>
Inputs read_inputs(const Signature& signature, int32_t num_inputs, const TensorAt& tensor_at) {
    Inputs inputs;
    for (int32_t input = 0; input < std::min(num_inputs, kMaxInputs); ++input) {
        inputs.tensors[static_cast<size_t>(input)] = tensor_at(input);
    }
    inputs.sizes = sizes_of(signature, inputs.tensors.data(), num_inputs);
    return inputs;
}

// Memory and limits follow from the largest tensors of a profile.
Inputs largest(const Signature& signature, const nvinfer1::DynamicPluginTensorDesc* descs, int32_t num_inputs) {
    return read_inputs(signature, num_inputs,
                       [&](int32_t input) { return tensor_of(descs[input].desc, descs[input].max); });
}

Inputs actual(const Signature& signature, const nvinfer1::PluginTensorDesc* descs, int32_t num_inputs) {
    return read_inputs(signature, num_inputs,
                       [&](int32_t input) { return tensor_of(descs[input], descs[input].dims); });
}

void* aligned(void* workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace);
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

void check_outputs(const Signature& signature, int32_t num_outputs) {
    if (static_cast<size_t>(num_outputs) != signature.outputs.size()) {
        throw Problem(std::to_string(num_outputs) + " outputs; " + std::to_string(signature.outputs.size()) +
                      " expected");
    }
}

}  // namespace

Plugin::Plugin(std::shared_ptr<const Operator> node, const std::string& where) : node_(std::move(node)), where_(where) {
    for (const Field& field : node_->stored()) {
        stored_.push_back(plugin_field(field.name, field.type, field.data, field.length));
    }
    stored_collection_ = {static_cast<int32_t>(stored_.size()), stored_.data()};
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    return guarded(where_.c_str(), static_cast<Plugin*>(nullptr), [&] { return new Plugin(node_, where_); });
}

// A plugin keeps nothing that belongs to a context: sizes come with every call, memory is TensorRT's workspace.
nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const char* Plugin::getPluginName() const noexcept { return node_->name(); }
const char* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kPluginNamespace; }
const char* Plugin::getTimingCacheID() noexcept { return node_->text().c_str(); }
const char* Plugin::getMetadataString() noexcept { return node_->text().c_str(); }

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(node_->signature().outputs.size()); }

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                                   const nvinfer1::DataType* input_types, int32_t num_inputs) const noexcept {
    return guarded(where_.c_str(), kFailure, [&] {
        std::vector<Tensor> inputs(static_cast<size_t>(num_inputs));
        std::transform(input_types, input_types + num_inputs, inputs.begin(),
                       [](nvinfer1::DataType type) { return Tensor{type_of(type), true, {}}; });
        check_types(node_->signature(), inputs.data(), num_inputs);
        check_outputs(node_->signature(), num_outputs);
        for (int32_t output = 0; output < num_outputs; ++output) {
            output_types[output] = data_type_of(output_type(node_->signature(), output, inputs[0].type));
        }
        return kSuccess;
    });
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*,
                                int32_t, nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                nvinfer1::IExprBuilder& expressions) noexcept {
    return guarded(where_.c_str(), kFailure, [&] {
        const Signature& signature = node_->signature();
        // Types are not told here, and no size depends on them.
        const auto tensor_at = [&](int32_t input) { return Tensor{Type::float32, true, shape_of(inputs[input])}; };
        const Sizes sizes = read_inputs(signature, num_inputs, tensor_at).sizes;
        node_->check(sizes, Type::float32);
        check_outputs(signature, num_outputs);
        for (int32_t output = 0; output < num_outputs; ++output) {
            const std::vector<Axis>& axes = signature.outputs[static_cast<size_t>(output)].axes;
            outputs[output].nbDims = static_cast<int32_t>(axes.size());
            for (size_t axis = 0; axis < axes.size(); ++axis) {
                const int64_t told = node_->told(axes[axis], sizes);
                if (told != Shape::kUnknown) {
                    outputs[output].d[axis] = expressions.constant(told);
                    continue;
                }
                const Source source = source_of(signature, axes[axis]);
                outputs[output].d[axis] = inputs[source.input].d[source.axis];
            }
        }
        return kSuccess;
    });
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t num_inputs, int32_t num_outputs) noexcept {
    return guarded(where_.c_str(), false, [&] {
        if (num_inputs != this->num_inputs() || num_outputs != getNbOutputs()) {
            return false;
        }
        // What comes after `position` holds nothing yet.
        std::vector<Tensor> known;
        std::transform(tensors, tensors + position + 1, std::back_inserter(known),
                       [](const auto& tensor) { return tensor_of(tensor.desc, tensor.desc.dims); });
        return supports(node_->signature(), position, known.data());
    });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* descs, int32_t num_inputs,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
    return guarded(where_.c_str(), kFailure, [&] {
        const Inputs inputs = largest(node_->signature(), descs, num_inputs);
        check_types(node_->signature(), inputs.tensors.data(), num_inputs);
        node_->check(inputs.sizes, inputs.type());
        return kSuccess;
    });
}

size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* descs, int32_t num_inputs,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
    return guarded(where_.c_str(), size_t{0}, [&] {
        const Inputs inputs = largest(node_->signature(), descs, num_inputs);
        return node_->workspace_bytes(inputs.sizes, inputs.type()) + kAlignment;
    });
}

int32_t Plugin::getAliasedInput(int32_t output) noexcept {
    return guarded(where_.c_str(), -1, [&] { return node_->aliased_input(output); });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* descs, int32_t num_inputs,
                              const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
    return guarded(where_.c_str(), kFailure, [&] {
        const Inputs inputs = actual(node_->signature(), descs, num_inputs);
        check_types(node_->signature(), inputs.tensors.data(), num_inputs);
        node_->check(inputs.sizes, inputs.type());
        return kSuccess;
    });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
    return guarded(where_.c_str(), kFailure, [&] {
        const Inputs read = actual(node_->signature(), input_descs, num_inputs());
        const int status = node_->run(read.sizes, read.type(), inputs, outputs, aligned(workspace), stream);
        if (status != DOGE_SUCCESS) {
            log_error(where_.c_str(), doge_status_message(status));
        }
        return static_cast<int32_t>(status);
    });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &stored_collection_; }

}  // namespace doge::trt
