"""Boards: what is known of them (``profiles``), what a bundle promises on one (``budgets``), whether it holds
(``checking``).
"""
