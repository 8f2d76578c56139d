// One node of domain `doge`, without TensorRT: what its attributes say, and what follows for its tensors.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "attributes.h"
#include "signature.h"

namespace doge::trt {

// Once it has read its attributes it never changes, so that all the copies that TensorRT asks for share one.
class Operator {
public:
    Operator() = default;
    Operator(const Operator&) = delete;
    Operator& operator=(const Operator&) = delete;
    virtual ~Operator() = default;

    virtual const char* name() const = 0;

    // The attributes by name, with where they are kept.
    virtual Attributes attributes() = 0;

    // All tensors that the operator can have.
    virtual const Signature& tensors() const = 0;

    // To be called once, before anything below. Throws Problem where an attribute is not as it should be.
    void read(const std::vector<Field>& fields, Phase phase);

    // The tensors that it has with these attributes.
    const Signature& signature() const { return signature_; }

    // What an engine stores; points into this object.
    const std::vector<Field>& stored() const { return stored_; }

    // One line that holds every attribute: to be shown, and to tell nodes apart in a timing cache.
    const std::string& text() const { return text_; }

    // Throws Problem where sizes contradict the attributes, each other, or what the kernels cover. Where some are not
    // known yet, looks at the others alone.
    virtual void check(const Sizes& sizes, Type type) const = 0;

    // Bytes of scratch memory at these sizes, enough for smaller ones too.
    virtual size_t workspace_bytes(const Sizes& sizes, Type type) const = 0;

    // Runs on a CUDA stream; pointers in the order of the signature. Gives 0 or a status of doge_status_message.
    virtual int run(const Sizes& sizes, Type type, const void* const* inputs, void* const* outputs, void* workspace,
                    void* stream) const = 0;

    // The size of an output's axis that no input has, or Shape::kUnknown.
    virtual int64_t told(Axis, const Sizes&) const { return Shape::kUnknown; }

    // The input whose memory TensorRT is told that the output has, or -1. The caller may share memory without that.
    virtual int32_t aliased_input(int32_t) const { return -1; }

protected:
    // Throws Problem where attributes that are right one by one contradict each other.
    virtual void check_attributes() const {}

    // Whether the shapes told the size of every axis there is.
    bool complete(const Sizes& sizes) const;

private:
    Signature signature_;
    std::vector<Field> stored_;
    std::string text_;
};

using MakeOperator = std::unique_ptr<Operator> (*)();

std::unique_ptr<Operator> make_dynamic_mask_attention();
std::unique_ptr<Operator> make_fused_dynamic_mask_attention();
std::unique_ptr<Operator> make_cdmoe();
std::unique_ptr<Operator> make_fused_cdmoe();

inline constexpr std::array<MakeOperator, 4> kOperators = {make_dynamic_mask_attention, make_cdmoe,
                                                           make_fused_dynamic_mask_attention, make_fused_cdmoe};

}  // namespace doge::trt
