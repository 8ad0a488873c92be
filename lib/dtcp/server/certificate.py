"""Our certificate: read with its key, and watched, for it expires.

Here dtcp.tls is imported, and with it all of OpenSSL, but only where a certificate is configured.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from dtcp import private
from dtcp.errors import Error
from dtcp.server.settings import Settings, SettingsError

if TYPE_CHECKING:
    import ssl
    from types import ModuleType

DAY = 86400  # seconds
DAYS_AHEAD = 14  # that an end is told


class Certificate(NamedTuple):
    """What a handshake needs, and when it will not do any more (seconds since the Epoch)."""

    context: ssl.SSLContext
    expires: float


def read(settings: Settings, now: float) -> tuple[Certificate | None, list[str]]:
    """The certificate and key that are configured, if any, and remarks.  Raises SettingsError.

    `now` is the time of day.
    """
    if not settings.tls_certificate:
        return None, []
    tls = _library()
    for path in (settings.tls_certificate, settings.tls_key):
        _see_file(path)
    try:
        context = tls.for_server(settings.tls_certificate, settings.tls_key)
        expires = tls.valid_until(tls.of_file(settings.tls_certificate))
    except Error as error:
        raise SettingsError(str(error)) from None
    except ValueError as error:
        raise SettingsError(f"{settings.tls_certificate}: no such certificate: {error}") from None
    remarks = [warning] if (warning := of_expiry(expires, now)) else []
    if os.stat(settings.tls_key).st_mode & private.ANYTHING:
        remarks.append(f"{settings.tls_key}: accessible by others; chmod 600 {settings.tls_key}")
    return Certificate(context, expires), remarks


def fingerprint(settings: Settings) -> str:
    """What identifies our certificate, as dtcpc --tls-fingerprint takes it; its key is not needed.

    Raises SettingsError.
    """
    if not settings.tls_certificate:
        raise SettingsError("there is no tls-certificate in the configuration")
    tls = _library()
    _see_file(settings.tls_certificate)
    try:
        return str(tls.fingerprint(tls.of_file(settings.tls_certificate)))
    except Error as error:
        raise SettingsError(str(error)) from None


def of_expiry(expires: float, now: float) -> str:
    """A warning that it expires soon, or has; or nothing.  Both are in seconds since the Epoch."""
    days = (expires - now) // DAY
    if days > DAYS_AHEAD:
        return ""
    if expires <= now:
        when = "has expired"
    elif days < 1:
        when = "expires within a day"
    else:
        when = f"expires in {days:.0f} day{'s'[: days > 1]}"
    return f"the certificate of tls-certificate {when}"


def _library() -> ModuleType:
    try:
        from dtcp import tls
    except ImportError:
        raise SettingsError("Python's module ssl is missing, which tls-certificate needs") from None
    return tls


def _see_file(path: str) -> None:
    """See that it is one: a pipe would keep us waiting.  Raises SettingsError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SettingsError(f"{path}: not a regular file")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
