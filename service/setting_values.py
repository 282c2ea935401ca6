"""Descriptions of the valid values of settings, for error messages."""

from __future__ import annotations

from typing import Any

_EXPECTED = {
    "device": "auto, cpu, cuda or cuda:N",
    "index_name": "at most 64 letters, digits and underscores, not starting with a digit",
    "host": "an IP address, such as 127.0.0.1 or ::1, or a host name, without a port (see FC7_PORT)",
    "bind": "an IP address, such as 127.0.0.1 or ::1, without a port (see FC7_PUBLISH)",
    "root_path": "a path such as /fc7, of letters, digits and -._~",
    "label_studio_url": "an address with its scheme, such as http://label-studio:8080",
    "allowed_hosts": "host names separated by commas, without scheme and port, such as example.org or *.example.org",
    "trusted_proxies": "IP addresses or networks separated by commas, such as 127.0.0.1,10.0.0.0/8; * for all; or none",
    "allowed_origins": "origins separated by commas, with scheme and without path, such as https://app.example.org",
}


def expected(field: str, schema: dict[str, Any]) -> str:
    """Describe the valid values of a field. schema: the JSON schema of all settings."""
    if field in _EXPECTED:
        return _EXPECTED[field]
    schema = schema["properties"][field]
    schema = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text that is not empty",
    }[schema["type"]]
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None:
        return words
    above = "above" if "exclusiveMinimum" in schema else "from"
    return f"{words} {above} {low}" + (f" to {high}" if high is not None else "")
