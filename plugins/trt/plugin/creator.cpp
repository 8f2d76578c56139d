#include "creator.h"

#include "convert.h"
#include "log.h"
#include "plugin.h"

namespace doge::trt {

Creator::Creator(MakeOperator make) : make_(make) {
    const std::unique_ptr<Operator> specimen = make();
    name_ = specimen->name();
    for (const Attribute& attribute : specimen->attributes()) {
        // Names and types only: values come with the node.
        fields_.push_back(plugin_field(attribute.name, attribute.type(), nullptr, 1));
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* layer, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase phase) noexcept {
    const auto create = [&]() -> Plugin* {
        const std::string where = name_ + (layer != nullptr && *layer != '\0' ? " '" + std::string(layer) + "'" : "");
        return guarded(where.c_str(), static_cast<Plugin*>(nullptr), [&] {
            std::vector<Field> given;
            for (int32_t index = 0; fields != nullptr && index < fields->nbFields; ++index) {
                const nvinfer1::PluginField& field = fields->fields[index];
                given.push_back({field.name, field_type_of(field.type), field.data, field.length});
            }
            std::shared_ptr<Operator> node = make_();
            node->read(given, phase == nvinfer1::TensorRTPhase::kRUNTIME ? Phase::runtime : Phase::build);
            return new Plugin(std::move(node), where);
        });
    };
    return guarded(name_.c_str(), static_cast<Plugin*>(nullptr), create);
}

const nvinfer1::PluginFieldCollection* Creator::getFieldNames() noexcept { return &collection_; }
const char* Creator::getPluginName() const noexcept { return name_.c_str(); }
const char* Creator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kPluginNamespace; }

}  // namespace doge::trt
