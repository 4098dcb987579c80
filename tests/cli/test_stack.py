"""The contract of `kalam up`, `down` and `status`, with real processes; and what they say when they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kalamdb.stack.common import alive
from support.ports import reserved_port, wait_until

KALAM = Path(sys.executable).with_name("kalam")


def kalam(
    *words: str | Path, check: bool = True, text: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("KALAM_")}
    done = subprocess.run(
        [KALAM, *words], capture_output=True, text=True, check=False, env=own | (env or {}), input=text
    )
    if check:
        assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def up(data: Path, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(kalam("up", "--data", data, "--json", *words).stdout)
    return answer


def kill(pid: int) -> None:
    """It has ended when this returns."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the process's end")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stack") / "da ta"
    yield folder
    kalam("down", "--data", folder)


@pytest.fixture
def stack(data: Path) -> dict[str, Any]:
    return up(data)


def ask(stack: dict[str, Any], sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(stack["dsn"], autocommit=True) as conn:
        cursor = conn.execute(sql)
        return cursor.fetchall() if cursor.description else []


def test_what_up_prints(stack: dict[str, Any], data: Path) -> None:
    assert set(stack) == {"dsn", "rpc", "http", "data", "pids"}
    assert set(stack["rpc"]) == {"host", "port"}
    assert set(stack["pids"]) == {"server", "postgres"}
    assert stack["data"] == str(data)
    assert ask(stack, "SELECT current_database(), current_setting('is_superuser')") == [("kalam", "on")]
    assert ask(stack, "SELECT extname FROM pg_extension WHERE extname = 'pg_kalam'") == [("pg_kalam",)]
    assert ask(stack, "SELECT srvname FROM pg_foreign_server") == [("kalam_server",)]
    with psycopg.connect(host=stack["rpc"]["host"], port=stack["rpc"]["port"], user="kalam", dbname="kalam") as conn:
        assert conn.execute("SELECT 1").fetchall() == [(1,)]


def host(stack: dict[str, Any]) -> str:
    """How PostgreSQL reaches the server."""
    options = "SELECT split_part(o, '=', 2) FROM pg_foreign_server, unnest(srvoptions) AS o WHERE o LIKE 'host=%'"
    return str(ask(stack, options)[0][0])


def test_postgres_reaches_the_server_by_its_socket(stack: dict[str, Any], data: Path) -> None:
    assert host(stack) == str(data / "run")
    assert (data / "run").stat().st_mode & 0o777 == 0o700
    address = ask(stack, "SELECT kalam_server_info()->>'address'")
    assert address == [(f"{data}/run/.s.PGSQL.{stack['rpc']['port']}",)]


@pytest.mark.parametrize("name", ["d" * 100, "a,b"])
def test_a_directory_that_is_none_for_sockets(tmp_path: Path, name: str) -> None:
    """libpq could not be told of it: they talk by TCP."""
    try:
        stack = up(tmp_path / name)
        assert host(stack) == "127.0.0.1"
        assert not (tmp_path / name / "run").exists()
        assert up(tmp_path / name) == stack
    finally:
        kalam("down", "--data", tmp_path / name)


def test_a_directory_of_sockets_of_ones_own(tmp_path: Path) -> None:
    """As the settings say; when PostgreSQL cannot reach it, which this one could, they talk by TCP."""
    folder = tmp_path / "d"
    folder.mkdir()
    sockets = tmp_path / "s"
    sockets.mkdir()
    (folder / "kalamdb.toml").write_text(f"[rpc]\nsocket_dir = '{sockets}'\n")
    try:
        stack = up(folder)
        assert host(stack) == str(sockets)
        assert not (folder / "run").exists()
        (sockets / f".s.PGSQL.{stack['rpc']['port']}").unlink()
        assert host(up(folder)) == "127.0.0.1"
        assert ask(stack, "SELECT kalam_exec('SELECT 1 AS one')") == [('[{"one":1}]',)]
        kalam("down", "--data", folder)
        assert host(up(folder)) == str(sockets)
    finally:
        kalam("down", "--data", folder)


def test_up_again_finds_it(stack: dict[str, Any], data: Path) -> None:
    assert up(data) == stack
    status = json.loads(kalam("status", "--data", data, "--json").stdout)
    assert status["stack"] == stack


@pytest.mark.parametrize("victims", [["server"], ["postgres"], ["server", "postgres"]])
def test_what_died_is_started_again(stack: dict[str, Any], data: Path, victims: list[str]) -> None:
    ask(stack, "CREATE TABLE IF NOT EXISTS kept (id bigint PRIMARY KEY) USING kalamdb WITH (type = 'shared')")
    before = ask(stack, "INSERT INTO kept SELECT coalesce(max(id), 0) + 1 FROM kept RETURNING id")[0][0]
    for victim in victims:
        kill(stack["pids"][victim])
    again = up(data)
    for part in ("dsn", "rpc", "http", "data"):
        assert again[part] == stack[part]
    for part, pid in again["pids"].items():
        assert (pid != stack["pids"][part]) == (part in victims)
    assert ask(again, "SELECT max(id) FROM kept") == [(before,)]


def test_down_and_up(stack: dict[str, Any], data: Path) -> None:
    kalam("down", "--data", data)
    assert kalam("status", "--data", data, check=False).returncode == 3
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(stack["dsn"])
    kalam("down", "--data", data)
    again = up(data)
    assert (again["dsn"], again["rpc"]) == (stack["dsn"], stack["rpc"])


def test_another_name_of_the_same_folder(stack: dict[str, Any], data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert up(tmp_path / "link")["pids"] == stack["pids"]
    assert kalam("sql", "--data", tmp_path / "link", "--json", "SELECT 1 AS one").stdout == '{"one": 1}\n'


def test_variables_of_libpq_lead_nowhere_else(stack: dict[str, Any], data: Path) -> None:
    strange = {"PGHOSTADDR": "192.0.2.1", "PGSSLMODE": "require", "PGSERVICE": "none", "PGOPTIONS": "-c nosuch=1"}
    assert json.loads(kalam("up", "--data", data, "--json", env=strange).stdout) == stack
    assert kalam("sql", "--data", data, "--json", "SELECT 1 AS one", env=strange).stdout == '{"one": 1}\n'


def test_a_process_number_used_again(tmp_path: Path) -> None:
    """What was killed left its number behind; another program has it now, and must be left alone."""
    folder = tmp_path / "d"
    try:
        stack = up(folder)
        for victim in stack["pids"].values():
            kill(victim)
        with subprocess.Popen(["sleep", "600"]) as other:
            try:
                for name in ("server.json", "postgres/postmaster.pid"):
                    text = (folder / name).read_text()
                    for victim in stack["pids"].values():
                        text = text.replace(str(victim), str(other.pid))
                    (folder / name).write_text(text)
                status = json.loads(kalam("status", "--data", folder, "--json", check=False).stdout)
                assert (status["server_pid"], status["postgres_pid"]) == (None, None)
                kalam("down", "--data", folder)
                assert other.poll() is None
            finally:
                other.kill()
        again = up(folder)
        assert (again["dsn"], again["rpc"], again["http"]) == (stack["dsn"], stack["rpc"], stack["http"])
    finally:
        kalam("down", "--data", folder)


def test_an_extension_that_was_built_anew_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    try:
        stack = up(folder)
        saved = json.loads((folder / "stack.json").read_text())
        (folder / "stack.json").write_text(json.dumps(saved | {"build": "an older one"}))
        again = up(folder)
        assert again["dsn"] == stack["dsn"]
        assert again["pids"]["server"] == stack["pids"]["server"]
        assert again["pids"]["postgres"] != stack["pids"]["postgres"]
    finally:
        kalam("down", "--data", folder)


def test_two_at_once(stack: dict[str, Any], data: Path) -> None:
    kalam("down", "--data", data)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: up(data), range(2))
    assert one == two


def test_ports_as_asked(tmp_path: Path) -> None:
    reserved = [reserved_port() for _ in range(3)]
    ports = [str(port.getsockname()[1]) for port in reserved]
    words = ("--pg-port", ports[0], "--rpc-port", ports[1], "--http-port", ports[2])
    try:
        stack = up(tmp_path / "d", *words)
        assert f":{ports[0]}/" in stack["dsn"]
        assert str(stack["rpc"]["port"]) == ports[1]
        assert stack["http"].endswith(f":{ports[2]}")
        other = kalam("up", "--data", tmp_path / "d", "--rpc-port", ports[0], check=False)
        assert other.returncode == 1
        assert f"on port {ports[1]}, not {ports[0]}" in other.stderr
        taken = kalam("up", "--data", tmp_path / "e", "--rpc-port", ports[1], check=False)
        assert taken.returncode == 1
        assert f"port {ports[1]}" in taken.stderr
    finally:
        kalam("down", "--data", tmp_path / "d")
        for port in reserved:
            port.close()


@pytest.mark.parametrize("settings", ["[auth]\nshared_secret = 'a secret with \"quotes\" and more'\n"])
def test_a_server_with_a_secret(tmp_path: Path, settings: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kalamdb.toml").write_text(settings)
    try:
        stack = up(tmp_path / "d")
        assert ask(stack, "SELECT kalam_exec('SELECT 1 AS one')") == [('[{"one":1}]',)]
        assert up(tmp_path / "d") == stack
        assert kalam("sql", "--data", tmp_path / "d", "--json", "SELECT 1 AS one").stdout == '{"one": 1}\n'
        wrong = kalam("sql", "--data", tmp_path / "d", "--user", "bearer", "SELECT 1", check=False,
                      env={"KALAM_PASSWORD": "not the secret"})
        assert wrong.returncode == 1
        assert "$KALAM_PASSWORD" in wrong.stderr
        assert "not the secret" not in wrong.stderr
    finally:
        kalam("down", "--data", tmp_path / "d")


def test_settings_that_leave_postgres_outside(tmp_path: Path) -> None:
    (tmp_path / "kalamdb.toml").write_text('[auth]\nmode = "password"\n')
    try:
        done = kalam("up", "--data", tmp_path, check=False)
        assert done.returncode == 1
        assert "auth.shared_secret" in done.stderr
    finally:
        kalam("down", "--data", tmp_path)


def test_without_http(tmp_path: Path) -> None:
    (tmp_path / "kalamdb.toml").write_text('[http]\nport = "off"\n')
    try:
        stack = up(tmp_path)
        assert stack["http"] is None
        assert up(tmp_path) == stack
    finally:
        kalam("down", "--data", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_where_user_namespaces_are_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in many containers. The folders on the way are closed to others; later the namespace works again."""
    refusing = tmp_path / "bin" / "unshare"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    folder = tmp_path / "d"
    try:
        with monkeypatch.context() as forbidden:
            forbidden.setenv("PATH", f"{refusing.parent}:{os.environ['PATH']}")
            stack = up(folder)
            assert (folder / "postgres").stat().st_uid != 0
            assert host(stack) == str(folder / "run")
            kill(stack["pids"]["postgres"])
            assert up(folder)["dsn"] == stack["dsn"]
            kalam("down", "--data", folder)
        assert up(folder)["dsn"] == stack["dsn"]
        assert (folder / "postgres").stat().st_uid == 0
    finally:
        kalam("down", "--data", folder)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["up", "--data", "{}/x", "--postgres", "bundled12"], "bundled16"),
        (["up", "--data", "{}/x", "--postgres", "/nowhere/pg_config"], "/nowhere/pg_config"),
        (["up", "--data", "{}/x", "--postgres", "/bin/true"], "/bin/true is not a pg_config"),
        (["up", "--data", "{}/x", "--postgres", "/bin/false"], "/bin/false is not a pg_config"),
        (["up", "--data", "/proc/nowhere"], "/proc/nowhere"),
        (["up", "--data", "/dev/null"], "/dev/null"),
        (["up", "--rpc-port", "65536"], "--rpc-port"),
        (["down", "--data", "{}/none"], "none"),
        (["status", "--data", "{}/none"], "kalam up"),
        (["pg", "install", "--pg-config", "/nowhere"], "/nowhere"),
        (["sql", "--data", "{}/none", "SELECT 1"], "no KalamDB server is running"),
        (["sql", "--host", "127.0.0.1", "SELECT 1"], "--port"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, words: list[str], told: str) -> None:
    done = kalam(*[word.format(tmp_path) for word in words], check=False)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert done.stdout == ""


def test_a_damaged_memory(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    done = kalam("up", "--data", tmp_path, check=False)
    assert done.returncode == 1
    assert "stack.json" in done.stderr


def test_no_compiler(tmp_path: Path) -> None:
    """Nothing is in the cache yet, and the path has no make."""
    done = kalam("up", "--data", tmp_path / "d", check=False,
                 env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c")})
    assert done.returncode == 1
    assert "hint: Debian: apt-get install build-essential" in done.stderr


def test_no_headers(tmp_path: Path) -> None:
    config = tmp_path / "pg_config"
    config.write_text("#!/bin/sh\ncase $1 in --version) echo PostgreSQL 17.2;; *) echo /nowhere;; esac\n")
    config.chmod(0o755)
    done = kalam("pg", "install", "--pg-config", config, check=False,
                 env={"XDG_CACHE_HOME": str(tmp_path / "c")})
    assert done.returncode == 1
    assert "hint: Debian: apt-get install postgresql-server-dev-17" in done.stderr


def test_a_bad_setting_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kalamdb.toml").write_text("[rpc]\nmax_mesage = 3\n")
    done = kalam("up", "--data", tmp_path / "d", check=False)
    assert done.returncode == 1
    assert "max_mesage" in done.stderr
    assert "max_message" in done.stderr
    kalam("down", "--data", tmp_path / "d")


def test_another_postgres_for_the_same_data(stack: dict[str, Any], data: Path) -> None:
    done = kalam("up", "--data", data, "--postgres", "bundled18", check=False)
    assert done.returncode == 1
    assert "was made with bundled16" in done.stderr


# ---------- kalam sql ----------
def test_sql_as_table_and_json(stack: dict[str, Any], data: Path) -> None:
    table = kalam("sql", "--data", data, "SELECT 1 AS one, 'x' AS two, NULL AS three").stdout
    assert table.split() == ["one", "two", "three", "1", "x", "∅", "(1", "row)"]
    rows = kalam("sql", "--data", data, "--json", "SELECT 1 AS one, true AS yes; SELECT 'ü' AS u").stdout.splitlines()
    assert [json.loads(row) for row in rows] == [{"one": 1, "yes": True}, {"u": "ü"}]


def test_sql_values_that_python_lacks(stack: dict[str, Any], data: Path) -> None:
    sql = "SELECT 'infinity'::timestamp AS t, 'NaN'::float8 AS f, '1.50'::numeric AS n"
    row = json.loads(kalam("sql", "--data", data, "--json", sql).stdout)
    assert row == {"t": "infinity", "f": "NaN", "n": "1.50"}
    assert kalam("sql", "--data", data, sql).stdout.splitlines()[1].split() == ["infinity", "NaN", "1.50"]


def test_sql_table_in_a_pipe(stack: dict[str, Any], data: Path) -> None:
    """Lines are not folded, and no value reaches a terminal as a command to it."""
    lines = kalam("sql", "--data", data, "SELECT repeat('x', 300) AS a, chr(27) || '[31m' AS b").stdout.splitlines()
    assert lines[1].split() == ["x" * 300, "\\x1b[31m"]


def test_sql_reader_that_has_seen_enough(stack: dict[str, Any], data: Path) -> None:
    command = [str(KALAM), "sql", "--data", str(data), "--json", "SELECT * FROM generate_series(1, 50000) AS g"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_sql_after_the_server_was_killed(tmp_path: Path) -> None:
    """Its server.json is still there."""
    try:
        kill(up(tmp_path)["pids"]["server"])
        done = kalam("sql", "--data", tmp_path, "SELECT 1", check=False)
        assert done.returncode == 1
        assert "no KalamDB server is running" in done.stderr
    finally:
        kalam("down", "--data", tmp_path)


def test_sql_from_standard_input(stack: dict[str, Any], data: Path) -> None:
    script = "CREATE NAMESPACE IF NOT EXISTS typed;\nSELECT '100 %s ;' AS t;\n"
    assert "100 %s ;" in kalam("sql", "--data", data, text=script).stdout


def test_sql_error(stack: dict[str, Any], data: Path) -> None:
    done = kalam("sql", "--data", data, "SELECT * FROM nowhere.t", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR:  42P01: ")


def test_sql_shows_the_place_of_an_error(stack: dict[str, Any], data: Path) -> None:
    done = kalam("sql", "--data", data, text="SELECT 'é'; -- one\n\tSELECT 1, SELEC;\n", check=False)
    assert done.stderr.splitlines() == ['ERROR:  42703: column "selec" does not exist', "LINE 2:  SELECT 1, SELEC;",
                                        "                   ^"]
    done = kalam("sql", "--data", data, f"VALUES ('{'x' * 100}'); CREATE VIEW v AS {'y' * 100}", check=False)
    assert done.stderr.splitlines() == [
        "ERROR:  0A000: CREATE VIEW is not supported", f"LINE 1: …{'x' * 49}'); CREATE VIEW v AS {'y' * 50}…",
        " " * 69 + "^", "HINT:  Views belong to PostgreSQL, over the attached tables."]


def test_sql_definitions_and_accounts(stack: dict[str, Any], data: Path) -> None:
    script = ("CREATE NAMESPACE n; CREATE TABLE n.t (id int PRIMARY KEY); CREATE USER cli PASSWORD 'long enough';"
              "SHOW USERS LIKE 'cli'")
    assert json.loads(kalam("sql", "--data", data, "--json", script).stdout.splitlines()[-1]) == {
        "name": "cli", "role": "user", "has_password": True, "locked": False}
    counted = kalam("sql", "--data", data, "--json", "EXECUTE AS USER 'a b' (SELECT count(*) AS n FROM n.t)").stdout
    assert json.loads(counted) == {"n": 0}
    done = kalam("sql", "--data", data, "DROP USER cli; DROP NAMESPACE n", check=False)
    assert "HINT:  Use DROP ... CASCADE" in done.stderr
    done = kalam("sql", "--data", data, "DROP USER cli; DROP NAMESPACE n CASCADE")
    assert done.stdout.splitlines() == ["DROP USER", "DROP NAMESPACE"]
    assert "drop cascades to 1 table" in done.stderr


def test_sql_for_a_tenant(stack: dict[str, Any], data: Path) -> None:
    sql = "CREATE NAMESPACE IF NOT EXISTS app; CREATE USER TABLE IF NOT EXISTS app.n (id bigint PRIMARY KEY)"
    kalam("sql", "--data", data, sql)
    kalam("sql", "--data", data, "--tenant", "al'ice", "INSERT INTO app.n VALUES (1)")
    answer = kalam("sql", "--data", data, "--tenant", "al'ice", "--json", "SELECT id, _userid FROM app.n").stdout
    assert json.loads(answer) == {"id": 1, "_userid": "al'ice"}
    assert kalam("sql", "--data", data, "--tenant", "bob", "--json", "SELECT id FROM app.n").stdout == ""


# ---------- the rest ----------
def test_version_and_snippet() -> None:
    assert kalam("version").stdout.startswith("kalamdb 0.")
    snippet = kalam("pg", "config-snippet", "--host", "db's", "--port", "9999").stdout
    assert "shared_preload_libraries = 'pg_kalam'" in snippet
    assert "host 'db''s', port '9999'" in snippet


@pytest.mark.parametrize(
    "words", [[], ["up"], ["down"], ["status"], ["serve"], ["sql"], ["doctor"], ["pg"], ["pg", "install"]]
)
def test_help(words: list[str]) -> None:
    assert len(kalam(*words, "--help").stdout) > 200


# ---------- kalam doctor ----------
def test_doctor_names_file_and_directory(tmp_path: Path) -> None:
    """A PostgreSQL whose folders are this test's: what pg_config says is all that doctor goes by."""
    libraries, scripts = tmp_path / "lib", tmp_path / "share" / "extension"
    libraries.mkdir()
    scripts.mkdir(parents=True)
    pg_config = tmp_path / "pg_config"
    pg_config.write_text(
        "#!/bin/sh\ncase $1 in --version) echo PostgreSQL 16.14;; --pkglibdir) echo " + str(libraries)
        + ";; --sharedir) echo " + str(tmp_path / "share") + ";; esac\n"
    )
    pg_config.chmod(0o755)
    source = Path(__file__).parents[2] / "extension"

    def doctor() -> tuple[int, str, str]:
        done = kalam("doctor", "--pg-config", pg_config, check=False)
        return done.returncode, done.stdout, done.stderr

    code, said, hint = doctor()
    assert code == 1
    assert f"pg_kalam.so is missing in {libraries}" in said
    assert f"pg_kalam.control is missing in {scripts}" in said
    assert f"kalam pg install --pg-config {pg_config}" in hint
    (libraries / "pg_kalam.so").write_bytes(b"\x7fELF")
    for path in [*source.glob("*.control"), *source.glob("*.sql")]:
        (scripts / path.name).write_bytes(path.read_bytes())
    assert doctor()[0] == 0
    (scripts / "pg_kalam.control").write_text("default_version = '0.0'\n")
    code, said, _ = doctor()
    assert (code, f"pg_kalam.control in {scripts} is of another release" in said) == (1, True)
