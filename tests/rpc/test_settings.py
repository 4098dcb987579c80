"""Settings: where they come from, and that a bad one is named with its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalamdb.settings import DEFINITIONS, SettingError, Settings, load, markdown

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def fails(cli: dict[str, object] | None = None, *, config: Path | None = None, **env: str) -> str:
    with pytest.raises(SettingError) as caught:
        load(cli, env=env, config=config)
    return str(caught.value)


def test_defaults() -> None:
    settings = load(env={})
    assert (settings.rpc.host, settings.rpc.port, settings.http.port) == ("127.0.0.1", 9188, 8080)
    assert settings.auth.mode == "trust"
    assert settings.rpc == Settings().rpc


def test_the_last_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "kalamdb.toml"
    file.write_text('log_level = "debug"\nlock_timeout = 5\n[rpc]\nport = 1\n[http]\nport = "off"\n')
    settings = load({"data": str(tmp_path), "rpc.port": "3"}, env={"KALAM_RPC_PORT": "2", "KALAM_LOCK_TIMEOUT": "6"})
    assert (settings.log_level, settings.lock_timeout, settings.rpc.port, settings.http.port) == ("debug", 6, 3, -1)
    assert load(env={"KALAM_CONFIG": str(file)}).rpc.port == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rpc.prot = 1", ['"rpc.prot"', 'did you mean "rpc.port"?']),
        ("rcp.port = 1", ['"rcp', "did you mean"]),
        ("zzzzzzz = 1", ['"zzzzzzz"', "the settings are"]),
        ("rpc = 1", ['"rpc"']),
        ("[rcp]", ['"rcp"']),
        ("rpc.port = 70000", ["70000", '"rpc.port"', "an integer from 0 to 65535"]),
        ("rpc.port = true", ["True", '"rpc.port"']),
        ("rpc.port.x = 1", ['"rpc.port"']),
        ('rpc.host = ""', ['"rpc.host"']),
        ('auth.mode = "none"', ["'none'", '"auth.mode"', '"trust", "password"']),
        ("drop_grace = nan", ["nan", '"drop_grace"']),
        ("drop_grace = -1", ['"drop_grace"', "a number from 0"]),
        ('duckdb.memory_limit = "lots"', ["'lots'", '"duckdb.memory_limit"', "512MB"]),
        ("x = [", ["not valid TOML"]),
        ('data = "elsewhere"', ['"data"']),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "kalamdb.toml"
    file.write_text(text)
    message = fails({"data": str(tmp_path)})
    assert str(file) in message
    for part in parts:
        assert part in message


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in fails(config=tmp_path / "none.toml")


def test_bad_environment_and_command_line() -> None:
    message = fails(KALAM_RPC_PORT="many")
    assert "environment variable KALAM_RPC_PORT" in message
    assert "'many'" in message
    assert 'did you mean "KALAM_RPC_PORT"?' in fails(KALAM_RPC_PROT="1")
    assert "command line" in fails({"rpc.port": "x"})
    assert "unknown setting" in fails({"nope": "x"})


def test_environment_that_is_not_ours_is_left_alone() -> None:
    load(env={"KALAM_SERVICE_HOST": "10.0.0.1", "KALAM_PORT_9188_TCP": "tcp://x", "KALAM_TEST_X": "1", "KALAMAR": "1"})


def test_a_bad_secret_is_not_shown() -> None:
    message = fails(KALAM_AUTH_JWT_KEY="short-key")
    assert "KALAM_AUTH_JWT_KEY" in message
    assert "short-key" not in message


def test_storages_have_names_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "kalamdb.toml"
    file.write_text(
        '[storages.cold]\ntype = "s3"\nbucket = "history"\ncache_bytes = 5\naccess_key_id = "key-id"\n'
        '[storages.far_off]\ntype = "S3"\nbucket = "a.b"\nprefix = "x/y/"\nendpoint = "http://[::1]:9000"\n'
    )
    settings = load({"storages.cold.region": "eu-1"}, config=file, env={
        "KALAM_STORAGES_COLD_CACHE_BYTES": "6", "KALAM_STORAGES_COLD_SECRET_ACCESS_KEY": "geheim",
        "KALAM_STORAGES_FAR_OFF_ALLOW_HTTP": "true",
    })
    cold, far = settings.storages["cold"], settings.storages["far_off"]
    assert list(settings.storages) == ["cold", "far_off"]
    assert (cold.type, cold.bucket, cold.region, cold.cache_bytes) == ("s3", "history", "eu-1", 6)
    assert (cold.access_key_id, cold.secret_access_key) == ("key-id", "geheim")
    assert (far.type, far.prefix, far.endpoint, far.allow_http) == ("s3", "x/y/", "http://[::1]:9000", True)
    assert far.access_key_id is None
    assert load(env={}).storages == {}


def test_secrets_are_not_in_the_text_of_settings() -> None:
    settings = load(env={
        "KALAM_AUTH_SHARED_SECRET": "geheim1", "KALAM_STORAGES_COLD_TYPE": "s3",
        "KALAM_STORAGES_COLD_BUCKET": "history",
        "KALAM_STORAGES_COLD_ACCESS_KEY_ID": "geheim2", "KALAM_STORAGES_COLD_SECRET_ACCESS_KEY": "geheim3",
    })
    assert "history" in repr(settings)
    assert "geheim" not in repr(settings)


_COLD = 'storages.cold = {type = "s3", bucket = "history"'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('storages = "s3"', ['"storages"']),
        ("[storages.cold]", ['"storages.cold"', "a table", '"type"', '"bucket"']),
        ('storages.cold = "s3"', ['"storages.cold"', "a table"]),
        ('storages.cold.bucket = "history"', ['"storages.cold.type" is needed']),
        ('storages.cold.type = "s3"', ['"storages.cold.bucket" is needed']),
        ('storages.cold.type = "ftp"', ['"storages.cold.type"', "'ftp'", '"s3"']),
        ('storages.cold.bukket = "x"', ["unknown", '"storages.cold.bukket"', '"storages.cold.bucket"?']),
        ('storages.cold.zzz = "x"', ["unknown", '"storages.cold.zzz"', "cache_bytes"]),
        ("storages.cold.bucket.x = 1", ["unknown", '"storages.cold.bucket.x"']),
        ('storages.local.type = "s3"', ['"storages.local.type"', "bad name"]),
        ('storages.Cold.type = "s3"', ['"storages.Cold.type"', "bad name"]),
        ('storages."a/".type = "s3"', ["bad name"]),
        ('storages.cold.bucket = "a/b"', ['"storages.cold.bucket"', "'a/b'"]),
        ('storages.cold.prefix = "../x"', ['"storages.cold.prefix"', "'../x'"]),
        ('storages.cold.prefix = "a//b"', ['"storages.cold.prefix"']),
        ("storages.cold.cache_bytes = -1", ['"storages.cold.cache_bytes"', "an integer from 0"]),
        ("storages.cold.allow_http = 1", ['"storages.cold.allow_http"', "true or false"]),
        ('storages.cold.endpoint = "s3.example.com"', ['"storages.cold.endpoint"', "https://"]),
        (_COLD + ', endpoint = "http://s3.example.com"}', ['"storages.cold.allow_http"', "without encryption"]),
        (_COLD + ', access_key_id = "x"}', ['"storages.cold.secret_access_key" is needed']),
        (_COLD + ', secret_access_key = "geheim"}', ['"storages.cold.access_key_id" is needed']),
        (_COLD + ', access_key_id = "x", secret_access_key = "geheim\\n"}', ['"storages.cold.secret_access_key"']),
        ('storages.cold.endpoint = "https://key:geheim@s3.example.com"', ['"storages.cold.endpoint"']),
    ],
)
def test_a_bad_storage(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "kalamdb.toml"
    file.write_text(text)
    message = fails(config=file)
    assert "geheim" not in message
    for part in parts:
        assert part in message


def test_bad_storages_in_the_environment() -> None:
    message = fails(KALAM_STORAGES_COLD_CACHE_BYTES="many")
    assert '"storages.cold.cache_bytes" (environment variable KALAM_STORAGES_COLD_CACHE_BYTES)' in message
    assert "unknown setting" in fails(KALAM_STORAGES_COLD_BUKKET="x")
    assert "bad name" in fails(KALAM_STORAGES_LOCAL_BUCKET="history")
    assert "geheim" not in fails(KALAM_STORAGES_COLD_SECRET_ACCESS_KEY="geheim\n")


def test_trust_beyond_loopback_is_a_decision() -> None:
    message = fails({"rpc.host": "0.0.0.0"})
    assert '"auth.mode"' in message
    assert load({"rpc.host": "0.0.0.0", "auth.mode": "trust"}, env={}).auth.mode == "trust"
    assert load({"rpc.host": "0.0.0.0"}, env={"KALAM_AUTH_SHARED_SECRET": "geheim12"}).auth.mode == "password"
    for host in ("127.0.0.2", "::1", "localhost"):
        assert load({"rpc.host": host}, env={}).auth.mode == "trust"


def test_the_documentation_is_generated() -> None:
    assert DOCS.read_text() == markdown(), "write it anew: python -m kalamdb.settings > docs/settings.md"


def test_every_setting_has_one_environment_name() -> None:
    assert len({d.env for d in DEFINITIONS.values()}) == len(DEFINITIONS)
