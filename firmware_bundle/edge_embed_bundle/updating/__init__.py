"""Updates from a repository of static files: what is trusted, what is taken, how it arrives.

    releases    what a channel offers, as values
    planning    which release this device takes, and what it has to fetch for it
    sites       where static files come from: a web server, a folder, a stick
    fetching    a file, frame by frame, every one verified
    trust       the metadata, by The Update Framework: the one module that imports tuf
    records     what a store remembers of it: trusted metadata, the last outcome
    update      all of it, in the order that never leaves a board without a bundle

Nothing is imported here, and nothing of it by a process that serves.
"""
