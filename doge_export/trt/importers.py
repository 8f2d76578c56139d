"""The operators that TensorRT's ONNX parser has an importer for, with the first version that has it.

From onnx-tensorrt's docs/operators.md (10.0, 10.15) and docs/Changelog.md. The parser looks at names, not at domains.
"""

from __future__ import annotations

from doge_export.plugin.tensorrt_versions import MajorMinor

_FIRST = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout
Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
If ImageScaler InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
TRT_AveragePool TRT_Conv TRT_Deconv TRT_FP8QuantizeLinear TRT_FP8DequantizeLinear TRT_INT4QuantizeLinear
TRT_INT4DequantizeLinear TRT_FloorDiv TRT_Gather TRT_MatMul TRT_MaxAverageBlendPool TRT_MaxPool TRT_PluginV2
TRT_RaggedSoftmax TRT_Resize TRT_Scale TRT_Shuffle TRT_Slice TRT_TopK_Min FallbackPluginImporter LocalFunctionImporter
"""

_LATER: dict[str, MajorMinor] = {
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "DistCollective": (11, 0),
    "DFT": (11, 0),
    "Swish": (11, 0),
    "TRT_Attention": (11, 0),
    "TRT_KVCacheUpdate": (11, 0),
    "TRT_MoE": (11, 0),
    "TRT_QuantizedAttention": (10, 14),
}

IMPORTERS: dict[str, MajorMinor] = dict.fromkeys(_FIRST.split(), (10, 0)) | _LATER
"""Operator -> first version with an importer; (10, 0), the oldest list, if the changelog does not mention it."""

_ONNX = (((10, 15), 24, 12), ((10, 11), 23, 11), ((10, 6), 22, 10))
"""First version, newest opset and newest IR version of the ONNX release that it bundles; newest first."""


def importers(version: MajorMinor) -> set[str]:
    """Return the operators that this version has an importer for."""
    return {name for name, since in IMPORTERS.items() if since <= version}


def newest_onnx(version: MajorMinor) -> tuple[int, int]:
    """Return the newest opset of standard operators and the newest IR version that this TensorRT reads."""
    return next((opset, ir_version) for since, opset, ir_version in _ONNX if version >= since)
