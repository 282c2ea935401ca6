"""Settings of the service and the command line: `FC7_...` environment variables, typed, read once at an entry point.

Promises: a bad value is one `SettingError` with the variable's name, its value and what was expected; a variable that
starts with `FC7_` and is no setting is reported with the nearest one; keys are never printed.
Does not: read anything at import, look at files, change after start.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingError

PREFIX = "FC7_"
KEY_LENGTH = 16
_KEYS_EXPECTED = (
    f"scope:key pairs separated by commas; scope is read, write or admin, key at least {KEY_LENGTH} characters"
)


class Scope(IntEnum):
    """What a key allows; each scope allows what the lower ones do."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key and its scope."""

    scope: Scope
    secret: SecretStr


def _parse_keys(value: object) -> object:
    """Read `read:KEY,write:KEY`; anything that is no text goes through as it is."""
    if not isinstance(value, str):
        return value
    keys = []
    for position, entry in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
        scope, colon, secret = entry.partition(":")
        if not colon or scope.upper() not in Scope.__members__:
            raise ValueError(f"entry {position} does not start with read:, write: or admin:")
        if len(secret) < KEY_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ValueError(f"entry {position} has a key shorter than {KEY_LENGTH} characters, or one not plain ASCII")
        keys.append(ApiKey(Scope[scope.upper()], SecretStr(secret)))
    return tuple(keys)


class Settings(BaseSettings):
    """Every setting, with its default. The variable is the field's name in capitals after `FC7_`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    home: Path = Field(default=Path("var"), description="Folder of all state: models, index, training runs.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where the model runs: auto (CUDA where it works), cpu, cuda or cuda:N (refused where it is not).",
    )
    precision: Literal["fp32", "int8", "fp16"] = Field(
        default="fp32",
        description="Which of a version's graphs answers; refused where the version has no such files.",
    )
    cuda_memory_mb: int | None = Field(
        default=None, ge=64, description="Most memory (MB) of ONNX Runtime on the CUDA device; unset: no limit."
    )
    cuda_graphs: bool = Field(
        default=False, description="Replay each batch size as one CUDA graph; refused where there is no CUDA."
    )
    tensorrt: bool = Field(
        default=False,
        description="Run with TensorRT, engines kept under FC7_HOME/tensorrt; refused where it is not.",
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Other than loopback wants FC7_API_KEYS or FC7_ALLOW_ANONYMOUS=true.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    max_batch: int = Field(
        default=12, ge=1, le=1024, description="Most rows (an image, or one of its ten views) in one run."
    )
    max_delay_ms: float = Field(
        default=5.0,
        ge=0,
        le=1000,
        description="Longest wait of a batch for more images (ms); an idle server does not wait.",
    )
    queue_size: int = Field(
        default=256, ge=1, le=100_000, description="Most images admitted and not yet answered; beyond: 503."
    )
    deadline_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Longest time for decoding, waiting and running a request (s); beyond: 504.",
    )
    upload_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Longest time for receiving a request's body (s); beyond: 408."
    )
    shutdown_timeout_s: float = Field(
        default=20.0, ge=0, le=3600, description="Longest time for answering what is admitted after SIGTERM (s)."
    )
    keep_alive_s: int = Field(default=75, ge=1, le=3600, description="How long an idle connection is kept open (s).")
    max_body_bytes: int = Field(default=20_000_000, ge=1_000, description="Largest request body (bytes); beyond: 413.")
    max_archive_bytes: int = Field(
        default=4_000_000_000,
        ge=1_000,
        description="Largest archive of images, as it is sent and when it is unpacked (bytes); beyond: 413 or 422.",
    )
    max_buffer_bytes: int = Field(
        default=256_000_000,
        ge=1_000,
        description="Most bytes of bodies held at one time over all requests; beyond: 503.",
    )
    max_images: int = Field(default=32, ge=1, le=10_000, description="Most images in one request; beyond: 413.")
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="Most pixels of one image, read from its header before decoding; beyond: 422.",
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode, BeforeValidator(_parse_keys)] = Field(
        default=(), description=f"Keys: {_KEYS_EXPECTED}. Sent as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Serve without keys on any address; where keys are set, let callers without one read.",
    )
    keep_pictures: bool = Field(
        default=True, description="Keep a 256x256 JPEG of each indexed image, for thumbnails and for re-embedding."
    )
    index_uri: str | None = Field(
        default=None,
        min_length=1,
        description="Where the index is: Milvus (http://milvus:19530), a .db file of Milvus Lite; unset: FC7_HOME.",
    )
    index_token: SecretStr | None = Field(default=None, description="For Milvus: user:password, or an API key.")
    index_name: str = Field(
        default="fc7",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        description="What the names of the collections on Milvus begin with: one index each.",
    )
    index_timeout_s: float = Field(
        default=4.0, gt=0, le=3600, description="Longest time of one call to Milvus (s); beyond: 503."
    )
    fast_from: int = Field(
        default=20_000,
        ge=0,
        description="Vectors from which on search learns short codes (mode fast) in the background; 0: never.",
    )
    max_loaded: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Most versions in memory: the active one, the index's while it moves to another, and named ones.",
    )
    previous_vectors: Literal["keep", "drop"] = Field(
        default="keep",
        description="The index's vectors of the model before: keep them, to go back at once, or drop them.",
    )
    reembed_share: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Share of the time that re-embedding may take while requests come; without any it takes all.",
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="Threads of ONNX Runtime; unset: one a core.")
    streams: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Runs side by side on the CPU, each on its share of FC7_THREADS; unset: two, where there are two "
        "cores and room for a second copy of the weights.",
    )
    decode_threads: int | None = Field(
        default=None, ge=1, le=1024, description="Threads that decode images; unset: one a core."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        min_length=1,
        description="Where spans go: an OTLP collector (http://localhost:4318); unset: OTEL_EXPORTER_OTLP_ENDPOINT's.",
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="One JSON object a line, or text for a reader."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.queue_size < self.max_images:
            raise SettingError("FC7_QUEUE_SIZE", str(self.queue_size), f"at least FC7_MAX_IMAGES ({self.max_images})")
        if self.max_buffer_bytes < self.max_body_bytes:
            raise SettingError(
                "FC7_MAX_BUFFER_BYTES",
                str(self.max_buffer_bytes),
                f"at least FC7_MAX_BODY_BYTES ({self.max_body_bytes})",
            )
        return self


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One setting as `fc7 config` prints it: secrets masked."""

    variable: str
    value: str
    source: Literal["default", "environment", "command line"]
    description: str


def variable(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    return PREFIX + field.upper()


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` (from the command line) win where not None.

    Raises SettingError for the first bad value: its variable, the value (masked when secret) and what was expected.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        error = exc.errors()[0]
        field = str(error["loc"][0])
        value = given.get(field, os.environ.get(variable(field), ""))
        if field == "api_keys":
            raise SettingError(variable(field), "(hidden)", f"{_KEYS_EXPECTED} ({error['msg']})") from None
        raise SettingError(variable(field), str(value), _expected(field)) from None


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each `FC7_` variable that no setting reads, with the nearest name that one does."""
    known = [variable(field) for field in Settings.model_fields]
    sentences = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            sentences.append(f"{name} is set, but is no setting of fc7{hint}")
    return sentences


def describe(settings: Settings, overridden: frozenset[str] = frozenset()) -> Iterator[SettingLine]:
    """Yield each setting with value and source; `overridden` names the fields that the command line gave."""
    for field, info in Settings.model_fields.items():
        value = getattr(settings, field)
        if field == "api_keys":
            text = ", ".join(f"{key.scope.name.lower()}:********" for key in value)
        elif isinstance(value, SecretStr):
            text = "********"
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        source: Literal["default", "environment", "command line"] = "default"
        if field in settings.model_fields_set:
            source = "command line" if field in overridden else "environment"
        yield SettingLine(variable(field), text, source, info.description or "")


def _expected(field: str) -> str:
    """Say in words what the field takes, from its JSON schema."""
    schema = Settings.model_json_schema()["properties"][field]
    schema = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if field == "device":
        return "auto, cpu, cuda or cuda:N"
    if field == "index_name":
        return "up to 64 letters, digits and underscores, no digit first"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text that is not empty",
    }[schema["type"]]
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None:
        return words
    above = "above" if "exclusiveMinimum" in schema else "from"
    return f"{words} {above} {low}" + (f" to {high}" if high is not None else "")
