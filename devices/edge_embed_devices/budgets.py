"""Budgets that an exporter declares for a board where its user names none: generous for the numpy kernels, finite."""

from __future__ import annotations

from edge_embed_bundle.manifest import Budgets, LatencyBudget
from edge_embed_devices.profiles import Board

MEMORY_PRIVATE_BYTES = 96 * 2**20

# A scan by the numpy kernels reads a code, writes it as float32 and reads that: 9 bytes of traffic a number.
_SCAN_BYTES_PER_NUMBER = 9
_HEADROOM = 3


def default_budgets(board: Board, operations: tuple[str, ...], scanned_numbers: int, encoding_us: float = 0) -> Budgets:
    """Return budgets for a board.

    Args:
        board: whose memory speed bounds a scan.
        operations: what the bundle answers.
        scanned_numbers: rows times dimensions of the table that a search scans.
        encoding_us: what an encoder is predicted to take for a text or an image; static encoders take next to nothing.
    """
    scan_us = scanned_numbers * _SCAN_BYTES_PER_NUMBER / board.memory_copy_bytes_per_s * 1e6
    search_us = round(5_000 + _HEADROOM * (scan_us + encoding_us), -3)
    encode_us = round(10_000.0 + _HEADROOM * encoding_us, -3)
    latency = {
        "lookup": LatencyBudget(1_000.0, 5_000.0),
        "encode": LatencyBudget(encode_us, 5 * encode_us),
        "encode_image": LatencyBudget(encode_us, 5 * encode_us),
        # One bag of each of a few dozen tables.
        "bag": LatencyBudget(10_000.0, 50_000.0),
        "classify": LatencyBudget(10_000.0, 50_000.0),
        "search": LatencyBudget(search_us, _HEADROOM * search_us),
    }
    memory_bytes = min(MEMORY_PRIVATE_BYTES, board.ram_bytes // 4)
    return Budgets(board.name, memory_bytes, {name: latency[name] for name in operations})
