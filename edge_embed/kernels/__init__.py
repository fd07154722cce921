"""The one seam between the runtime and its hot loops: callers import from here and never ask who answers.

``reference`` (numpy) is the meaning of every kernel. Native kernels, where a platform has them, take its place here.
"""

from edge_embed.kernels.reference import (
    EMPTY_ROW,
    add_in_order,
    decode_float16,
    decode_float32,
    decode_int4,
    decode_int8,
    decode_opq,
    decode_pq,
    decode_rq,
    find_row,
    find_rows,
    hash_key,
    hash_keys,
    pool,
    pool_mean,
    scores_by_decoding,
    scores_codes,
    scores_float32,
    scores_int8,
    top_k,
)

__all__ = [
    "EMPTY_ROW",
    "add_in_order",
    "decode_float16",
    "decode_float32",
    "decode_int4",
    "decode_int8",
    "decode_opq",
    "decode_pq",
    "decode_rq",
    "find_row",
    "find_rows",
    "hash_key",
    "hash_keys",
    "pool",
    "pool_mean",
    "scores_by_decoding",
    "scores_codes",
    "scores_float32",
    "scores_int8",
    "top_k",
]
