#include "doge.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>

#include <nlohmann/json.hpp>

namespace doge_sample {

namespace {

// The longest piece of a prompt that one run reads: it bounds the memory of attention.
constexpr int64_t kPiece = 256;
const std::string kPast = "past_key_values.";

nlohmann::json read_json(const std::string& path) {
    std::ifstream stream(path);
    if (!stream) throw std::invalid_argument(path + " cannot be read: export the folder with doge-export onnx");
    auto content = nlohmann::json::parse(stream, nullptr, false);
    if (!content.is_object()) throw std::invalid_argument(path + " is damaged: export the folder again");
    return content;
}

Ort::SessionOptions options_of(int threads) {
    Ort::SessionOptions options;
    if (threads > 0) options.SetIntraOpNumThreads(threads);
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    return options;
}

std::vector<const char*> pointers(const std::vector<std::string>& names) {
    std::vector<const char*> found;
    for (const auto& name : names) found.push_back(name.c_str());
    return found;
}

}  // namespace

Model find_model(const std::string& folder, const std::string& precision) {
    const auto manifest = read_json(folder + "/doge_export.json");
    if (manifest.value("target", "") != "portable") {
        throw std::invalid_argument(folder + " is for another target: export it with --target portable");
    }
    Model model{"", manifest.at("max_length"), manifest.at("chunkable_length"), {}};
    for (const auto& [file, graph] : manifest.at("graphs").items()) {
        if (graph.value("precision", "") == precision) model.file = folder + "/" + file;
    }
    if (model.file.empty()) {
        throw std::invalid_argument(folder + " has no " + precision + " graph: export it with --precision " + precision);
    }
    const auto config = read_json(folder + "/generation_config.json");
    const auto eos = config.find("eos_token_id");
    if (eos != config.end() && eos->is_array()) model.eos = eos->get<std::vector<int64_t>>();
    if (eos != config.end() && eos->is_number()) model.eos = {eos->get<int64_t>()};
    return model;
}

Doge::Doge(const Model& model, int threads)
    : model_(model), environment_(ORT_LOGGING_LEVEL_ERROR, "doge"),
      session_(environment_, model.file.c_str(), options_of(threads)) {
    for (size_t index = 0; index < session_.GetInputCount(); ++index) {
        const std::string name = session_.GetInputNameAllocated(index, allocator_).get();
        if (name.rfind(kPast, 0) != 0) continue;
        const auto info = session_.GetInputTypeInfo(index);
        const auto tensor = info.GetTensorTypeAndShapeInfo();
        auto shape = tensor.GetShape();  // batch, key/value heads, past tokens, head size
        shape[0] = 1, shape[2] = 0;
        empty_shapes_.push_back(shape);
        types_.push_back(tensor.GetElementType());
        inputs_.push_back(name);
        outputs_.push_back("present." + name.substr(kPast.size()));
    }
    vocabulary_ = session_.GetOutputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape().back();
}

void Doge::generate(const std::vector<int64_t>& prompt, int64_t max_new_tokens,
                    const std::function<bool(int64_t)>& receive) {
    const auto length = static_cast<int64_t>(prompt.size());
    if (prompt.empty()) throw std::invalid_argument("the prompt is empty: give at least one token");
    if (length >= model_.max_length) {
        throw std::invalid_argument("the prompt has " + std::to_string(length) + " tokens, and this model holds " +
                                    std::to_string(model_.max_length) + ": shorten it");
    }
    for (const int64_t id : prompt) {
        if (id < 0 || id >= vocabulary_) {
            throw std::invalid_argument("token " + std::to_string(id) + " is none: ids go from 0 to " +
                                        std::to_string(vocabulary_ - 1));
        }
    }
    mask_.clear();
    caches_.clear();
    for (size_t cache = 0; cache < types_.size(); ++cache) {
        const auto& shape = empty_shapes_[cache];
        caches_.push_back(Ort::Value::CreateTensor(allocator_, shape.data(), shape.size(), types_[cache]));
    }
    const int64_t piece = length <= model_.chunkable_length ? kPiece : length;
    int64_t token = 0;
    for (int64_t start = 0; start < length; start += piece) {
        token = read({prompt.begin() + start, prompt.begin() + std::min(start + piece, length)});
    }
    const int64_t count = std::min(max_new_tokens, model_.max_length - length);
    for (int64_t written = 0; written < count; ++written) {
        if (written > 0) token = read({token});
        const bool ends = std::find(model_.eos.begin(), model_.eos.end(), token) != model_.eos.end();
        if (ends || !receive(token)) return;
    }
}

// Reads ids behind what is cached, and returns the most likely token after them.
int64_t Doge::read(const std::vector<int64_t>& ids) {
    std::vector<int64_t> positions;
    for (size_t index = 0; index < ids.size(); ++index) {
        positions.push_back(static_cast<int64_t>(mask_.size() + index));
    }
    mask_.resize(mask_.size() + ids.size(), 1);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto row = [&memory](const std::vector<int64_t>& numbers) {
        const int64_t shape[] = {1, static_cast<int64_t>(numbers.size())};
        // onnxruntime takes no pointer to const, and leaves inputs as they are.
        return Ort::Value::CreateTensor<int64_t>(memory, const_cast<int64_t*>(numbers.data()), numbers.size(), shape, 2);
    };
    std::vector<Ort::Value> feeds;
    feeds.push_back(row(ids)), feeds.push_back(row(mask_)), feeds.push_back(row(positions));
    for (auto& cache : caches_) feeds.push_back(std::move(cache));
    auto results = session_.Run(Ort::RunOptions{nullptr}, pointers(inputs_).data(), feeds.data(), feeds.size(),
                                pointers(outputs_).data(), outputs_.size());
    for (size_t index = 0; index < caches_.size(); ++index) caches_[index] = std::move(results[index + 1]);
    const float* logits = results[0].GetTensorData<float>();  // of the last token alone, see num_logits_to_keep
    const float* best = std::max_element(logits, logits + vocabulary_);
    if (!std::isfinite(*best)) throw std::runtime_error("the model gives logits that are not finite: its files are damaged");
    return best - logits;
}

}  // namespace doge_sample
