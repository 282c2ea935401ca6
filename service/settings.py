"""Settings of the service and the command line: typed `FC7_...` environment variables, read once at start.

Guarantees: an invalid value raises a `SettingError` with the variable's name, its value and the expected values. An
unknown variable that starts with `FC7_` is reported with the closest known name. Keys are never printed.
Out of scope: reading the environment at import, configuration files, changes after start.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_store.cores import usable_cores
from model_store.runtime.options import EngineName
from service.addresses import Address, BaseUrl, HostPatterns, Origins, RootPath, TrustedProxies
from service.api_keys import KEY_LENGTH, KEYS_EXPECTED, ApiKey, parse_keys
from service.errors import SettingError
from service.setting_values import expected

PREFIX = "FC7_"


class Settings(BaseSettings):
    """All settings with their defaults. The variable is `FC7_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default=Path("var"), description="Folder for all state: models, index and training runs.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Device for the model and for search: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.",
    )
    engine: EngineName = Field(
        default="auto",
        description=(
            "Engine that runs the model: onnxruntime, openvino, or auto (OpenVINO on x86 CPUs where it is installed, "
            "otherwise ONNX Runtime; CUDA always uses ONNX Runtime)."
        ),
    )
    arithmetic: Literal["auto", "f32"] = Field(
        default="auto",
        description=(
            "Arithmetic of the float layers on a CPU: f32, or auto (bf16 if the CPU has it, the engine is OpenVINO, "
            "and the version was measured to give the same answers; otherwise f32)."
        ),
    )
    precision: Literal["fp32", "int8", "fp16"] = Field(
        default="fp32", description="Precision of the model; the start fails if the active version has no files for it."
    )
    cuda_memory_mb: int | None = Field(
        default=None, ge=64, description="Maximum memory (MB) of ONNX Runtime on the CUDA device (unset: no limit)."
    )
    cuda_index_mb: int = Field(
        default=4_000, ge=512, description="Maximum memory (MB) of the index on the CUDA device (8.2 KB a vector)."
    )
    cuda_graphs: bool = Field(default=False, description="Replay each batch size as one CUDA graph (requires CUDA).")
    tensorrt: bool = Field(
        default=False,
        description="Run the model with TensorRT (requires CUDA), and cache its engines under FC7_HOME/tensorrt.",
    )
    host: Address = Field(
        default="127.0.0.1",
        description="Address to listen on; non-loopback addresses require keys or FC7_ALLOW_ANONYMOUS=true.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free port and prints it.")
    bind: Address | None = Field(
        default=None,
        description="Address on which a container publishes the port. If set, it is checked instead of FC7_HOST.",
    )
    root_path: RootPath = Field(
        default="",
        description="Path prefix under which a proxy serves fc7, such as /fc7; the proxy may strip it or not.",
    )
    trusted_proxies: TrustedProxies = Field(
        default=("127.0.0.1", "::1"),
        description="Addresses or networks of proxies, separated by commas, whose X-Forwarded-For names the client in "
        "the log; * trusts every address, none trusts no one.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="File with the TLS certificate and its chain (PEM), to serve HTTPS instead of HTTP; requires "
        "FC7_TLS_KEY. A renewed certificate is read without a restart.",
    )
    tls_key: Path | None = Field(
        default=None, description="File with the private key of FC7_TLS_CERTIFICATE (PEM, without a password)."
    )
    max_batch: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Maximum rows (an image, or one of its ten views) in one run of the model.",
    )
    max_delay_ms: float = Field(
        default=5.0,
        ge=0,
        le=1000,
        description="Maximum wait (ms) of a batch for more images; an idle server does not wait.",
    )
    queue_size: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Maximum images admitted and not yet answered; more are refused (503).",
    )
    deadline_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Maximum time (s) for decoding, queueing and running a request (else 504).",
    )
    upload_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Maximum time (s) for receiving a request body (else 408); an archive has 1 s more for each 50 KB.",
    )
    max_uploads: int = Field(
        default=8, ge=1, le=1000, description="Maximum archives that are received at the same time (else 503)."
    )
    shutdown_timeout_s: float = Field(
        default=20.0,
        ge=0,
        le=3600,
        description=(
            "Maximum time (s) from SIGTERM to the end of the process; half of it, at most 5 s, is left for closing."
        ),
    )
    keep_alive_s: int = Field(default=75, ge=1, le=3600, description="Time (s) that an idle connection is kept open.")
    max_body_bytes: int = Field(
        default=20_000_000, ge=1_000, description="Maximum size (bytes) of a request body (else 413)."
    )
    max_archive_bytes: int = Field(
        default=4_000_000_000,
        ge=1_000,
        description="Maximum size (bytes) of an archive, compressed (else 413) and unpacked (else 422).",
    )
    max_buffer_bytes: int = Field(
        default=256_000_000, ge=1_000, description="Maximum size (bytes) of all request bodies in memory (else 503)."
    )
    max_images: int = Field(
        default=32, ge=1, le=10_000, description="Maximum number of images in one request (else 413)."
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="Maximum number of pixels of an image, checked before it is decoded (else 422).",
    )
    max_decode_mb: int = Field(
        default=200,
        ge=1,
        description="Maximum memory (MB) for decoding one image, estimated from its header (else 422).",
    )
    decode_s: float = Field(
        default=3.0,
        gt=0,
        le=3600,
        description="Maximum CPU time (s) for decoding one image, estimated from its header and measured (else 422).",
    )
    decode_memory_mb: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Memory (MB) for all images that are being decoded; others wait (unset: half of the available memory)."
        ),
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(parse_keys)] = Field(
        default=(),
        description=(
            "API keys, as scope:key or name:scope:key, separated by commas, where scope is read, write or admin and a "
            f"key has at least {KEY_LENGTH} characters. `fc7 keys new` creates keys that are stored as hashes instead."
        ),
    )
    keys_file: Path | None = Field(
        default=None,
        description="File with the hashed keys of `fc7 keys new`; the server reads it again if it changes (unset: "
        "keys.json in FC7_HOME). Once it exists, every request needs a key.",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Accept requests without a key on any address; if there are keys, they may only read.",
    )
    allowed_hosts: HostPatterns = Field(
        default=(),
        description="Names in the Host header that are accepted, separated by commas: example.org, *.example.org, or * "
        "for all. Without keys, other names than localhost are rejected; IP addresses are always accepted.",
    )
    allowed_origins: Origins = Field(
        default=(),
        description="Origins of web pages that may use the API (CORS), separated by commas: https://app.example.org. "
        "* allows all pages, and requires keys.",
    )
    keep_pictures: bool = Field(
        default=True, description="Store a 256x256 JPEG of each indexed image, for thumbnails and for re-embedding."
    )
    index_uri: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "Location of the index: the URL of a Milvus server (http://milvus:19530) or a .db file of Milvus Lite"
            " (unset: FC7_HOME)."
        ),
    )
    index_token: SecretStr | None = Field(
        default=None, description="Credentials for Milvus: user:password or an API key."
    )
    index_name: str = Field(
        default="fc7",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        description="Prefix of the collection names on Milvus; each prefix is a separate index.",
    )
    index_timeout_s: float = Field(
        default=4.0, gt=0, le=3600, description="Maximum time (s) of one call to Milvus (else 503)."
    )
    label_studio_url: BaseUrl | None = Field(
        default=None,
        description=(
            "Address of Label Studio, such as http://label-studio:8080, the only one that images are fetched from "
            "(unset: none are)."
        ),
    )
    label_studio_token: SecretStr | None = Field(
        default=None, description="Access token for the images of Label Studio."
    )
    fast_from: int = Field(
        default=20_000,
        ge=0,
        description="Number of vectors from which short codes for the mode fast are trained (0: never).",
    )
    novelty_threshold: float = Field(
        default=0.95,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of a model's own validation images that is accepted; an image that is farther from the "
        "training images than these is unknown. 1 accepts everything.",
    )
    max_loaded: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Maximum versions in memory: the active one, the index's, and those named in requests.",
    )
    previous_vectors: Literal["keep", "drop"] = Field(
        default="keep",
        description="Keep the previous model's vectors for a quick rollback, or drop them after a migration.",
    )
    reembed_share: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Maximum share of time for re-embedding while requests arrive; an idle server uses all of it.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Number of threads that run the model (unset: one per core)."
    )
    decode_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description=(
            "Number of threads that decode images and, on a CPU, run batches (unset: one per core). Expensive images"
            " are decoded by half as many processes."
        ),
    )
    otlp_endpoint: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "URL of an OTLP collector that receives traces, such as http://localhost:4318 (unset: "
            "OTEL_EXPORTER_OTLP_ENDPOINT)."
        ),
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="Log format: json (one object per line) or text."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Minimum level of logged events."
    )

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        for field, smaller in (("queue_size", "max_images"), ("max_buffer_bytes", "max_body_bytes")):
            value, least = getattr(self, field), getattr(self, smaller)
            if value < least:
                raise SettingError(variable(field), str(value), f"at least {variable(smaller)} ({least})")
        for given, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(self, given) is not None and getattr(self, other) is None:
                raise SettingError(variable(other), "", f"a file, because {variable(given)} is set")
        if "*" in self.allowed_origins and (not self.has_keys() or self.allow_anonymous):
            raise SettingError(
                variable("allowed_origins"), "*", "a list of origins, because requests without an API key are accepted"
            )
        return self

    @property
    def threads_to_decode(self) -> int:
        """`decode_threads`, by default one for each core that the process may use."""
        return self.decode_threads or usable_cores()

    @property
    def keys_path(self) -> Path:
        """The file of the keys that `fc7 keys` creates."""
        return self.keys_file or self.home / "keys.json"

    def has_keys(self) -> bool:
        """Return whether requests need a key: FC7_API_KEYS is set, or there is a keys file, even if it is empty."""
        return bool(self.api_keys) or self.keys_path.exists()

    def check_keys_file(self) -> None:
        """Raise SettingError if FC7_KEYS_FILE names a file that does not exist: no key would be required."""
        if self.keys_file is not None and not self.keys_file.exists():
            raise SettingError(variable("keys_file"), str(self.keys_file), "an existing file. Create it: fc7 keys new")


@dataclass(frozen=True, slots=True)
class SettingLine:
    """A setting as `fc7 config` prints it. Secrets are masked."""

    variable: str
    value: str
    source: Literal["default", "environment", "command line"]
    description: str


def variable(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    return PREFIX + field.upper()


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment. `overrides` from the command line take precedence unless None.

    Raises SettingError for the first invalid value. The value of a secret is not shown.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        error = exc.errors()[0]
        field = str(error["loc"][0])
        value = given.get(field, os.environ.get(variable(field), ""))
        if field == "api_keys":
            raise SettingError(variable(field), "(hidden)", f"{KEYS_EXPECTED} ({error['msg']})") from None
        raise SettingError(variable(field), str(value), expected(field, Settings.model_json_schema())) from None


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each unknown `FC7_` variable, with the closest known name."""
    known = [variable(field) for field in Settings.model_fields]
    warnings = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            warnings.append(f"{name} is set, but fc7 has no such setting.{hint}")
    return warnings


def describe(settings: Settings, overridden: frozenset[str] = frozenset()) -> Iterator[SettingLine]:
    """Yield each setting with its value and source. overridden: the fields set on the command line."""
    for field, info in Settings.model_fields.items():
        value = getattr(settings, field)
        if field == "api_keys":
            text = ", ".join(f"{key.name}{key.name and ':'}{key.scope.name.lower()}:********" for key in value)
        elif isinstance(value, tuple):
            text = ",".join(value)
        elif isinstance(value, SecretStr):
            text = "********"
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        source: Literal["default", "environment", "command line"] = "default"
        if field in settings.model_fields_set:
            source = "command line" if field in overridden else "environment"
        yield SettingLine(variable(field), text, source, info.description or "")
