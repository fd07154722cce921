"""What can go wrong with a bundle or a store, named after who can act on it.

    EdgeEmbedError
    ├── BundleError                  whoever made or copied the bundle
    │   ├── ManifestError              manifest.json breaks a rule of SPEC.md
    │   ├── UnsupportedFormatError     written for a newer reader than this one
    │   ├── MissingBlobError           a file that the manifest names is not there, or is no plain file
    │   ├── TruncatedError             a file has another size than the manifest says
    │   ├── DigestError                a file has other bytes than the manifest says
    │   └── DeltaError                 a delta is malformed, or made for another bundle than the one at hand
    └── StoreError                   whoever runs the board
        ├── EmptyStoreError            nothing is installed here yet
        ├── StateError                 neither state slot can be read
        ├── BusyError                  another process is changing this store
        ├── SpaceError                 the flash has no room for the bundle
        └── RefusedError               this board tried the bundle and does not want it

The runtime adds the caller's own mistakes to this tree (``edge_embed.errors``).
"""

from __future__ import annotations


class EdgeEmbedError(Exception):
    """Base of every error that this project raises on purpose."""

    #: What the command line answers: 1 where the answer is no, 2 where the input is bad.
    exit_status = 2


class BundleError(EdgeEmbedError):
    """The bundle is not what it says it is; whoever made or copied it can act."""


class ManifestError(BundleError):
    """The manifest breaks a rule of the specification."""


class UnsupportedFormatError(BundleError):
    """The bundle asks for a reader that knows more than this one."""


class MissingBlobError(BundleError):
    """A file named in the manifest is absent, or is a link, a folder or a device."""


class TruncatedError(BundleError):
    """A file is shorter or longer than the manifest says."""


class DigestError(BundleError):
    """A file's bytes are not the ones the manifest was written for."""


class DeltaError(BundleError):
    """A delta is malformed, or made for another bundle than the one at hand; the full bundle is the way on."""


class StoreError(EdgeEmbedError):
    """The store on this board needs its operator."""


class EmptyStoreError(StoreError):
    """No generation serves here yet."""


class StateError(StoreError):
    """Neither state slot holds a valid record."""


class BusyError(StoreError):
    """Another process holds the store's lock."""


class SpaceError(StoreError):
    """The file system has no room for the new generation beside the old one."""


class RefusedError(StoreError):
    """The board tried the bundle and refused it."""

    exit_status = 1
