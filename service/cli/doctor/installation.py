"""Checks of the installation and of the settings: packages, engine, GPU, address, keys and the active model."""

from __future__ import annotations

import errno
import os
import platform
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from index.search.gpu.device import open_device
from model_store.artifact import Artifact
from model_store.errors import DeviceUnavailableError, Fc7Error, NoActiveModelError
from model_store.runtime.onnxruntime_engine import has_cuda
from model_store.runtime.openvino_engine import bf16_obstacle, bf16_support, is_available
from service.api.access.auth import check_binding
from service.cli.doctor.finding import Finding
from service.errors import SettingError
from service.factory import runner_options, store_of
from service.keys_file import KeysFileError, read_keys
from service.settings import Settings, unknown_variables, variable
from service.tls import open_certificate

_PACKAGES: Final = (
    "fc7",
    "fastapi",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "faiss-cpu",
    "faiss-gpu",
    "pillow",
    "torch",
    "pymilvus",
)

_DISPATCHER: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN computes the layers of OpenVINO


def check_versions() -> Finding:
    """List the installed versions of the packages that matter."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return Finding.ok("versions", f"Python {platform.python_version()}, {', '.join(found)}")


def check_engine(settings: Settings, artifact: Artifact | None) -> Finding:
    """Say which engine and arithmetic run models with these settings, without loading one."""
    try:
        runner_options(settings)
    except Fc7Error as error:
        return Finding.problem("engine", str(error), "Change these settings.")
    if settings.engine == "openvino" and not is_available():
        fix = "Install the extra cpu: pip install 'fc7[cpu]', or set FC7_ENGINE=auto."
        return Finding.problem("engine", "FC7_ENGINE is openvino, which is not installed or not for this CPU", fix)
    if settings.device.startswith("cuda") or (settings.device == "auto" and has_cuda()):
        return Finding.ok("engine", "ONNX Runtime on CUDA, if the device works (see GPU)")
    if settings.engine != "onnxruntime" and is_available():
        return _describe_openvino(settings, artifact)
    detail = f"ONNX Runtime on the CPU, in {'f32' if settings.precision == 'fp32' else settings.precision}"
    if settings.engine == "auto" and platform.machine().lower() in ("x86_64", "amd64"):
        return Finding.warning("engine", detail, "Install OpenVINO, which is faster: pip install 'fc7[cpu]'")
    return Finding.ok("engine", detail)


def _describe_openvino(settings: Settings, artifact: Artifact | None) -> Finding:
    if settings.precision == "int8":
        return Finding.ok("engine", "OpenVINO in int8")
    if bf16_support() != "native":
        if limits := [name for name in _DISPATCHER if name in os.environ]:
            fix = f"Unset {' and '.join(limits)} to use all instructions of the processor."
            return Finding.warning("engine", "OpenVINO in f32: its instructions are limited, so bf16 is not used", fix)
        return Finding.ok("engine", "OpenVINO in f32; a processor that computes bf16 would be about twice as fast")
    if settings.arithmetic == "f32":
        return Finding.ok("engine", "OpenVINO in f32, because FC7_ARITHMETIC is f32")
    obstacle = bf16_obstacle(artifact) if artifact is not None and artifact.precision == "fp32" else None
    if artifact is not None and obstacle is not None:
        fix = "Export the model again (fc7 export), or import it with --photographs, to compare bf16 with f32."
        return Finding.warning("engine", f"OpenVINO in f32 for {artifact.id}, because {obstacle}", fix)
    return Finding.ok("engine", "OpenVINO in bf16")


def check_gpu(settings: Settings) -> Finding:
    """Check whether the packages find a CUDA device, if one was asked for or may be used."""
    if settings.device == "cpu":
        return Finding.ok("GPU", "not used, because FC7_DEVICE is cpu")
    required = settings.device.startswith("cuda")
    reasons = [] if has_cuda() else ["the installed ONNX Runtime is the CPU package"]
    try:
        open_device("cuda" if settings.device == "auto" else settings.device, 1 << 30)
    except DeviceUnavailableError as error:
        reasons.append(error.reason)
    if not reasons:
        return Finding.ok("GPU", "ONNX Runtime has a CUDA provider, and FAISS finds the device")
    detail = "; ".join(reasons)
    if required:
        fix = "Install NVIDIA's driver and the extra gpu (pip install 'fc7[gpu]'), or set FC7_DEVICE=cpu."
        return Finding.problem("GPU", detail, fix)
    return Finding.ok("GPU", f"not used: {detail}")


def check_settings(environ: Mapping[str, str]) -> Finding:
    """Check for variables that look like settings, but are not."""
    unknown = unknown_variables(environ)
    if unknown:
        return Finding.warning("settings", " ".join(unknown), "Correct or remove these variables.")
    return Finding.ok("settings", "every FC7_ variable is known; fc7 config shows the values")


def check_address(settings: Settings) -> Finding:
    """Check that the address may be used with these keys, and that the port is free or is fc7's."""
    where = f"{settings.host}:{settings.port}"
    try:
        check_binding(settings)
    except SettingError as error:
        fix = "Create a key (fc7 keys new NAME), set FC7_API_KEYS, or listen on 127.0.0.1."
        return Finding.problem("address", str(error), fix)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            [address, *_] = socket.getaddrinfo(settings.host, settings.port, family, socket.SOCK_STREAM)
            listener.bind(address[4])
        except OSError as error:
            return _unavailable(settings, where, error)
    keys = "with keys" if settings.has_keys() else "without keys"
    return Finding.ok("address", f"{where} is free, {keys}")


def check_keys(settings: Settings) -> Finding:
    """Check that the keys can be read, and whether some have expired."""
    try:
        settings.check_keys_file()
        stored = read_keys(settings.keys_path) if settings.keys_path.exists() else ()
    except (SettingError, KeysFileError) as error:
        return Finding.problem("keys", str(error), "Correct the file or its permissions, or set FC7_KEYS_FILE.")
    if not settings.has_keys():
        return Finding.ok("keys", "no keys: requests need none, and are accepted on loopback only")
    detail = f"{len(stored)} in {settings.keys_path}, {len(settings.api_keys)} in FC7_API_KEYS"
    expired = [key.name for key in stored if key.has_expired(datetime.now(UTC))]
    if expired:
        fix = "Delete them (fc7 keys revoke NAME), and create new ones where they are needed (fc7 keys new NAME)."
        return Finding.warning("keys", f"{detail}; expired: {', '.join(expired)}", fix)
    if not stored and not settings.api_keys:
        return Finding.warning("keys", f"{detail}, so every request is rejected", "Create one: fc7 keys new NAME")
    return Finding.ok("keys", detail)


def check_certificate(settings: Settings) -> Finding:
    """Check that the TLS certificate can be loaded."""
    try:
        if open_certificate(settings, None) is None:
            return Finding.ok("TLS", "not used; a proxy in front of the service can add it")
    except SettingError as error:
        return Finding.problem("TLS", str(error), "Correct FC7_TLS_CERTIFICATE and FC7_TLS_KEY, or unset both.")
    return Finding.ok("TLS", f"serves HTTPS with {settings.tls_certificate}")


def _unavailable(settings: Settings, where: str, error: OSError) -> Finding:
    if error.errno == errno.EADDRINUSE and _is_fc7(settings):
        return Finding.ok("address", f"an fc7 server is running on {where}")
    if error.errno == errno.EADDRINUSE:
        command = f"ss -ltnp 'sport = :{settings.port}'"
        fix = f"Set {variable('port')} to another port, or end the program that uses it ({command} shows it)."
        return Finding.problem("address", f"{where} is used by another program", fix)
    if error.errno == errno.EACCES:
        return Finding.problem("address", f"{where} is reserved for root", "Use a port from 1024 on.")
    fix = f"Set {variable('host')} to an address of this machine, such as 127.0.0.1."
    return Finding.problem("address", f"{where} is not an address of this machine ({error.strerror})", fix)


def _is_fc7(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared only
    host = f"[{host}]" if ":" in host else host
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate may name another host
    scheme = "http" if settings.tls_certificate is None else "https"
    try:
        url = f"{scheme}://{host}:{settings.port}/livez"
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:  # noqa: S310 - HTTP or HTTPS
            return b"alive" in answer.read(1000)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def find_active(settings: Settings) -> tuple[Artifact | None, Finding]:
    """Return the active version, if there is one, and a finding about it. Its files are compared with the manifest."""
    try:
        artifact = store_of(settings).active_artifact()
    except NoActiveModelError:
        fix = "Train and export one (fc7 demo shows how), or import one: fc7 import --help"
        return None, Finding.warning("model", f"no version is active in {settings.home}", fix)
    except Fc7Error as error:
        fix = "Activate another version (fc7 models activate MODEL), or publish it again: fc7 export"
        return None, Finding.problem("model", str(error), fix)
    return artifact, Finding.ok("model", f"{artifact.embedder} is active, and its files match the manifest")


def check_installation(settings: Settings, artifact: Artifact | None) -> Iterator[Finding]:
    """Run all checks of this module."""
    yield check_versions()
    yield check_engine(settings, artifact)
    yield check_gpu(settings)
    yield check_settings(os.environ)
    yield check_address(settings)
    yield check_keys(settings)
    yield check_certificate(settings)
