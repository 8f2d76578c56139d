// The plugin as TensorRT sees it while it builds: everything but the run itself.
#include <cstring>

#include "check.h"
#include "creator.h"
#include "doge/operators.h"
#include "log.h"
#include "mocks.h"
#include "tensors.h"

using namespace doge::testing;
using namespace doge::trt;
namespace abi = doge::abi;
using nvinfer1::TensorRTPhase;

// Sizes of the workspace that tell what they were asked for.
size_t doge_attention_workspace_bytes(const doge_attention_params* p) {
    return static_cast<size_t>(p->batch) * 1000000 + static_cast<size_t>(p->new_tokens);
}
size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params* p) { return static_cast<size_t>(p->tokens); }
int doge_attention(const doge_attention_params*, void*, size_t, void*) { return DOGE_BAD_WORKSPACE; }
int doge_cdmoe(const doge_cdmoe_params*, void*, size_t, void*) { return DOGE_SUCCESS; }

namespace {

Creator attention_creator(make_dynamic_mask_attention), cdmoe_creator(make_cdmoe);
Logger logger;

void identity() {
    CHECK_EQUAL(attention_creator.getPluginName(), std::string("DynamicMaskAttention"));
    CHECK_EQUAL(cdmoe_creator.getPluginName(), std::string("CDMoE"));
    CHECK_EQUAL(attention_creator.getInterfaceInfo().kind, std::string("PLUGIN CREATOR_V3ONE"));
    for (Creator* creator : {&attention_creator, &cdmoe_creator}) {
        CHECK_EQUAL(creator->getPluginVersion(), std::string("1"));
        CHECK_EQUAL(creator->getPluginNamespace(), std::string("doge"));
        const Made made = create(*creator, creator == &cdmoe_creator ? cdmoe_values() : attention_values());
        CHECK_EQUAL(made.core().getPluginName(), std::string(creator->getPluginName()));
        CHECK_EQUAL(made.core().getPluginVersion(), std::string("1"));
        CHECK_EQUAL(made.core().getPluginNamespace(), std::string("doge"));
        CHECK_EQUAL(made.core().getInterfaceInfo().kind, std::string("PLUGIN_V3ONE_CORE"));
        CHECK_EQUAL(made.build().getInterfaceInfo().kind, std::string("PLUGIN_V3ONE_BUILD"));
        CHECK_EQUAL(made.build().getInterfaceInfo().major, 2);  // IPluginV3OneBuildV2: has aliases
        CHECK_EQUAL(made.runtime().getInterfaceInfo().kind, std::string("PLUGIN_V3ONE_RUNTIME"));
    }
}

std::string field_names(Creator& creator) {
    std::string text;
    const nvinfer1::PluginFieldCollection* fields = creator.getFieldNames();
    for (int32_t index = 0; index < fields->nbFields; ++index) {
        const nvinfer1::PluginField& field = fields->fields[index];
        text += std::string(field.name) + (field.type == nvinfer1::PluginFieldType::kINT32 ? ":int " : ":float ");
        CHECK_EQUAL(field.length, 1);
    }
    return text;
}

void fields() {
    CHECK_EQUAL(field_names(attention_creator),
                "num_heads:int kv_num_heads:int scale:float keep_window_size:int bounded:int alias_kv_cache:int ");
    CHECK_EQUAL(field_names(cdmoe_creator), "num_experts_per_tok:int weights_inside:int ");
}

// Inputs of which no two axes are the same object, so that an output tells where its sizes come from.
struct Expressions {
    explicit Expressions(const std::vector<Tensor>& tensors) {
        for (const Tensor& tensor : tensors) {
            nvinfer1::DimsExprs expressions{};
            expressions.nbDims = tensor.shape.rank;
            for (int32_t axis = 0; axis < tensor.shape.rank; ++axis) {
                expressions.d[axis] = &dimensions.emplace_back(tensor.shape.axes[axis]);
            }
            inputs.push_back(expressions);
        }
    }

    std::deque<Dimension> dimensions;
    std::vector<nvinfer1::DimsExprs> inputs;
};

int32_t output_shapes(const Made& made, const Expressions& given, std::vector<nvinfer1::DimsExprs>& outputs) {
    ExprBuilder builder;
    outputs.assign(static_cast<size_t>(made.build().getNbOutputs()), {});
    const int32_t status =
        made.build().getOutputShapes(given.inputs.data(), static_cast<int32_t>(given.inputs.size()), nullptr, 0,
                                     outputs.data(), made.build().getNbOutputs(), builder);
    CHECK_EQUAL(builder.asked(), 0);
    return status;
}

// outputs[output] has the very sizes of the input's axes.
void check_same(const Expressions& given, const nvinfer1::DimsExprs& output, size_t input) {
    CHECK_EQUAL(output.nbDims, given.inputs[input].nbDims);
    for (int32_t axis = 0; axis < output.nbDims; ++axis) {
        CHECK_EQUAL(output.d[axis]->getConstantValue(), given.inputs[input].d[axis]->getConstantValue());
    }
}

void shapes() {
    const Made made = create(attention_creator, bounded_values());
    CHECK_EQUAL(made.build().getNbOutputs(), 5);
    CHECK_EQUAL(create(attention_creator, attention_values()).build().getNbOutputs(), 4);
    CHECK_EQUAL(create(cdmoe_creator, cdmoe_values()).build().getNbOutputs(), 1);

    std::vector<nvinfer1::DimsExprs> outputs;
    const Expressions known(attention_inputs({}, Type::float16, true));
    CHECK_EQUAL(output_shapes(made, known, outputs), 0);
    const size_t sources[] = {0, 4, 5, 6, 9};
    for (size_t output = 0; output < 5; ++output) {
        check_same(known, outputs[output], sources[output]);
    }

    const Expressions moe(cdmoe_inputs({}, Type::float16));
    CHECK_EQUAL(output_shapes(create(cdmoe_creator, cdmoe_values()), moe, outputs), 0);
    check_same(moe, outputs[0], 0);
}

void symbolic_shapes() {
    AttentionSizes open;
    open.batch = open.new_tokens = open.capacity = Shape::kUnknown;
    const Expressions given(attention_inputs(open, Type::float16, true));
    std::vector<nvinfer1::DimsExprs> outputs;
    CHECK_EQUAL(output_shapes(create(attention_creator, bounded_values()), given, outputs), 0);
    // B and S are the query's; the capacity is the caches'.
    CHECK(outputs[0].d[0] == given.inputs[0].d[0]);
    CHECK(outputs[0].d[1] == given.inputs[0].d[1]);
    for (const size_t cache : {1, 2, 3, 4}) {
        CHECK(outputs[cache].d[0] == given.inputs[0].d[0]);
        CHECK(outputs[cache].d[2] == given.inputs[4].d[2]);
        CHECK(!outputs[cache].d[2]->isConstant());
    }
    CHECK_EQUAL(outputs[1].d[3]->getConstantValue(), 64);
}

void wrong_shapes() {
    AttentionSizes sizes;
    sizes.num_heads = 16;
    std::vector<nvinfer1::DimsExprs> outputs;
    const Made made = create(attention_creator, attention_values());
    CHECK(output_shapes(made, Expressions(attention_inputs(sizes, Type::float16)), outputs) != 0);
    CHECK_EQUAL(logger.taken(),
                "doge: DynamicMaskAttention 'layer': query is 1024 wide; num_heads 8 times head size 64 expected");
    CHECK(output_shapes(made, Expressions(attention_inputs({}, Type::float16, true)), outputs) != 0);
    CHECK_EQUAL(
        logger.taken(),
        "doge: DynamicMaskAttention 'layer': 10 inputs; 8 expected: query, key, value, score, past_key, past_value, "
        "past_score, past_lengths");
    const Expressions given(attention_inputs({}, Type::float16));
    ExprBuilder builder;
    CHECK(made.build().getOutputShapes(given.inputs.data(), 8, nullptr, 0, outputs.data(), 3, builder) != 0);
    CHECK_EQUAL(logger.taken(), "doge: DynamicMaskAttention 'layer': 3 outputs; 4 expected");
}

void types() {
    const Made made = create(attention_creator, bounded_values());
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16}) {
        std::vector<nvinfer1::DataType> inputs, outputs(5);
        for (const Tensor& tensor : attention_inputs({}, type, true)) {
            inputs.push_back(data_type(tensor.type));
        }
        CHECK_EQUAL(made.build().getOutputDataTypes(outputs.data(), 5, inputs.data(), 10), 0);
        const std::vector<Tensor> expected = attention_outputs({}, type, true);
        for (size_t output = 0; output < 5; ++output) {
            CHECK(outputs[output] == data_type(expected[output].type));
        }
        inputs[3] = nvinfer1::DataType::kINT64;
        CHECK(made.build().getOutputDataTypes(outputs.data(), 5, inputs.data(), 10) != 0);
        CHECK_EQUAL(logger.taken(), "doge: DynamicMaskAttention 'layer': score is int64; float32 expected");
    }
}

// All types and formats that TensorRT has, position by position as it asks: three combinations are left, one a T.
void formats() {
    const std::pair<Made, int32_t> nodes[] = {
        {create(attention_creator, attention_values()), 8},
        {create(attention_creator, bounded_values()), 10},
        {create(cdmoe_creator, cdmoe_values()), 5},
    };
    for (const auto& [made, num_inputs] : nodes) {
        const int32_t num_outputs = made.build().getNbOutputs();
        using Combination = std::vector<nvinfer1::DynamicPluginTensorDesc>;
        std::vector<Combination> kept = {{}};
        for (int32_t position = 0; position < num_inputs + num_outputs; ++position) {
            std::vector<Combination> longer;
            for (const Combination& before : kept) {
                for (int32_t type = 0; type < 12; ++type) {
                    for (int32_t format = 0; format < 13; ++format) {
                        Combination tensors = before;
                        nvinfer1::DynamicPluginTensorDesc tensor{};
                        tensor.desc.type = static_cast<nvinfer1::DataType>(type);
                        tensor.desc.format = static_cast<nvinfer1::TensorFormat>(format);
                        tensors.push_back(tensor);
                        if (made.build().supportsFormatCombination(position, tensors.data(), num_inputs, num_outputs)) {
                            longer.push_back(tensors);
                        }
                    }
                }
            }
            kept = longer;
        }
        CHECK_EQUAL(kept.size(), 3U);
        for (const Combination& combination : kept) {
            CHECK(combination[0].desc.format == nvinfer1::TensorFormat::kLINEAR);
            CHECK(combination[static_cast<size_t>(num_inputs)].desc.type == combination[0].desc.type);
        }
        // With another number of inputs than ours, nothing is.
        CHECK(!made.build().supportsFormatCombination(0, kept[0].data(), num_inputs + 1, num_outputs));
    }
}

void workspace() {
    const auto inputs = dynamic_descs(attention_inputs({}, Type::float16));
    const Made made = create(attention_creator, attention_values());
    CHECK_EQUAL(made.build().getWorkspaceSize(inputs.data(), 8, nullptr, 4), 2000003U + 256);
    const auto tables = dynamic_descs(cdmoe_inputs({}, Type::float32));
    CHECK_EQUAL(create(cdmoe_creator, cdmoe_values()).build().getWorkspaceSize(tables.data(), 5, nullptr, 1),
                6U + 256);
}

void configured() {
    const Made made = create(attention_creator, bounded_values());
    CHECK_EQUAL(
        made.build().configurePlugin(dynamic_descs(attention_inputs({}, Type::float16, true)).data(), 10, nullptr, 5),
        0);
    AttentionSizes sizes;
    sizes.capacity = 1024;
    const std::vector<Tensor> inputs = attention_inputs(sizes, Type::float16, true);
    const std::string message =
        "doge: DynamicMaskAttention 'layer': a bounded cache needs keep_window_size (2048) equal to capacity (1024)";
    CHECK(made.build().configurePlugin(dynamic_descs(inputs).data(), 10, nullptr, 5) != 0);
    CHECK_EQUAL(logger.taken(), message);
    CHECK(made.runtime().onShapeChange(descs(inputs).data(), 10, nullptr, 5) != 0);
    CHECK_EQUAL(logger.taken(), message);
    CHECK_EQUAL(made.runtime().onShapeChange(descs(attention_inputs({}, Type::float16, true)).data(), 10, nullptr, 5),
                0);
    // A size that only a run tells is no size to run with.
    sizes.batch = Shape::kUnknown;
    std::vector<nvinfer1::PluginTensorDesc> open = descs(attention_inputs(sizes, Type::float16, true));
    CHECK(made.runtime().enqueue(open.data(), nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
    CHECK_EQUAL(logger.taken(),
                "doge: DynamicMaskAttention 'layer': B is not known; a size from 1 to 2147483647 expected");
}

void choices() {
    const Made plain = create(attention_creator, attention_values()),
               bounded = create(attention_creator, bounded_values());
    for (const Made* made : {&plain, &bounded}) {
        CHECK_EQUAL(made->build().getNbTactics(), 0);
        CHECK_EQUAL(made->runtime().setTactic(0), 0);
        CHECK_EQUAL(made->build().getTimingCacheID(), std::string(made->build().getMetadataString()));
    }
    CHECK(std::string(plain.build().getTimingCacheID()) != bounded.build().getTimingCacheID());
    CHECK_EQUAL(create(cdmoe_creator, cdmoe_values()).build().getTimingCacheID(),
                std::string("num_experts_per_tok=4 weights_inside=0"));
    const int32_t none[] = {-1, -1, -1, -1, -1}, caches[] = {-1, 4, 5, 6, 9};
    for (int32_t output = 0; output < 4; ++output) {
        CHECK_EQUAL(plain.build().getAliasedInput(output), none[output]);
    }
    for (int32_t output = 0; output < 5; ++output) {
        CHECK_EQUAL(bounded.build().getAliasedInput(output), caches[output]);
    }
    CHECK_EQUAL(bounded.build().getAliasedInput(5), -1);
    CHECK(!logger.taken().empty());
}

std::string bytes(const nvinfer1::PluginFieldCollection& collection) {
    std::string text;
    for (int32_t index = 0; index < collection.nbFields; ++index) {
        const nvinfer1::PluginField& field = collection.fields[index];
        text += std::string(field.name) + char(field.type) + char(field.length);
        text.append(static_cast<const char*>(field.data), 4);
    }
    return text;
}

void serialised() {
    for (const auto& [creator, values] : {std::pair<Creator*, Values>{&attention_creator, attention_values()},
                                          {&attention_creator, bounded_values()},
                                          {&cdmoe_creator, cdmoe_values()}}) {
        std::string stored;
        std::unique_ptr<nvinfer1::IPluginV3> again;
        {
            const Made made = create(*creator, values);
            stored = bytes(*made.runtime().getFieldsToSerialize());
            again.reset(
                creator->createPlugin("engine", made.runtime().getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
        }
        // The first one is gone: what is left owns what it points to. A clone does, too, once its origin is gone.
        const Made runtime(again.release());
        CHECK_EQUAL(bytes(*runtime.runtime().getFieldsToSerialize()), stored);
        Made cloned(runtime.plugin->clone());
        cloned = Made(cloned.runtime().attachToContext(nullptr));
        CHECK_EQUAL(bytes(*cloned.runtime().getFieldsToSerialize()), stored);
        CHECK_EQUAL(cloned.build().getMetadataString(), std::string(runtime.build().getMetadataString()));
    }
    // The attributes of a node are not what an engine stores.
    CHECK(!create(cdmoe_creator, cdmoe_values(), TensorRTPhase::kRUNTIME));
    CHECK_EQUAL(logger.taken(),
                "doge: CDMoE 'layer': the engine stores no schema number; it was not built with this plugin");
}

void bad_attributes() {
    CHECK(!create(attention_creator, with(attention_values(), "num_heads", 6)));
    CHECK_EQUAL(logger.taken(),
                "doge: DynamicMaskAttention 'layer': num_heads is 6; a multiple of kv_num_heads 4 expected");
    CHECK(!create(cdmoe_creator, with(cdmoe_values(), "plugin_version", "2")));
    CHECK_EQUAL(logger.taken(), "doge: CDMoE 'layer': plugin_version is '2'; '1' expected");
    CHECK(create(cdmoe_creator, with(with(cdmoe_values(), "plugin_version", "1"), "plugin_namespace", "doge")).plugin !=
          nullptr);

    // What no parser would send, but a caller of the registry may.
    CHECK(cdmoe_creator.createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr);
    CHECK_EQUAL(logger.taken(), "doge: CDMoE: num_experts_per_tok is missing; 1 or more expected");
    const int64_t wide = 4;
    const nvinfer1::PluginField field("num_experts_per_tok", &wide, nvinfer1::PluginFieldType::kINT64, 1);
    const nvinfer1::PluginFieldCollection collection{1, &field};
    CHECK(cdmoe_creator.createPlugin("layer", &collection, TensorRTPhase::kBUILD) == nullptr);
    CHECK_EQUAL(logger.taken(), "doge: CDMoE 'layer': num_experts_per_tok is of another type; int32 expected");
    CHECK(logger.all_errors);
}

// What a run reports is told and handed on.
void failed_run() {
    const auto inputs = descs(attention_inputs({}, Type::float16));
    const void* pointers[8] = {};
    void* outputs[4] = {};
    const Made made = create(attention_creator, attention_values());
    CHECK_EQUAL(made.runtime().enqueue(inputs.data(), nullptr, pointers, outputs, nullptr, nullptr),
                DOGE_BAD_WORKSPACE);
    CHECK_EQUAL(logger.taken(),
                std::string("doge: DynamicMaskAttention 'layer': ") + doge_status_message(DOGE_BAD_WORKSPACE));
}

// TensorRT 10's logger has another table of functions than TensorRT 11's; of one that is older still we know nothing.
void logger_of_any_generation() {
    LoggerOfTen of_ten;
    LoggerFinderOfTen finder_of_ten(&of_ten);
    LoggerFinder finder(&logger);
    const std::string line = "doge: CDMoE 'layer': num_experts_per_tok is missing; 1 or more expected";
    for (const int32_t version : {100900, 101601}) {
        tensorrt_version = version;
        set_logger_finder(&finder_of_ten);
        CHECK(!create(cdmoe_creator, {}));
        CHECK_EQUAL(of_ten.taken(), line);
    }
    CHECK(of_ten.all_errors);
    for (const int32_t version : {110000, 110401, 10701}) {  // the last is TensorRT for RTX 1.7.1
        tensorrt_version = version;
        set_logger_finder(&finder);
        CHECK(!create(cdmoe_creator, {}));
        CHECK_EQUAL(logger.taken(), line);
    }
    CHECK(!abi::generation_of_version(8601));
    CHECK(!abi::generation_of_version(10600));
}

// Without a logger, or with a finder that finds none, a message goes to stderr: one line.
void without_logger(const char* file) {
    LoggerFinder empty_handed(nullptr);
    for (void* finder : {static_cast<void*>(nullptr), static_cast<void*>(&empty_handed)}) {
        set_logger_finder(finder);
        CHECK(std::freopen(file, "w", stderr) != nullptr);
        CHECK(!create(cdmoe_creator, {}));
        std::fflush(stderr);
        char seen[256] = {};
        std::FILE* read = std::fopen(file, "r");
        CHECK(read != nullptr && std::fread(seen, 1, sizeof seen - 1, read) > 0);
        std::fclose(read);
        CHECK_EQUAL(seen, std::string("doge: CDMoE 'layer': num_experts_per_tok is missing; 1 or more expected\n"));
    }
    std::remove(file);
}

}  // namespace

int main(int, char** arguments) {
    LoggerFinder finder(&logger);
    set_logger_finder(&finder);
    identity();
    fields();
    shapes();
    symbolic_shapes();
    wrong_shapes();
    types();
    formats();
    workspace();
    configured();
    choices();
    serialised();
    bad_attributes();
    failed_run();
    CHECK_EQUAL(logger.taken(), "");
    logger_of_any_generation();
    without_logger((std::string(arguments[0]) + ".stderr").c_str());
    return outcome();
}
