"""`headrace token`: a new token, or key, and the line of the settings that holds its hash."""

from typing import Annotated

import typer

from headrace.runtime.cli.options import AsJson
from headrace.runtime.cli.output import show_json

SECRET_BYTES = 24


def token(
    name: Annotated[str, typer.Argument(help="What it is called in logs, and in the events of routes.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do; may be repeated. Default: invoke; invoke@shop.* for some of it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token: the secret for whoever calls, and what the setting `tokens` needs, with its hash."""
    import hashlib
    import secrets

    from headrace.runtime.errors import InvalidSettings
    from headrace.runtime.settings import Token

    secret = secrets.token_urlsafe(SECRET_BYTES)
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    line = f"{name}:{'+'.join(scope or ['invoke'])}:sha256:{hashed}"
    try:
        if ":" in name or "," in line or any(character.isspace() for character in line):
            raise ValueError("a name and a scope hold no blanks, commas or colons")
        Token.parse(line)
    except ValueError as error:
        raise InvalidSettings(str(error), "For example: headrace token ci --scope invoke@shop.rate") from None
    if as_json:
        show_json({"secret": secret, "token": line})
        return
    print(f"secret  {secret}")
    print(f"tokens  {line}")
    print(
        "The secret is shown only now. Add the second line to HEADRACE_TOKENS, or to tokens in headrace.toml."
    )
