"""Why the stack does not start."""

from geokr_core.errors import GeoKRError


class StackError(GeoKRError):
    """A program, a setting or a secret is missing, or a service does not become healthy."""
