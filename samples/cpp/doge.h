// A portable Doge graph in onnxruntime's C++ interface: token ids in, token ids out, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

namespace doge_sample {

// What the manifest of an exported folder, doge_export.json, says about one of its graphs.
struct Model {
    std::string file;           // the graph
    int64_t max_length;         // tokens that prompt and answer hold together
    int64_t chunkable_length;   // a prompt of up to so many tokens may be read in pieces; a longer one is read whole
    std::vector<int64_t> eos;   // tokens that end an answer
};

// Reads the manifest of `folder` and finds its graph of `precision`: fp32, fp16, int8, int4 or q4f16.
// Throws std::invalid_argument where the folder is none, or has no such graph.
Model find_model(const std::string& folder, const std::string& precision);

class Doge {
public:
    // `threads` is the number of threads that compute; 0 leaves it to onnxruntime.
    explicit Doge(const Model& model, int threads = 0);

    // Gives the most likely next token to `receive`, until that returns false, `max_new_tokens` are written, the model
    // is full, or the answer ends. The token that ends it is not given. Throws std::invalid_argument where the prompt
    // is empty, longer than the model, or has ids that are no token.
    void generate(const std::vector<int64_t>& prompt, int64_t max_new_tokens,
                  const std::function<bool(int64_t)>& receive);

private:
    int64_t read(const std::vector<int64_t>& ids);

    Model model_;
    Ort::Env environment_;
    Ort::Session session_;
    Ort::AllocatorWithDefaultOptions allocator_;
    std::vector<std::string> inputs_{"input_ids", "attention_mask", "position_ids"}, outputs_{"logits"};
    std::vector<std::vector<int64_t>> empty_shapes_;
    std::vector<ONNXTensorElementDataType> types_;
    std::vector<Ort::Value> caches_;
    std::vector<int64_t> mask_;  // a 1 for each token read
    int64_t vocabulary_ = 0;
};

}  // namespace doge_sample
