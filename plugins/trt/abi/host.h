// What TensorRT itself implements and a plugin library calls: the logger and the registry of plugins. These are the two
// whose tables of functions changed from TensorRT 10 to 11 (plugins' own interfaces did not), so both forms are
// declared, under names of our own, and a library asks at run time which TensorRT it is in.
#pragma once

#include <cstdint>
#include <optional>

#include "tensorrt.h"

namespace doge::abi {

enum class Severity : int32_t { internal_error = 0, error = 1, warning = 2, info = 3, verbose = 4 };

// TensorRT 10.
namespace ten {

class Logger {
public:
    virtual void log(Severity severity, const char* line) noexcept = 0;
    virtual ~Logger() = default;
};

class LoggerFinder {
public:
    virtual Logger* findLogger() = 0;

protected:
    virtual ~LoggerFinder() = default;
};

// Its first and last functions concern creators of an older kind.
class Registry {
public:
    virtual bool registerOldCreator(void* creator, const char* its_namespace) noexcept = 0;
    virtual void* const* getOldCreators(int32_t* count) const noexcept = 0;
    virtual void* getOldCreator(const char* name, const char* version, const char* its_namespace) noexcept = 0;

protected:
    virtual ~Registry() noexcept = default;

public:
    virtual void setErrorRecorder(void* recorder) noexcept = 0;
    virtual void* getErrorRecorder() const noexcept = 0;
    virtual bool deregisterOldCreator(const void* creator) noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(const char* path) noexcept = 0;
    virtual void deregisterLibrary(void* library) noexcept = 0;
    virtual bool registerCreator(void* creator, const char* its_namespace) noexcept = 0;
    virtual void* const* getAllCreators(int32_t* count) const noexcept = 0;
    virtual void* getCreator(const char* name, const char* version, const char* its_namespace) noexcept = 0;
};

}  // namespace ten

// TensorRT 11, and TensorRT for RTX 1.7.
namespace eleven {

class Logger : public nvinfer1::IVersionedInterface {
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
    virtual void log(Severity severity, const char* line) noexcept = 0;
};

class LoggerFinder : public nvinfer1::IVersionedInterface {
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
    virtual Logger* findLogger() = 0;
};

class Registry {
protected:
    virtual ~Registry() noexcept = default;

public:
    virtual void setErrorRecorder(void* recorder) noexcept = 0;
    virtual void* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(const char* path) noexcept = 0;
    virtual void deregisterLibrary(void* library) noexcept = 0;
    virtual bool registerCreator(void* creator, const char* its_namespace) noexcept = 0;
    virtual void* const* getAllCreators(int32_t* count) const noexcept = 0;
    virtual void* getCreator(const char* name, const char* version, const char* its_namespace) noexcept = 0;
};

}  // namespace eleven

enum class Generation { ten, eleven };

// The generation of a TensorRT whose getInferLibVersion gives `version` (101600 is 10.16.0; 10701 is TensorRT for RTX
// 1.7.1); nothing for one of which we do not know it.
std::optional<Generation> generation_of_version(int32_t version);

// The generation of the TensorRT that an object belongs to: the library that holds the object's functions is asked.
std::optional<Generation> generation_of(const void* object);

}  // namespace doge::abi
