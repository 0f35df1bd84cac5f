"""`headrace token`: its secret is taken where its line is configured; and `config` shows no secret."""

import json

from headrace.runtime.api.access import Access, Token
from headrace.runtime.settings import Settings
from tests.serving import run_command


def test_the_secret_opens_what_its_line_configures() -> None:
    done = run_command("token", "ci", "--scope", "invoke@shop.*", "--scope", "orders.write", "--json")
    made = json.loads(done.stdout)
    [configured] = Settings(tokens=made["token"]).tokens
    access = Access([Token(configured.name, configured.secret.get_secret_value(), configured.scopes)])

    assert access.check(f"Bearer {made['secret']}", "invoke", "shop.rate").name == "ci"
    assert made["secret"] not in made["token"]


def test_a_scope_that_is_none_is_one_line() -> None:
    for arguments in (["ci", "--scope", "everything"], ["c:i"], ["ci", "--scope", "invoke@a,b"]):
        done = run_command("token", *arguments)
        assert done.returncode == 1, arguments
        assert len(done.stderr.strip().splitlines()) == 1
        assert not done.stdout


def test_config_shows_hosts_and_hides_the_secret() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    env = {"HEADRACE_CALLBACK_HOSTS": "a.example,10.0.0.0/8", "HEADRACE_CALLBACK_SECRET": secret}
    for arguments in (["config"], ["config", "--json"]):
        done = run_command(*arguments, env=env)
        assert done.returncode == 0, done.stderr
        assert "a.example" in done.stdout
        assert secret not in done.stdout
