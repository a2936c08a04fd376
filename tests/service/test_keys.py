"""API keys: only the right one is accepted, only hashes are kept, and a change of the file counts at once."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.service.keys import KeyRing, add_key, new_key, read_keys, revoke_key, write_keys

PLAIN, KEY = new_key("search-team")
OTHER_PLAIN, OTHER = new_key("reader", ["read"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys.json", [KEY, OTHER])
    return tmp_path / "keys.json"


def test_a_key_lets_its_owner_in_with_its_rights(file: Path) -> None:
    ring = KeyRing(file)
    assert len(ring) == 2
    found, reader = ring.check(PLAIN), ring.check(OTHER_PLAIN)
    assert found is not None and found.name == "search-team" and found.scopes == {"read", "write"}
    assert reader is not None and reader.name == "reader" and reader.scopes == {"read"}


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path, [KEY, OTHER])
    return KeyRing(path)


@given(st.text())
def test_no_other_text_is_accepted(ring: KeyRing, wrong: str) -> None:
    assert ring.check(wrong) is None


@given(st.integers(0, len(PLAIN) - 1), st.characters())
def test_nor_a_key_with_one_character_changed(ring: KeyRing, place: int, letter: str) -> None:
    wrong = PLAIN[:place] + letter + PLAIN[place + 1 :]
    assert (ring.check(wrong) is None) == (wrong != PLAIN)


@pytest.mark.parametrize(
    "wrong", ["", PLAIN[:-1], PLAIN + "A", PLAIN.upper(), KEY.sha256, "\ud800", "m" * 10**6]
)
def test_nor_what_is_near(ring: KeyRing, wrong: str) -> None:
    assert ring.check(wrong) is None


def test_keys_are_long_random_and_known_by_their_prefix() -> None:
    plains = {new_key("n")[0] for _ in range(50)}
    assert len(plains) == 50
    assert all(
        plain.startswith("ms_") and len(plain) == 3 + 43 for plain in plains
    )  # 43 characters: 256 bits


def test_the_file_holds_no_key_and_is_its_owners_alone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert PLAIN not in text and PLAIN[3:] not in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(text)["keys"][0]) == {"name", "sha256", "scopes", "created"}
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]
    assert KEY.sha256 not in repr(KEY)


def test_a_file_left_by_a_crash_does_not_lend_its_mode(file: Path) -> None:
    left = file.with_name(".keys.json.tmp")
    left.write_text("{")
    left.chmod(0o666)
    add_key(file, "another")
    assert file.stat().st_mode & 0o777 == 0o600 and not left.exists()


def test_added_and_revoked_keys_count_at_once(file: Path) -> None:
    ring = KeyRing(file)
    third = add_key(file, "third")
    assert ring.check(third) is not None
    revoke_key(file, "search-team")
    assert ring.check(PLAIN) is None and ring.check(third) is not None
    revoke_key(file, "reader")
    revoke_key(file, "third")
    assert len(ring) == 2 and ring.check(third) is None and len(ring) == 0


@pytest.mark.parametrize("content", ["", "{", '{"keys": [{"name": "x"}]}', "[]", None])
def test_a_broken_or_missing_file_lets_nobody_in_and_is_logged_once(
    file: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert ring.check(PLAIN) is None and ring.broken
    assert len(caplog.records) == 1 and "no API key is accepted" in caplog.text
    with pytest.raises(UserError, match="file of keys"):
        KeyRing(file)
    write_keys(file, [OTHER])  # mended
    assert ring.check(OTHER_PLAIN) is not None and not ring.broken
    assert ring.check(PLAIN) is None and ring.check(OTHER_PLAIN) is not None


def test_a_change_within_one_tick_of_the_clock_counts_too(file: Path) -> None:
    ring = KeyRing(file)
    before = file.stat()
    _, same_size = new_key("search-team")
    write_keys(file, [same_size, OTHER])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert ring.check(PLAIN) is None


def test_weak_files_are_told_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_keys(file, [])
    file.chmod(0o666)
    with caplog.at_level(logging.WARNING):
        assert KeyRing(file).check(PLAIN) is None
    assert "holds no keys" in caplog.text and "chmod 600" in caplog.text


def test_names(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a key named reader"):
        add_key(file, "reader")
    for wrong in ("", "two words", "a" * 65, "new\nline"):
        with pytest.raises(UserError, match="is no name for a key"):
            add_key(file, wrong)
    with pytest.raises(UserError, match=r"no key named nobody in .*; its keys: search-team, reader"):
        revoke_key(file, "nobody")
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        add_key(tmp_path / "nowhere" / "keys.json", "x")
    record = json.loads(file.read_text(encoding="utf-8"))["keys"][0]
    file.write_text(json.dumps({"keys": [record, record]}), encoding="utf-8")
    with pytest.raises(UserError, match="two keys named search-team"):
        read_keys(file)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, file = CliRunner(), tmp_path / "keys.json"
    monkeypatch.setenv("MOONSHELF_KEYS_FILE", str(file))
    added = run.invoke(app, ["keys", "add", "reader", "--read-only"])
    assert added.exit_code == 0 and "not shown again" in added.stderr
    plain = added.stdout.strip()
    found = KeyRing(file).check(plain)
    assert found is not None and found.scopes == {"read"}
    listed = run.invoke(app, ["keys", "list", "--json"])
    assert [(k["name"], k["scopes"]) for k in json.loads(listed.stdout)] == [("reader", ["read"])]
    assert found.sha256 not in listed.stdout and "reader" in run.invoke(app, ["keys", "list"]).stdout
    assert run.invoke(app, ["keys", "revoke", "reader"]).exit_code == 0
    assert KeyRing(file).check(plain) is None
