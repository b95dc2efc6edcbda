"""Errors that reach the user: one line each, saying what is wrong and what to do."""

from __future__ import annotations


def shown(text: object) -> str:
    """`text` for a message: control characters and undecodable bytes escaped, so that it stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class InfercamError(Exception):
    """Base of every error that the command line prints as one line and turns into exit code 1 or 2.

    One line whatever a file name or a manifest put into it: see `shown`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(message))


class InputError(InfercamError):
    """An image, label, list or ground truth that cannot be used; the rest of a batch goes on."""


class BundleError(InfercamError):
    """A bundle that is missing, changed, or of a newer schema."""


class ExportError(InfercamError):
    """A classifier that cannot become a response graph; the text names the node or key that prevents it."""


class StoreError(InfercamError):
    """A map store that cannot be read or written (corrupt file, unwritable folder, full disk)."""


class BackendError(InfercamError):
    """A backend that cannot run here (missing library, driver or provider; out of memory)."""


class MissingExtra(InfercamError):
    """An optional package is not installed; the text names the extra that brings it."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs {package}: pip install 'infercam[{extra}]'")
        self.package = package
        self.extra = extra
