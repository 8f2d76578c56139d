# How everything is compiled. Targets link doge_defaults privately.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# Only what a version script names leaves a library.
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
# Libraries and tests lie side by side, so that callers need to know one folder.
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

# Warnings are errors. nvcc hands the host compiler its own generated code, in which -Wextra finds nothing of ours.
add_library(doge_defaults INTERFACE)
target_include_directories(doge_defaults INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/include")
target_compile_options(doge_defaults INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror --Werror=all-warnings>)

# Sets the version script of a shared library: the only names that it exports.
function(doge_export_only target version_script)
    target_link_options(${target} PRIVATE "LINKER:--version-script=${version_script}" "LINKER:-z,defs")
    set_target_properties(${target} PROPERTIES LINK_DEPENDS "${version_script}")
endfunction()
