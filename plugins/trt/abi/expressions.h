// Sizes of axes while a network is built. The objects are TensorRT's; a plugin reads them and hands them on.
#pragma once

#include <cstdint>

#include "tensors.h"

namespace nvinfer1 {

class IDimensionExpr;

enum class DimensionOperation : int32_t {
    kSUM = 0,
    kPROD = 1,
    kMAX = 2,
    kMIN = 3,
    kSUB = 4,
    kEQUAL = 5,
    kLESS = 6,
    kFLOOR_DIV = 7,
    kCEIL_DIV = 8,
};

// What stands behind the two classes below: TensorRT implements these.
namespace apiv {

class VRoot {
public:
    virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
public:
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const = 0;
};

class VExprBuilder : public VRoot {
public:
    virtual const IDimensionExpr* constant(int64_t value) = 0;
    virtual const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& left,
                                            const IDimensionExpr& right) = 0;
    virtual const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr& optimal,
                                                    const IDimensionExpr& largest) = 0;
};

}  // namespace apiv

class INoCopy {
protected:
    INoCopy() = default;
    INoCopy(const INoCopy&) = delete;
    INoCopy& operator=(const INoCopy&) = delete;
    virtual ~INoCopy() = default;
};

class IDimensionExpr : public INoCopy {
public:
    bool isConstant() const noexcept { return mImpl->isConstant(); }
    int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }
    bool isSizeTensor() const noexcept { return mImpl->isSizeTensor(); }

protected:
    ~IDimensionExpr() noexcept override = default;

    apiv::VDimensionExpr* mImpl = nullptr;
};

class IExprBuilder : public INoCopy {
public:
    const IDimensionExpr* constant(int64_t value) noexcept { return mImpl->constant(value); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& left,
                                    const IDimensionExpr& right) noexcept {
        return mImpl->operation(operation, left, right);
    }

protected:
    ~IExprBuilder() noexcept override = default;

    apiv::VExprBuilder* mImpl = nullptr;
};

struct DimsExprs {
    int32_t nbDims;
    const IDimensionExpr* d[Dims::MAX_DIMS];
};

}  // namespace nvinfer1
