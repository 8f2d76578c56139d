// What the plugin takes, for those who check a graph without TensorRT.
#pragma once

#include <string>

namespace doge::trt {

// {"namespace", "version", "schema", "operators": [{"name", "attributes": [{"name", "type": "INT" | "FLOAT",
// "expected", "required", "default"}], "inputs": [{"name", "type": "T" | "float32" | "int32", "axes", "only_with"}],
// "outputs": the same with "past", the input whose memory it may have}]}. T is float32, float16 or bfloat16.
const std::string& plugin_fields_json();

}  // namespace doge::trt
