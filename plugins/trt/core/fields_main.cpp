// doge_plugin_fields: prints fields_json.h's JSON.
#include <cstdio>

#include "fields_json.h"

int main() { return std::fputs(doge::trt::plugin_fields_json().c_str(), stdout) < 0 ? 1 : 0; }
