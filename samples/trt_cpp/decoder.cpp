#include "decoder.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>

namespace doge_sample {
namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
    }
}

void require(bool condition, const std::string& what) {
    if (!condition) {
        throw std::runtime_error(what);
    }
}

std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), "cannot read " + path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

size_t bytes_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16: return 2;
        default: throw std::runtime_error("the engine has a tensor of a type that doge-export does not write");
    }
}

size_t elements(const nvinfer1::Dims& shape) {
    return std::accumulate(shape.d, shape.d + shape.nbDims, size_t{1},
                           [](size_t product, int64_t size) { return product * static_cast<size_t>(size); });
}

nvinfer1::Dims shape_of(std::initializer_list<int64_t> sizes) {
    nvinfer1::Dims shape{};
    shape.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), shape.d);
    return shape;
}

}  // namespace

DeviceBuffer::DeviceBuffer(size_t bytes) {
    check(cudaMalloc(&data_, bytes));
    check(cudaMemset(data_, 0, bytes));
}

void Logger::log(Severity severity, const char* message) noexcept {
    if (severity <= Severity::kWARNING) {
        std::cerr << "TensorRT: " << message << '\n';
    }
}

Decoder::Decoder(const std::string& engine, const std::string& plugin) {
    // The registry refuses a path without a folder; the library must be loaded before the engine that calls it.
    require(plugin.empty() || getPluginRegistry()->loadLibrary(plugin.c_str()) != nullptr,
            "TensorRT does not load the plugin " + plugin);
    const std::vector<char> stored = read_file(engine);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    require(runtime_ != nullptr, "no TensorRT runtime");
    engine_.reset(runtime_->deserializeCudaEngine(stored.data(), stored.size()));
    require(engine_ != nullptr, "TensorRT does not open " + engine);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (const Profile profile : {prefill, decode}) {
        contexts_[profile].reset(engine_->createExecutionContext());
        require(contexts_[profile] != nullptr && contexts_[profile]->setOptimizationProfileAsync(profile, stream_),
                "no execution context");
    }
    allocate();
}

Decoder::~Decoder() { cudaStreamDestroy(stream_); }

// Allocates a buffer for each tensor, sized for one row; a past cache and its present cache share one.
void Decoder::allocate() {
    const nvinfer1::Dims ids = engine_->getProfileShape("input_ids", prefill, nvinfer1::OptProfileSelector::kMAX);
    const nvinfer1::Dims best = engine_->getTensorShape("best_tokens");
    require(best.nbDims == 3 && best.d[2] > 0, "the engine gives no best tokens: build it without --candidates 0");
    candidates_ = best.d[2];
    longest_ = static_cast<size_t>(ids.d[1]);
    max_length_ = static_cast<int32_t>(engine_->getTensorShape("past_key_values.0.key").d[2]);
    for (int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
        const std::string name = engine_->getIOTensorName(index);
        if (starts_with(name, "present.")) {
            continue;
        }
        nvinfer1::Dims shape = engine_->getTensorShape(name.c_str());
        shape.d[0] = 1;
        for (int32_t axis = 1; axis < shape.nbDims; ++axis) {
            if (shape.d[axis] < 0) {
                shape.d[axis] = name == "input_ids" || name == "position_ids" ? ids.d[1] : 1;
            }
        }
        const size_t bytes = elements(shape) * bytes_of(engine_->getTensorDataType(name.c_str()));
        buffers_[name] = std::make_shared<DeviceBuffer>(bytes);
        const std::string past = "past_key_values.";
        if (starts_with(name, past)) {
            buffers_["present." + name.substr(past.size())] = buffers_[name];  // written in place
        }
    }
    if (buffers_.count("new_lengths") != 0) {
        max_length_ = 1 << 24;  // bounded caches: a row may be as long as float32 counts positions
    }
    check(cudaDeviceSynchronize());  // the zeros are written on another stream than the engine's
}

void Decoder::bind(nvinfer1::IExecutionContext& context, int32_t new_tokens) {
    for (const auto& [name, buffer] : buffers_) {
        require(context.setTensorAddress(name.c_str(), buffer->data()), "the engine has no tensor " + name);
        if (engine_->getTensorIOMode(name.c_str()) != nvinfer1::TensorIOMode::kINPUT) {
            continue;
        }
        nvinfer1::Dims shape = engine_->getTensorShape(name.c_str());
        shape.d[0] = 1;
        if (name == "input_ids" || name == "position_ids") {
            shape = shape_of({1, new_tokens});
        } else if (name == "logits_tokens") {
            shape = shape_of({1, 1});
        }
        require(context.setInputShape(name.c_str(), shape), "the engine does not take this many tokens in " + name);
    }
}

void Decoder::upload(const char* name, const std::vector<int32_t>& values) {
    const auto found = buffers_.find(name);
    if (found != buffers_.end()) {  // only some engines take position_ids and new_lengths
        check(cudaMemcpyAsync(found->second->data(), values.data(), values.size() * sizeof(int32_t),
                              cudaMemcpyHostToDevice, stream_));
    }
}

void Decoder::download(const char* name, void* values, size_t bytes) {
    check(cudaMemcpyAsync(values, buffers_.at(name)->data(), bytes, cudaMemcpyDeviceToHost, stream_));
}

int32_t Decoder::forward(const std::vector<int32_t>& tokens) {
    const auto room = static_cast<size_t>(max_length_ - length_);
    require(!tokens.empty() && tokens.size() <= room, "too many tokens for this engine");
    int32_t next = 0;
    for (size_t begin = 0; begin < tokens.size(); begin += longest_) {
        const size_t end = std::min(begin + longest_, tokens.size());
        next = run({tokens.data() + begin, tokens.data() + end});
    }
    return next;
}

int32_t Decoder::run(const std::vector<int32_t>& tokens) {
    const auto new_tokens = static_cast<int32_t>(tokens.size());
    nvinfer1::IExecutionContext& context = *contexts_[new_tokens == 1 ? decode : prefill];
    bind(context, new_tokens);
    std::vector<int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), length_);
    const std::vector<int32_t> past{length_}, last{new_tokens - 1}, real{new_tokens};
    upload("input_ids", tokens);
    upload("position_ids", positions);
    upload("past_lengths", past);
    upload("new_lengths", real);
    upload("logits_tokens", last);
    require(context.enqueueV3(stream_), "the engine did not run");
    std::vector<float> logits(static_cast<size_t>(candidates_));
    std::vector<int32_t> best(logits.size());
    download("best_logits", logits.data(), logits.size() * sizeof(float));
    download("best_tokens", best.data(), best.size() * sizeof(int32_t));
    check(cudaStreamSynchronize(stream_));
    length_ += new_tokens;
    return best[static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())];
}

}  // namespace doge_sample
