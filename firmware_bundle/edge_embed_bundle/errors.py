"""What can go wrong with a bundle or a store, named after who can act on it.

    EdgeEmbedError
    ├── BundleError                  whoever made or copied the bundle
    │   ├── ManifestError              manifest.json breaks a rule of SPEC.md
    │   ├── UnsupportedFormatError     written for a newer reader than this one
    │   ├── MissingBlobError           a file that the manifest names is not there, or is no plain file
    │   ├── TruncatedError             a file has another size than the manifest says
    │   ├── DigestError                a file has other bytes than the manifest says
    │   └── DeltaError                 a delta is malformed, or made for another bundle than the one at hand
    ├── UpdateError                  whoever runs the repository, or the way to it
    │   ├── FetchError                 the server or the network gave something else than was asked for
    │   │   └── AbsentError              the repository has no such file
    │   └── TrustError                 what is there is not signed as this board's trust demands
    │       └── ExpiredError             it was, and its time is over
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


class UpdateError(EdgeEmbedError):
    """The repository, or the way to it, needs whoever runs it; nothing was changed on the board."""


class FetchError(UpdateError):
    """A file did not arrive, or not as it was signed."""


class AbsentError(FetchError):
    """The repository has no file of that name."""


class TrustError(UpdateError):
    """The repository's metadata breaks a rule of trust."""


class ExpiredError(TrustError):
    """The metadata was signed for a time that is over."""


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
