"""Publishing: from a bundle on the workstation to files that any web server, or a stick, hands to boards.

    signing       keys and signed metadata (The Update Framework): the one module that imports tuf here
    gates         what a bundle must show before a board is offered it
    deltas        shorter ways from what boards have, where they are worth it
    repository    channels, blobs by their digest, all of it written in the order in which it may be read
    commands      ``edge-embed keys`` and ``edge-embed publish``

What a board makes of it stands in ``edge_embed_bundle.updating``.
"""
