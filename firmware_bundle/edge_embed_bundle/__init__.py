"""Bundles and stores: the format on flash, and how a board changes what it serves. Standard library alone.

    bundle      ``Bundle`` opens, checks and maps one          SPEC.md gives every byte
    writer      ``BundleWriter`` makes one, durably
    manifest    what it holds, needs and promises
    store       ``Store`` installs, confirms and rolls back
    state       the rules of that, as values
    slots       where the state stands on flash
    fsops       every write, as one seam

Nothing is imported here: a board's process pays only for what it uses.
"""
