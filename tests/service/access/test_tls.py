"""HTTPS with a certificate of the settings, its renewal, and certificates that are not valid."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.errors import SettingError
from service.observability.logs import make_logger
from service.settings import load_settings
from service.tls import Certificate
from tests.service.cli.helpers import call, invoke, run
from tests.support.server import process_server
from tests.support.tiny_model import publish_tiny_model


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a new self-signed certificate for 127.0.0.1 and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *curve, *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


def fingerprint_of(certificate: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def served_fingerprint(port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secured:
        return hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()


def test_https_is_served_and_plain_http_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    publish_tiny_model(home)
    certificate, key = make_certificate(tmp_path, "first")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    variables = {"FC7_TLS_CERTIFICATE": str(certificate), "FC7_TLS_KEY": str(key)}
    with process_server(home, **variables) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        assert served_fingerprint(server.port) == fingerprint_of(certificate)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/livez")
        jobs = call("jobs", "list", FC7_HOME=str(home), FC7_PORT=str(server.port), **variables)
        assert (jobs.returncode, "No jobs" in jobs.stderr) == (0, True), jobs.stderr
        found = invoke(home, "doctor", "--json", FC7_PORT=str(server.port), FC7_DEVICE="cpu", **variables).stdout
        assert f"an fc7 server is running on 127.0.0.1:{server.port}" in found


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    certificate, key = tmp_path / "served.pem", tmp_path / "served.key"
    for target, source in zip((certificate, key), first, strict=True):
        target.write_bytes(source.read_bytes())
    loaded = Certificate(certificate, key, make_logger("json", "critical"))
    assert loaded.context.minimum_version is ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert handshake(listener, loaded) == fingerprint_of(first[0])
        certificate.write_bytes(second[0].read_bytes())
        loaded.reload()
        assert handshake(listener, loaded) == fingerprint_of(first[0]), "the key of the new one has not arrived yet"
        key.write_bytes(second[1].read_bytes())
        loaded.reload()
        assert handshake(listener, loaded) == fingerprint_of(second[0])
        certificate.unlink()
        loaded.reload()
        assert handshake(listener, loaded) == fingerprint_of(second[0])


def handshake(listener: socket.socket, certificate: Certificate) -> str:
    """Return the fingerprint that a client of one connection gets."""
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(served_fingerprint, listener.getsockname()[1])
        connection, _ = listener.accept()
        with certificate.context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)
        return client.result()


def test_wrong_files_are_named_before_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path, "first")
    _, other = make_certificate(tmp_path, "other")
    log = make_logger("json", "critical")
    missing = tmp_path / "missing.pem"
    for files, words in (
        ((missing, key), f"FC7_TLS_CERTIFICATE={missing} is not valid: expected a readable file"),
        ((certificate, missing), f"FC7_TLS_KEY={missing}"),
        ((certificate, other), "FC7_TLS_CERTIFICATE=.* with its private key in FC7_TLS_KEY"),
        ((key, key), "expected a PEM certificate"),
    ):
        with pytest.raises(SettingError, match=words):
            Certificate(*files, log)
    monkeypatch.setenv("FC7_TLS_KEY", str(key))
    with pytest.raises(SettingError, match="FC7_TLS_CERTIFICATE= is not valid: expected a file, because FC7_TLS_KEY"):
        load_settings()
    started = run("serve", FC7_HOME=str(tmp_path), FC7_PORT="0", FC7_TLS_CERTIFICATE=str(missing), FC7_TLS_KEY=str(key))
    assert (started.returncode, "FC7_TLS_CERTIFICATE" in started.stderr) == (1, True)
    assert "Traceback" not in started.stderr
