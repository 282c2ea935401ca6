"""TLS of the server: the certificate of FC7_TLS_CERTIFICATE and FC7_TLS_KEY.

Guarantees: TLS 1.2 or newer. A renewed certificate is used for new connections, without a restart.
Out of scope: certificates of clients, and requesting certificates (use a proxy such as Caddy).
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Final

from service.errors import SettingError
from service.settings import Settings, variable

_RELOAD_S: Final = 10.0


class Certificate:
    """The server's certificate and its private key."""

    def __init__(self, certificate: Path, key: Path, log: Any) -> None:
        """Load the files. Raises SettingError."""
        self._certificate, self._key = certificate, key
        self._log = log
        self._stamps = self._read_stamps()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    async def watch(self) -> None:
        """Load the files whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(_RELOAD_S)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Load the files if they have changed. After an error, which is logged, the certificate before stays in use."""
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._load()
        except SettingError as error:
            self._log.error("certificate not reloaded", detail=str(error))
        else:
            self._log.info("certificate reloaded", path=str(self._certificate))

    def _load(self) -> None:
        for field, path in (("tls_certificate", self._certificate), ("tls_key", self._key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise SettingError(variable(field), str(path), f"a readable file ({error.strerror})") from error
        try:
            # Checked in a context of its own first: a failed load could leave a new certificate with the old key.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise SettingError(
                variable("tls_certificate"),
                str(self._certificate),
                f"a PEM certificate, with its private key in FC7_TLS_KEY ({reason})",
            ) from error

    def _read_stamps(self) -> list[tuple[int, int]]:
        stamps = []
        for path in (self._certificate, self._key):
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0))
            else:
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps


def open_certificate(settings: Settings, log: Any) -> Certificate | None:
    """Return the certificate of the settings; None to serve plain HTTP. Raises SettingError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key, log)
