// Makes the plugins of one kind of node.
#pragma once

#include <string>
#include <vector>

#include "operator.h"
#include "tensorrt.h"

namespace doge::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(MakeOperator make);

    // nullptr, and one line in the log, where the fields are not those of such a node.
    nvinfer1::IPluginV3* createPlugin(const char* layer, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

private:
    MakeOperator make_;
    std::string name_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace doge::trt
