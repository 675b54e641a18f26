"""Random weights that are valid blocks of any GGUF type, without a quantiser.

Every bit of the quantised part is random, so that all code points occur; only the float16 scales are chosen, such that
the decoded weights have about the wanted standard deviation and, where the format can, mean zero.
"""

import file_types  # noqa: F401  (teaches gguf)
import gguf
import numpy as np

from numainfer import _core

TYPES = tuple(_core.formats())

# Per type: byte offset of each float16 scale in a block, and its value for a standard deviation of 1.
# A uniform q of n levels deviates by n / sqrt(12); a 6-bit scale of the K types has a mean square of 36.4^2.
_SCALES = {
    "Q4_0": ((0, 1 / 4.61),),
    "Q4_1": ((0, 1 / 4.61), (2, -7.5 / 4.61)),
    "Q5_0": ((0, 1 / 9.23),),
    "Q5_1": ((0, 1 / 9.23), (2, -15.5 / 9.23)),
    "Q8_0": ((0, 1 / 73.9),),
    "Q4_K": ((0, 1 / 265), (2, 7.5 / 265)),
    "Q5_K": ((0, 1 / 531), (2, 15.5 / 531)),
    "Q6_K": ((208, 1 / 1365),),
    "Q2_K": ((80, 1 / 13.9), (82, 1.5 / 13.9)),  # 4-bit scales and minimums
    "Q3_K": ((108, 1 / 43.3),),
    "TQ1_0": ((52, 1 / 0.816),),
    "TQ2_0": ((64, 1 / 1.22),),  # -1 to 2: the mean is half of d
    "Q1_0": ((0, 1),),
    "Q2_0": ((0, 1 / 1.22),),
    "IQ4_NL": ((0, 1 / 68.2),),
    "IQ4_XS": ((0, 1 / 1260),),
    "IQ3_XXS": ((0, 1 / 142),),
    "IQ3_S": ((0, 1 / 140.5),),
    "IQ2_XXS": ((0, 1 / 53.4),),
    "IQ2_XS": ((0, 1 / 56),),
    "IQ2_S": ((0, 1 / 56.4),),
    "IQ1_S": ((0, 1 / 7.2),),
    "IQ1_M": ((48, 1 / 7.2),),
    "IQ4_K": ((0, 1 / 1286),),
    "IQ5_K": ((0, 1 / 1330),),
    "IQ6_K": ((0, 1 / 5110),),
    "IQ3_K": ((0, 1 / 640),),
    "IQ2_K": ((0, 1 / 91),),
    "Q6_0": ((0, 1 / 18.5),),
}
# Types whose scales are bytes: the offset of the first, how many, and the standard deviation for each value of the byte.
_E4M3 = [m if e == 0 else (8 + m) * 2 ** (e - 1) for e in range(16) for m in range(8)][:-1]
_BYTES = {
    "MXFP4": (0, 1, 5.85 * np.exp2(np.arange(256.0) - 128)),
    "NVFP4": (0, 4, 5.85 / 1024 * np.array(_E4M3)),
}
# Types whose rows begin with a scale: what it is, and its value for a standard deviation of 1.
_HEADS = {"IQ4_KS": (np.float32, 1 / 5060), "IQ5_KS": (np.float32, 1 / 5240), "IQ3_KS": (np.float16, 1 / 330),
          "IQ2_KS": (np.float16, 1 / 180), "IQ2_KL": (np.float16, 1 / 530), "IQ4_KSS": (np.float32, 1 / 5060),
          "IQ1_KT": (np.float32, 1 / 2520), "IQ2_KT": (np.float32, 1 / 2650), "IQ3_KT": (np.float32, 1 / 328),
          "IQ4_KT": (np.float32, 1 / 1370)}  # fmt: skip


def random_weights(rng, rows, columns, tensor_type, std=0.02):
    """Stored form of a random matrix.

    Parameters
    ----------
    rng : numpy.random.Generator
    rows, columns : int
        Outputs and inputs; columns must be a multiple of the type's block.
    tensor_type : str
        One of TYPES.
    std : float
        Standard deviation of the decoded values, roughly.

    Returns
    -------
    ndarray
        float32 or float16 (rows, columns) for F32 and F16, else uint8 (rows, bytes per row): what
        ``GGUFWriter.add_tensor`` takes together with ``raw_dtype``.
    """
    kind = gguf.GGMLQuantizationType[tensor_type]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % block:
        raise ValueError(f"{tensor_type}: {columns} columns, wanted a multiple of {block}")
    if not any(tensor_type in known for known in (_SCALES, _BYTES, _HEADS)):
        values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(std)
        return gguf.quants.quantize(values, kind)
    data = np.frombuffer(rng.bytes(rows * columns // block * size), dtype=np.uint8).reshape(-1, size).copy()
    # Scales differ from block to block, so that a kernel that takes its neighbour's is found out.
    spread = rng.uniform(0.75, 1.25, len(data))
    if tensor_type in _BYTES:
        first, n, stands_for = _BYTES[tensor_type]
        wanted = std * rng.uniform(0.75, 1.25, (len(data), n))
        data[:, first : first + n] = np.searchsorted((stands_for[1:] + stands_for[:-1]) / 2, wanted)
    for offset, unit in _SCALES.get(tensor_type, ()):
        half = (spread * unit * std).astype(np.float16)
        if tensor_type == "IQ1_M":  # a nibble in the upper half of every second byte, the lowest first
            nibbles = half.view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
            data[:, offset + 1 : offset + 8 : 2] = data[:, offset + 1 : offset + 8 : 2] & 15 | (nibbles << 4).astype(np.uint8)
        else:
            data[:, offset : offset + 2] = half.view(np.uint8).reshape(-1, 2)
    data = data.reshape(rows, columns // block * size)
    if tensor_type not in _HEADS:
        return data
    dtype, unit = _HEADS[tensor_type]
    heads = (rng.uniform(0.75, 1.25, (rows, 1)) * unit * std).astype(dtype)
    return np.concatenate([heads.view(np.uint8), data], axis=1)


def fitting_type(tensor_type, columns):
    """``tensor_type``, or Q8_0 / F16 where rows of ``columns`` values do not divide into its blocks."""
    for name in (tensor_type, "Q8_0", "F16"):
        if columns % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] == 0:
            return name
