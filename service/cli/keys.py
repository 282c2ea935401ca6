"""`fc7 keys new|list|revoke`: the API keys of the keys file. A running server applies changes without a restart."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from service.api_keys import NAME_EXPECTED, Scope, is_name
from service.cli import console
from service.cli.completion import complete_key
from service.cli.options import AsJson, Home
from service.keys_file import StoredKey, create_key, read_keys, revoke_key
from service.rate_limit import Rate, parse_rate
from service.settings import Settings, load_settings

_HOURS: Final = {"h": 1, "d": 24, "w": 24 * 7}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])", re.ASCII)
app = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)


def _name(text: str) -> str:
    if not is_name(text):
        raise typer.BadParameter(f"{text!r} is not supported: give {NAME_EXPECTED}.")
    return text


def _scope(text: str) -> str:
    if text.upper() not in Scope.__members__:
        raise typer.BadParameter(f"{text!r} is not supported: give read, write or admin.")
    return text


def _parse_rate(text: str) -> Rate:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None


def _parse_expiry(text: str) -> datetime:
    """Return when a key expires: after 12h, 90d or 4w, or at a date or time in ISO 8601, which is in UTC."""
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        if found := _DURATION.fullmatch(text):
            return now + timedelta(hours=int(found[1]) * _HOURS[found[2]])
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not supported: give 12h, 90d, 4w or a date such as 2027-01-31."
        ) from None
    if moment <= now:
        raise typer.BadParameter(f"{text!r} is in the past.")
    return moment


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", callback=_name, help="Who or what uses the key.", show_default=False)
    ],
    *,
    scope: Annotated[
        str,
        typer.Option(
            metavar="read|write|admin",
            callback=_scope,
            help="What the key permits: read, also to change images (write), or everything (admin).",
        ),
    ] = "read",
    expires: Annotated[
        Any,
        typer.Option(metavar="WHEN", parser=_parse_expiry, help="12h, 90d, 4w or a date (UTC).", show_default="never"),
    ] = None,
    rate: Annotated[
        Any,
        typer.Option(
            metavar="RATE",
            parser=_parse_rate,
            help="Requests that are allowed per second, minute, hour or day, such as 100/minute.",
            show_default="no limit",
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print it, once: only its hash is stored."""
    settings = load_settings(home=home)
    if name in [key.name for key in settings.api_keys]:
        raise typer.BadParameter(f"FC7_API_KEYS has a key {name}: choose another name.", param_hint="NAME")
    is_first = not settings.has_keys()
    stored, secret = create_key(settings.keys_path, name, Scope[scope.upper()], expires=expires, rate=rate)
    if as_json:
        console.print_json(_document(stored) | {"key": secret})
    else:
        console.show(secret, markup=False)
    console.say(f"This is the only time that the key is shown. Its hash is in {settings.keys_path.absolute()}.")
    if is_first:
        what = "Requests that change something need a key" if settings.allow_anonymous else "Every request needs a key"
        console.say(f"{what} from now on.")
    console.say("A running server accepts it within two seconds.")
    if not as_json:
        console.next_step("send it as the header Authorization: Bearer KEY")


@app.command("list")
def list_(*, home: Home = None, as_json: AsJson = False) -> None:
    """List the API keys with their scopes, rates and times; the keys themselves are not stored."""
    settings = load_settings(home=home)
    stored = read_keys(settings.keys_path) if settings.keys_path.exists() else ()
    if as_json:
        fixed = [{"name": key.name or None, "scope": key.scope.name.lower()} for key in settings.api_keys]
        console.print_json(
            [_document(key) | {"source": "file"} for key in stored] + [key | {"source": "environment"} for key in fixed]
        )
        return
    if not stored and not settings.api_keys:
        console.say(_describe_none(settings))
        console.next_step("fc7 keys new NAME")
        return
    now = datetime.now(UTC)
    table = Table("name", "scope", "rate", "created (UTC)", "expires (UTC)", "source", box=None, header_style="bold")
    for key in stored:
        expires = f"{_time(key.expires)}{' (expired)' if key.has_expired(now) else ''}" if key.expires else "never"
        table.add_row(key.name, key.scope, key.rate or "no limit", _time(key.created), expires, "file")
    for fixed_key in settings.api_keys:
        table.add_row(fixed_key.name, fixed_key.scope.name.lower(), "no limit", "", "never", "FC7_API_KEYS")
    console.show(table)
    console.next_step("fc7 keys revoke NAME, or fc7 keys new NAME")


@app.command()
def revoke(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the key.", autocompletion=complete_key, show_default=False),
    ],
    *,
    home: Home = None,
) -> None:
    """Delete an API key; a running server rejects it within two seconds."""
    settings = load_settings(home=home)
    revoke_key(settings.keys_path, name)
    console.say(f"{name} is revoked. A running server rejects it within two seconds.")
    if not settings.api_keys and not read_keys(settings.keys_path):
        console.warn(
            f"It was the last key, and requests still need one. To allow requests without a key, delete "
            f"{settings.keys_path.absolute()} and restart the server."
        )
    console.next_step("fc7 keys list")


def _describe_none(settings: Settings) -> str:
    if not settings.has_keys():
        return "No keys. The server accepts requests without a key, on loopback only."
    return f"No keys, but requests need one, because {settings.keys_path.absolute()} exists."


def _document(key: StoredKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"})


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
