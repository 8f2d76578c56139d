// Runs an example as an engine does: built, stored, made again from what was stored, attached to a context, enqueued.
#pragma once

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "example.h"
#include "mocks.h"

namespace doge::testing {

// Where the tensors of a run lie.
class Device {
public:
    virtual ~Device() = default;
    virtual void* allocate(size_t bytes) = 0;  // stays until the device goes
    virtual void upload(void* to, const Memory& from) = 0;
    virtual void download(Memory& to, const void* from) = 0;
    virtual cudaStream_t stream() = 0;
};

// In the memory of the CPU, with a stream that is there only to be handed on.
class Host final : public Device {
public:
    void* allocate(size_t bytes) override {
        // The interface asks for 16 bytes of tensors; a device gives 256.
        memories_.push_back(Owned(std::aligned_alloc(256, (bytes + 255) / 256 * 256), std::free));
        return std::memset(memories_.back().get(), 0xFF, bytes);
    }
    void upload(void* to, const Memory& from) override { std::memcpy(to, from.data(), from.size()); }
    void download(Memory& to, const void* from) override { std::memcpy(to.data(), from, to.size()); }
    cudaStream_t stream() override { return reinterpret_cast<cudaStream_t>(this); }

private:
    using Owned = std::unique_ptr<void, void (*)(void*)>;

    std::vector<Owned> memories_;
};

class NodeRun {
public:
    // With `in_place`, an output that may share the memory of an input does.
    NodeRun(nvinfer1::IPluginCreatorV3One& creator, const Example& example, Device& device, bool in_place)
        : example_(example),
          device_(device),
          built_(create(creator, example.attributes)),
          attached_(nullptr),
          input_descs_(descs(example.inputs)),
          output_descs_(descs(example.outputs)) {
        const Made runtime(
            creator.createPlugin("engine", built_.runtime().getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
        attached_ = Made(runtime.runtime().attachToContext(nullptr));
        for (const Memory& data : example.input_data) {
            inputs_.push_back(device.allocate(data.size()));
        }
        for (size_t output = 0; output < example.outputs.size(); ++output) {
            const int past = example.past[output];
            const bool shares = in_place && past >= 0;
            outputs_.push_back(shares ? inputs_[static_cast<size_t>(past)]
                                      : device.allocate(bytes_of(example.outputs[output])));
        }
        const auto largest = dynamic_descs(example.inputs);
        const size_t bytes = built_.build().getWorkspaceSize(largest.data(), num_inputs(), nullptr, num_outputs());
        // At a multiple of 16 and of nothing more: TensorRT promises no other alignment.
        workspace_ = static_cast<char*>(device.allocate(16 + bytes)) + 16;
        upload(example);
    }

    // The inputs as they were; outputs that have memory of their own hold bytes that are no number of any type.
    void upload(const Example& example) {
        for (size_t output = 0; output < outputs_.size(); ++output) {
            device_.upload(outputs_[output], Memory(bytes_of(example_.outputs[output]), '\xFF'));
        }
        for (size_t input = 0; input < inputs_.size(); ++input) {
            device_.upload(inputs_[input], example.input_data[input]);
        }
    }

    int32_t shape_change() {
        return attached_.runtime().onShapeChange(input_descs_.data(), num_inputs(), output_descs_.data(),
                                                 num_outputs());
    }

    int32_t enqueue() {
        return attached_.runtime().enqueue(input_descs_.data(), output_descs_.data(), inputs_.data(), outputs_.data(),
                                           workspace_, device_.stream());
    }

    std::vector<Memory> outputs() {
        std::vector<Memory> data;
        for (size_t output = 0; output < outputs_.size(); ++output) {
            data.emplace_back(bytes_of(example_.outputs[output]));
            device_.download(data.back(), outputs_[output]);
        }
        return data;
    }

private:
    int32_t num_inputs() const { return static_cast<int32_t>(example_.inputs.size()); }
    int32_t num_outputs() const { return static_cast<int32_t>(example_.outputs.size()); }

    const Example& example_;
    Device& device_;
    Made built_, attached_;
    std::vector<nvinfer1::PluginTensorDesc> input_descs_, output_descs_;
    std::vector<void*> inputs_, outputs_;
    void* workspace_;
};

inline void check_outputs(const Example& example, const std::vector<Memory>& seen, const std::string& how) {
    for (size_t output = 0; output < seen.size(); ++output) {
        const double error = error_of(example, seen, output);
        std::ostringstream text;
        text << example.name << ", " << how << ", output " << output << ": error " << error;
        check(error <= error_limit(example, output), __FILE__, __LINE__, text.str());
    }
}

}  // namespace doge::testing
